"""The account's security group: it admits SSH from where `setup` was run last."""

from __future__ import annotations

from typing import Any

from instant_env.cloud.account.findings import Finding
from instant_env.cloud.account.roles import TAGS
from instant_env.cloud.network import admit, admits, caller_cidr, make_group, ssh_permission, wait_for_group
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PROJECT_FILTER

GROUP_NAME = "instant-env"


def our_groups(cloud: Cloud) -> list[Any]:
    """The groups of that name that carry our tag, one per VPC at most."""
    name: Any = {"Name": "group-name", "Values": [GROUP_NAME]}
    return list(cloud.ec2.describe_security_groups(Filters=[*PROJECT_FILTER, name])["SecurityGroups"])


def ensure_group(cloud: Cloud, vpc_id: str, dry_run: bool) -> Finding:
    """A group that admits SSH from the caller's present address only. Raises CloudError."""
    cidr = caller_cidr(cloud)
    ours = [group for group in our_groups(cloud) if group["VpcId"] == vpc_id]
    if ours:
        group_id, rules = ours[0]["GroupId"], ours[0]["IpPermissions"]
        ranges = [entry["CidrIp"] for one in rules for entry in one["IpRanges"]]
        if ranges == [cidr] and admits(ours[0], cidr):
            return Finding("security group", group_id, "there", f"SSH from {cidr}")
        if dry_run:
            return Finding("security group", group_id, "there", f"would admit {cidr} in place of {ranges}")
        if rules:
            cloud.ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=rules)
    elif dry_run:
        return Finding("security group", GROUP_NAME, "missing", f"would admit SSH from {cidr}")
    else:
        group_id = make_group(
            cloud,
            GROUP_NAME,
            vpc_id=vpc_id,
            description="instant-env: SSH from where it was set up",
            tags=TAGS,
        )
        wait_for_group(cloud, group_id)
    admit(cloud, group_id, ssh_permission(cidr))
    return Finding("security group", group_id, "made", f"SSH from {cidr}")


def group_finding(cloud: Cloud) -> Finding:
    """Whether the configured group admits the caller as of now. Without one every run makes its own."""
    configured = cloud.settings.security_group
    if not configured:
        return Finding("security group", "-", "ok", "none is configured: each run makes one of its own")
    cidr = caller_cidr(cloud)
    groups = cloud.ec2.describe_security_groups(GroupIds=[configured])["SecurityGroups"]
    if groups and admits(groups[0], cidr):
        return Finding("security group", configured, "ok", f"SSH from {cidr}")
    return Finding(
        "security group", configured, "trouble", f"does not admit {cidr}: invoke setup --cloud aws"
    )
