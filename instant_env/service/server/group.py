"""The one security group of a service's machines: SSH from configured networks only."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from botocore.exceptions import ClientError

from instant_env.cloud.network import admit, make_group, own_cidr, ssh_permission, vpc_of, wait_for_group
from instant_env.cloud.session import Cloud, cloud_error
from instant_env.cloud.tags import Role, project_filter, tag_list
from instant_env.errors import UsageError

#: A network with fewer fixed bits than these holds strangers (a provider's whole range, or everybody).
_WIDE_V4, _WIDE_V6 = 16, 32


def check_cidrs(cidrs: Sequence[str], *, open_wide: bool) -> None:
    """Raises UsageError for what is no network, and for a wide one unless ``open_wide``."""
    for cidr in cidrs:
        try:
            network = ipaddress.ip_network(cidr)
        except ValueError as error:
            raise UsageError(
                f"service: ssh_cidrs: {cidr} is not a network: {error}", hint="for example: 203.0.113.7/32"
            ) from error
        wide = network.prefixlen < (_WIDE_V4 if network.version == 4 else _WIDE_V6)
        if wide and not open_wide:
            raise UsageError(
                f"service: ssh_cidrs: {cidr} lets {network.num_addresses:,} addresses try to log in",
                hint="name a smaller network, or start with --open-ssh",
            )


def ensure_group(cloud: Cloud, service_id: str, cidrs: Sequence[str] | None) -> str:
    """The group's id; it is made when it is not there, and its rules are made to be these networks.

    ``cidrs`` None is this host's own address, within the VPC where machines are reached there. Raises
    CloudError.
    """
    wanted = set(cidrs) if cidrs is not None else {own_cidr(cloud)}
    try:
        group_id = _find(cloud, service_id) or _make(cloud, service_id)
        _set_rules(cloud, group_id, wanted)
    except ClientError as error:
        raise cloud_error(error, "preparing the service's security group") from error
    return group_id


def _find(cloud: Cloud, service_id: str) -> str:
    groups = cloud.ec2.describe_security_groups(Filters=project_filter(service=service_id))["SecurityGroups"]
    return groups[0]["GroupId"] if groups else ""


def _make(cloud: Cloud, service_id: str) -> str:
    """Of the pool's role: without machines it goes with the next `clean` once the service has ended, and a
    leased machine holds it."""
    name = f"instant-env-service-{service_id}"
    group_id = make_group(
        cloud,
        name,
        vpc_id=vpc_of(cloud),
        description="instant-env service: SSH to leased machines",
        tags=tag_list(service_id, Role.POOL, name=name, extra={"service": service_id}),
    )
    wait_for_group(cloud, group_id)
    return group_id


def _set_rules(cloud: Cloud, group_id: str, wanted: set[str]) -> None:
    (group,) = cloud.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    present: set[str] = set()
    for permission in group.get("IpPermissions", []):
        present |= {rule["CidrIp"] for rule in permission.get("IpRanges", []) if "CidrIp" in rule}
        present |= {rule["CidrIpv6"] for rule in permission.get("Ipv6Ranges", []) if "CidrIpv6" in rule}
    for cidr in sorted(present - wanted):
        cloud.ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[ssh_permission(cidr)])
    for cidr in sorted(wanted - present):
        admit(cloud, group_id, ssh_permission(cidr))
