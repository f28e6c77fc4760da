"""What an AWS account needs once: a subnet to use, a security group, the builder's role and instance profile.

Every piece is looked up before it is made, so a second run changes nothing, and one that was cut short is
completed. Only what carries our Project tag is changed or removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.arch import Arch
from instant_env.cloud.instances import default_type
from instant_env.cloud.launching.places import check_subnet
from instant_env.cloud.launching.refusals import SPOT_ROLE_HINT
from instant_env.cloud.network import admit, caller_cidr, delete_group, wait_for_group
from instant_env.cloud.rules.consistency import repeat_while_unknown, wait_until_known
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import PROJECT, PROJECT_FILTER, read_tags
from instant_env.errors import UsageError
from instant_env.progress import Progress
from instant_env.settings import ROOT, CloudName, Settings

#: Names of what is made; the role and its instance profile share one.
GROUP_NAME = "instant-env"
ROLE_NAME = "instant-env-builder"
_POLICY_NAME = "builder"
#: Spot's own; it is the account's, and stays when ours are torn down.
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
POLICIES = ROOT / "policies"

_TAGS: Any = [{"Key": "Project", "Value": PROJECT}, {"Key": "Name", "Value": "instant-env"}]
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}

#: vCPUs of running machines of the families A, C, D, H, I, M, R, T and Z (Service Quotas, service ec2). For
#: moments a bake has two machines of two vCPUs; four bakes side by side have 16.
_QUOTAS = {"L-1216C47A": "vCPUs on demand", "L-34B43A08": "vCPUs spot"}
_WANTED_VCPUS = 16


@dataclass(frozen=True)
class Finding:
    """One piece or check. ``state``: there | made | missing | removed | ok | trouble."""

    what: str
    name: str
    state: str
    detail: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def set_up(cloud: Cloud, *, dry_run: bool, progress: Progress, spot_role: bool = False) -> list[Finding]:
    """Make what is missing (with ``dry_run``: only look), then check quotas and permissions.

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
        subnet = _subnet(cloud)
        note(
            Finding("subnet", subnet["SubnetId"], "there", f"{subnet['AvailabilityZone']}, {subnet['VpcId']}")
        )
        note(_group(cloud, subnet["VpcId"], dry_run))
        note(_role(cloud.client("iam"), dry_run))
        note(_profile(cloud.client("iam"), dry_run))
        note(_spot_role(cloud.client("iam"), make=spot_role and not dry_run))
    except ClientError as error:
        raise cloud_error(error, f"setting up: {error.operation_name}") from error
    for finding in [*_quotas(cloud), *_permissions(cloud, subnet["SubnetId"])]:
        note(finding)
    return findings


def _subnet(cloud: Cloud) -> Any:
    """The configured subnet; else, of the default VPC's, one in a zone that has the builders of both
    architectures, with a public address for machines and the most addresses free."""
    ec2 = cloud.ec2
    if cloud.settings.subnet:
        check_subnet(cloud)
        return ec2.describe_subnets(SubnetIds=[cloud.settings.subnet])["Subnets"][0]
    zones: set[str] | None = None
    for arch in Arch:
        offerings = ec2.describe_instance_type_offerings(
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": [default_type(cloud, arch)]}],
        )["InstanceTypeOfferings"]
        having = {offering["Location"] for offering in offerings}
        zones = having if zones is None else zones & having
    pages = ec2.get_paginator("describe_subnets").paginate(
        Filters=[{"Name": "default-for-az", "Values": ["true"]}]
    )
    fitting = [
        subnet
        for page in pages
        for subnet in page["Subnets"]
        if subnet["AvailabilityZone"] in (zones or set()) and subnet["MapPublicIpOnLaunch"]
    ]
    if not fitting:
        raise CloudError(
            f"no default subnet in {cloud.region} has our builders and public addresses",
            hint="name one: --subnet subnet-...",
        )
    return max(fitting, key=lambda subnet: (subnet["AvailableIpAddressCount"], subnet["SubnetId"]))


def _our_groups(cloud: Cloud) -> list[Any]:
    name: Any = {"Name": "group-name", "Values": [GROUP_NAME]}
    return list(cloud.ec2.describe_security_groups(Filters=[*PROJECT_FILTER, name])["SecurityGroups"])


