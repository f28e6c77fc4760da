"""What an AWS account needs once: a subnet to use, a security group, the builder's role and instance profile.

Every piece is looked up before it is made, so a second run changes nothing, and one that was cut short is
completed. Only what carries our Project tag is changed or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.account.checks import permissions, quotas
from instant_env.cloud.account.findings import Finding
from instant_env.cloud.account.group import ensure_group, our_groups
from instant_env.cloud.account.reaper import REAPER_NAME, ensure_reaper, find_reaper, remove_reaper
from instant_env.cloud.account.roles import (
    ROLE_NAME,
    delete_profile,
    delete_role,
    ensure_profile,
    ensure_role,
    ensure_spot_role,
    present,
    refuse_foreign,
)
from instant_env.cloud.account.subnets import best_subnet
from instant_env.cloud.network import delete_group
from instant_env.cloud.session import Cloud, cloud_error
from instant_env.errors import UsageError
from instant_env.progress import Progress
from instant_env.settings import CloudName, Settings


def set_up(
    cloud: Cloud, *, dry_run: bool, progress: Progress, spot_role: bool = False, reaper: bool = False
) -> list[Finding]:
    """Make what is missing (with ``dry_run``: only look), then check quotas and permissions. ``reaper``: with
    the function that ends what is past its time.

    ``spot_role``: make Spot's service-linked role, too, which belongs to the account and not to us.

    Raises CloudError when a piece cannot be made; what a check finds is in the answer.
    """
    findings: list[Finding] = []

    def note(finding: Finding) -> None:
        findings.append(finding)
        progress(
            f"{finding.what} {finding.name}: {finding.state}" + f" ({finding.detail})" * bool(finding.detail)
        )

    try:
        subnet = best_subnet(cloud)
        note(
            Finding("subnet", subnet["SubnetId"], "there", f"{subnet['AvailabilityZone']}, {subnet['VpcId']}")
        )
        note(ensure_group(cloud, subnet["VpcId"], dry_run))
        note(ensure_role(cloud.client("iam"), dry_run))
        note(ensure_profile(cloud.client("iam"), dry_run))
        note(ensure_spot_role(cloud.client("iam"), make=spot_role and not dry_run))
        if reaper:
            note(find_reaper(cloud) if dry_run else ensure_reaper(cloud))
    except ClientError as error:
        raise cloud_error(error, f"setting up: {error.operation_name}") from error
    for finding in [*quotas(cloud), *permissions(cloud, subnet)]:
        note(finding)
    return findings


def tear_down(cloud: Cloud, *, dry_run: bool, progress: Progress) -> list[Finding]:
    """Remove what `set_up` made. The subnet is the account's own and stays.

    Raises CloudError when a machine still uses one of them, or one is somebody else's.
    """
    findings: list[Finding] = []
    iam = cloud.client("iam")

    def go(what: str, name: str, remove: Callable[[], Any]) -> None:
        if not dry_run:
            remove()
        findings.append(Finding(what, name, "there" if dry_run else "removed"))
        progress(f"{what} {name}: {findings[-1].state}")

    try:
        for group in our_groups(cloud):
            go("security group", group["GroupId"], lambda one=group: delete_group(cloud, one["GroupId"]))  # type: ignore[misc]
        profile = present(lambda: iam.get_instance_profile(InstanceProfileName=ROLE_NAME))
        if profile is not None:
            refuse_foreign("instance profile", profile["InstanceProfile"].get("Tags"))
            go("instance profile", ROLE_NAME, lambda: delete_profile(iam, profile["InstanceProfile"]))
        role = present(lambda: iam.get_role(RoleName=ROLE_NAME))
        if role is not None:
            refuse_foreign("role", role["Role"].get("Tags"))
            go("role", ROLE_NAME, lambda: delete_role(iam))
        for what, remove in remove_reaper(cloud):
            go(what, REAPER_NAME, remove)
    except ClientError as error:
        raise cloud_error(
            error, f"tearing down: {error.operation_name}", hint="end what uses it first"
        ) from error
    return findings


def only_aws(settings: Settings) -> Settings:
    """The settings, when they are for AWS: localec2 needs none of this. Raises UsageError."""
    if settings.cloud is not CloudName.AWS:
        raise UsageError("localec2 needs no set-up", hint="for AWS: --cloud aws")
    return settings


def advice(findings: list[Finding]) -> Iterator[str]:
    """The lines for instant-env.yml, and what needs attention."""
    keys = {"subnet": "subnet", "security group": "security_group"}
    lines = [
        f"  {keys[one.what]}: {one.name}" for one in findings if one.what in keys and one.state != "missing"
    ]
    yield "in instant-env.yml:"
    yield "  cloud: aws"
    yield from lines
    for one in findings:
        if one.state == "trouble" or (one.what == "spot role" and one.state == "missing"):
            yield f"{one.what} {one.name}: {one.detail}"
