"""Everything that a first run depends on, in one list: `invoke setup --check`. Nothing is made or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.account.checks import permissions, quotas
from instant_env.cloud.account.findings import Finding, refusal
from instant_env.cloud.account.group import group_finding
from instant_env.cloud.account.reaper import find_reaper
from instant_env.cloud.account.roles import ROLE_NAME, ensure_profile, ensure_role, ensure_spot_role
from instant_env.cloud.account.subnets import best_subnet, subnet_findings
from instant_env.cloud.session import Cloud, CloudError, error_code, named_region
from instant_env.progress import Doing, Progress


def checklist(cloud: Cloud, *, progress: Progress) -> list[Finding]:
    """One finding for each piece and each check. A look that is refused is a finding as well (``unknown``),
    so that one missing permission does not hide the rest."""
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "account": lambda: [_account(cloud)],
        "plan": lambda: [_plan(cloud)],
        "region": lambda: [_region(cloud)],
        "encryption": lambda: [_encryption(cloud)],
        "quota": lambda: quotas(cloud),
        "subnet": lambda: subnet_findings(cloud),
        "security group": lambda: [group_finding(cloud)],
        "role": lambda: _roles(cloud),
        "reaper": lambda: [find_reaper(cloud)],
        "permission": lambda: permissions(cloud, best_subnet(cloud)),
    }
    findings: list[Finding] = []
    for what, look in looks.items():
        progress(Doing(f"looking at the account: {what}"))
        findings += _unless_refused(what, look)
    return findings


def _unless_refused(what: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (ClientError, BotoCoreError) as error:
        yield Finding(what, "-", "unknown", refusal(error))
    except CloudError as error:
        yield Finding(what, "-", "trouble", error.message + f"; {error.hint}" * bool(error.hint))


def _account(cloud: Cloud) -> Finding:
    identity = cloud.client("sts").get_caller_identity()
    return Finding("account", identity["Account"], "ok", identity["Arn"])


def _plan(cloud: Cloud) -> Finding:
    """Accounts made since July 2025 begin on a free plan, which refuses most types (cloudgoat#375,
    karpenter#9004: InvalidParameterCombination, "not eligible for Free Tier"). Older accounts have no plan;
    that the service answers for them as it is read here was not seen on AWS."""
    try:
        plan = cloud.client("freetier", region="us-east-1").get_account_plan_state()
    except ClientError as error:
        if error_code(error) == "ResourceNotFoundException":
            return Finding("plan", "-", "ok", "an account from before the plans")
        raise
    kind = str(plan["accountPlanType"])
    if kind == "FREE":
        return Finding(
            "plan", kind, "trouble", "it refuses m7i.large: use m7i-flex.large, or upgrade the account"
        )
    return Finding("plan", kind, "ok")


def _region(cloud: Cloud) -> Finding:
    if cloud.settings.region:
        return Finding("region", cloud.region, "ok", "written down")
    if named_region(cloud.settings):
        return Finding("region", cloud.region, "ok", "by the environment or the profile")
    return Finding(
        "region", cloud.region, "trouble", f"a default: write `region: {cloud.region}` to instant-env.yml"
    )


def _encryption(cloud: Cloud) -> Finding:
    by_default = cloud.ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]
    detail = "every new volume is encrypted" if by_default else "volumes are encrypted where a launch says so"
    return Finding("encryption", "by default" if by_default else "by request", "ok", detail)


def _roles(cloud: Cloud) -> Iterator[Finding]:
    """The builders' role is of use only where `builder_profile` names its profile."""
    iam: Any = cloud.client("iam")
    for finding in (ensure_role(iam, dry_run=True), ensure_profile(iam, dry_run=True)):
        if finding.state == "missing" and cloud.settings.builder_profile != ROLE_NAME:
            yield Finding(finding.what, finding.name, "ok", "missing; of use only with builder_profile")
        else:
            state = "trouble" if finding.state == "missing" else "ok"
            yield Finding(finding.what, finding.name, state, finding.detail)
    yield ensure_spot_role(iam, make=False)