def _group(cloud: Cloud, vpc_id: str, dry_run: bool) -> Finding:
    """A group that admits SSH from the caller's present address only."""
    cidr = caller_cidr(cloud)
    ours = [group for group in _our_groups(cloud) if group["VpcId"] == vpc_id]
    rule: Any = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": cidr}]}
    if ours:
        group_id, rules = ours[0]["GroupId"], ours[0]["IpPermissions"]
        ranges = [entry["CidrIp"] for one in rules for entry in one["IpRanges"]]
        if ranges == [cidr]:
            return Finding("security group", group_id, "there", f"SSH from {cidr}")
        if dry_run:
            return Finding("security group", group_id, "there", f"would admit {cidr} in place of {ranges}")
        if rules:
            cloud.ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=rules)
    elif dry_run:
        return Finding("security group", GROUP_NAME, "missing", f"would admit SSH from {cidr}")
    else:
        group_id = cloud.ec2.create_security_group(
            GroupName=GROUP_NAME,
            Description="instant-env: SSH from where it was set up",
            VpcId=vpc_id,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": _TAGS}],
        )["GroupId"]
        wait_for_group(cloud, group_id)
    admit(cloud, group_id, rule)
    return Finding("security group", group_id, "made", f"SSH from {cidr}")


def _present(call: Callable[[], Any]) -> Any:
    """What a Get call of IAM answers; None where there is no such thing."""
    try:
        return call()
    except ClientError as error:
        if error_code(error) == "NoSuchEntity":
            return None
        raise


def _refuse_foreign(kind: str, tags: Any) -> None:
    if read_tags(tags).get("Project") != PROJECT:
        raise CloudError(
            f"the {kind} {ROLE_NAME} is somebody else's: it has no tag Project={PROJECT}",
            hint="rename it, or tag it if it is yours",
        )


def _role(iam: Any, dry_run: bool) -> Finding:
    document = json.loads((POLICIES / "builder-role.json").read_text(encoding="utf-8"))
    there = _present(lambda: iam.get_role(RoleName=ROLE_NAME))
    if there is not None:
        _refuse_foreign("role", there["Role"].get("Tags"))
        policy = _present(lambda: iam.get_role_policy(RoleName=ROLE_NAME, PolicyName=_POLICY_NAME))
        if policy is not None and policy["PolicyDocument"] == document:
            return Finding("role", ROLE_NAME, "there")
    if dry_run:
        return Finding(
            "role", ROLE_NAME, "missing" if there is None else "there", "its policy would be written"
        )
    if there is None:
        iam.create_role(
            RoleName=ROLE_NAME,
            AssumeRolePolicyDocument=json.dumps(_TRUST),
            Description="machines that instant-env bakes images on",
            Tags=_TAGS,
        )
    repeat_while_unknown(
        lambda: iam.put_role_policy(
            RoleName=ROLE_NAME, PolicyName=_POLICY_NAME, PolicyDocument=json.dumps(document)
        )
    )
    return Finding("role", ROLE_NAME, "made")


def _profile(iam: Any, dry_run: bool) -> Finding:
    there = _present(lambda: iam.get_instance_profile(InstanceProfileName=ROLE_NAME))
    if there is not None:
        _refuse_foreign("instance profile", there["InstanceProfile"].get("Tags"))
        if [role["RoleName"] for role in there["InstanceProfile"]["Roles"]] == [ROLE_NAME]:
            return Finding("instance profile", ROLE_NAME, "there")
    if dry_run:
        return Finding("instance profile", ROLE_NAME, "missing")
    if there is None:
        iam.create_instance_profile(InstanceProfileName=ROLE_NAME, Tags=_TAGS)
    repeat_while_unknown(
        lambda: iam.add_role_to_instance_profile(InstanceProfileName=ROLE_NAME, RoleName=ROLE_NAME)
    )
    # IAM knows it then; EC2 a little later, which a bake's launch waits for.
    wait_until_known(
        lambda: iam.get_instance_profile(InstanceProfileName=ROLE_NAME)["InstanceProfile"]["Roles"],
        f"instance profile {ROLE_NAME}",
    )
    return Finding("instance profile", ROLE_NAME, "made")


def _spot_role(iam: Any, *, make: bool) -> Finding:
    """The role without which EC2 refuses spot machines that are asked for by API.

    (EC2 User Guide, "Service-linked role for Spot Instance requests".) EC2 makes it by itself only for a
    caller who may create service-linked roles, and policies/bench.json does not allow that.
    """
    try:
        if _present(lambda: iam.get_role(RoleName=SPOT_ROLE)) is not None:
            return Finding("spot role", SPOT_ROLE, "there")
    except ClientError as error:
        return Finding("spot role", SPOT_ROLE, "trouble", f"cannot be read: {error_code(error)}")
    if not make:
        return Finding("spot role", SPOT_ROLE, "missing", f"spot is refused without it: {SPOT_ROLE_HINT}")
    iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    return Finding("spot role", SPOT_ROLE, "made")


def _quotas(cloud: Cloud) -> Iterator[Finding]:
    quotas = cloud.client("service-quotas")
    for code, what in _QUOTAS.items():
        try:
            value = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except (ClientError, BotoCoreError) as error:
            yield Finding("quota", what, "trouble", f"cannot be read: {error}")
            continue
        enough = value >= _WANTED_VCPUS
        detail = f"{value:.0f}" if enough else f"{value:.0f}; four bakes side by side need {_WANTED_VCPUS}"
        yield Finding("quota", what, "ok" if enough else "trouble", detail)


def _permissions(cloud: Cloud, subnet_id: str) -> Iterator[Finding]:
    """Whether EC2 grants the calls that every bake begins with, by DryRun."""
    ec2 = cloud.ec2
    kind: Any = default_type(cloud, Arch.X86_64)
    calls: dict[str, Callable[[], Any]] = {
        "ec2:ImportKeyPair": lambda: ec2.import_key_pair(
            KeyName="instant-env-dry-run", PublicKeyMaterial=b"ssh-ed25519 AAAA", DryRun=True,
            TagSpecifications=[{"ResourceType": "key-pair", "Tags": _TAGS}],
        ),
        "ec2:CreateSecurityGroup": lambda: ec2.create_security_group(
            GroupName="instant-env-dry-run", Description="dry run", DryRun=True,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": _TAGS}],
        ),
        "ec2:RunInstances": lambda: ec2.run_instances(
            ImageId=_any_image(cloud), InstanceType=kind, MinCount=1, MaxCount=1, SubnetId=subnet_id,
            DryRun=True, TagSpecifications=[{"ResourceType": "instance", "Tags": _TAGS}],
        ),
    }  # fmt: skip
    for action, call in calls.items():
        code = "no answer"
        try:
            call()
        except ClientError as error:
            code = error_code(error)
        allowed = code == "DryRunOperation"
        yield Finding("permission", action, "ok" if allowed else "trouble", "" if allowed else code)


def _any_image(cloud: Cloud) -> str:
    """An AMI for a launch that will not be: AWS's own parameter names one in every region."""
    name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
    return str(cloud.ssm.get_parameter(Name=name)["Parameter"]["Value"])


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
        for group in _our_groups(cloud):
            go("security group", group["GroupId"], lambda one=group: delete_group(cloud, one["GroupId"]))  # type: ignore[misc]
        profile = _present(lambda: iam.get_instance_profile(InstanceProfileName=ROLE_NAME))
        if profile is not None:
            _refuse_foreign("instance profile", profile["InstanceProfile"].get("Tags"))
            go("instance profile", ROLE_NAME, lambda: _delete_profile(iam, profile["InstanceProfile"]))
        role = _present(lambda: iam.get_role(RoleName=ROLE_NAME))
        if role is not None:
            _refuse_foreign("role", role["Role"].get("Tags"))
            go("role", ROLE_NAME, lambda: _delete_role(iam))
    except ClientError as error:
        raise cloud_error(
            error, f"tearing down: {error.operation_name}", hint="end what uses it first"
        ) from error
    return findings


def _delete_profile(iam: Any, profile: Any) -> None:
    for role in profile["Roles"]:
        iam.remove_role_from_instance_profile(InstanceProfileName=ROLE_NAME, RoleName=role["RoleName"])
    iam.delete_instance_profile(InstanceProfileName=ROLE_NAME)


def _delete_role(iam: Any) -> None:
    if _present(lambda: iam.get_role_policy(RoleName=ROLE_NAME, PolicyName=_POLICY_NAME)) is not None:
        iam.delete_role_policy(RoleName=ROLE_NAME, PolicyName=_POLICY_NAME)
    iam.delete_role(RoleName=ROLE_NAME)


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
