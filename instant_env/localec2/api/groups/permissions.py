"""The permissions of a request, checked: one rule for each range and each group that they name."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from instant_env.localec2.state.group_rules import GroupRule
from instant_env.localec2.state.moto_api import ACCOUNT_ID, EC2ClientError

#: API_IpPermission, IpProtocol: names, and the numbers that are shown as names.
_NAMES = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6"}
_PORTS = ("tcp", "udp")
_TYPES = ("icmp", "icmpv6")


@dataclass(frozen=True)
class Permission:
    """What one rule admits, whatever its id, its tags and its description are."""

    protocol: str
    from_port: int | None
    to_port: int | None
    cidr: str = ""
    cidr_v6: str = ""
    group_id: str = ""

    @staticmethod
    def of(rule: Any) -> Permission:
        """Of a rule of moto's."""
        return Permission(
            rule.ip_protocol, rule.from_port, rule.to_port, rule.ip_range.get("CidrIp", ""),
            rule.ip_range.get("CidrIpv6", ""), rule.source_group.get("GroupId", ""),
        )  # fmt: skip

    def rule(self, backend: Any, group_id: str, described: str | None, egress: bool, tags: Any = None) -> Any:
        """As a new rule of moto's."""
        ip_range = {"CidrIp": self.cidr, "CidrIpv6": self.cidr_v6, "Description": described}
        source = {"GroupId": self.group_id, "UserId": ACCOUNT_ID, "Description": described}
        return GroupRule(
            backend, group_id, self.protocol, self.from_port, self.to_port,
            ip_range=None if self.group_id else {key: value for key, value in ip_range.items() if value},
            source_group={key: value for key, value in source.items() if value} if self.group_id else None,
            egress=egress, tags=tags,
        )  # fmt: skip

    def as_structure(self) -> dict[str, Any]:
        """As EC2's IpPermission."""
        structure: dict[str, Any] = {
            "IpProtocol": self.protocol,
            "FromPort": self.from_port,
            "ToPort": self.to_port,
        }
        if self.cidr:
            structure["IpRanges"] = [{"CidrIp": self.cidr}]
        elif self.cidr_v6:
            structure["Ipv6Ranges"] = [{"CidrIpv6": self.cidr_v6}]
        else:
            structure["UserIdGroupPairs"] = [{"GroupId": self.group_id, "UserId": ACCOUNT_ID}]
        return structure


def read(backend: Any, params: Mapping[str, Any], vpc_id: str) -> list[tuple[Permission, str | None]]:
    """The permissions of a request's IpPermissions, or of its own fields, each with its description.

    Raises EC2ClientError.
    """
    structures = params.get("IpPermissions")
    if structures is None:
        ranges = [{"CidrIp": params["CidrIp"]}] if params.get("CidrIp") else []
        structures = [{**params, "IpRanges": ranges}]
    entries = [entry for item in structures for entry in _expanded(backend, item, vpc_id)]
    if not entries:
        raise EC2ClientError("MissingParameter", "The request must contain an IP range or a source group")
    if len({permission for permission, _ in entries}) < len(entries):
        raise EC2ClientError("InvalidParameterValue", "The same permission must not appear multiple times")
    return entries


def _expanded(backend: Any, item: Mapping[str, Any], vpc_id: str) -> Iterator[tuple[Permission, str | None]]:
    base = base_of(item.get("IpProtocol"), item.get("FromPort"), item.get("ToPort"))
    for ip_range in item.get("IpRanges") or []:
        yield replace(base, cidr=cidr(ip_range.get("CidrIp"), 4)), ip_range.get("Description")
    for ip_range in item.get("Ipv6Ranges") or []:
        yield replace(base, cidr_v6=cidr(ip_range.get("CidrIpv6"), 6)), ip_range.get("Description")
    for pair in item.get("UserIdGroupPairs") or []:
        group_id = source_group(backend, pair, vpc_id)
        yield replace(base, group_id=group_id), pair.get("Description")


def source_group(backend: Any, pair: Mapping[str, Any], vpc_id: str) -> str:
    """The id of a group that a permission names. Raises EC2ClientError."""
    name, group_id = pair.get("GroupName"), pair.get("GroupId")
    group = (
        backend.get_security_group_from_id(group_id)
        if group_id
        else backend.get_security_group_from_name(name, vpc_id)
    )
    if group is None or pair.get("UserId") not in (None, ACCOUNT_ID):
        raise EC2ClientError(
            "InvalidGroup.NotFound", f"The security group '{group_id or name}' does not exist"
        )
    if group.vpc_id != vpc_id:
        raise EC2ClientError(
            "InvalidGroup.NotFound",
            f"You have specified two resources that belong to different networks: {group.id} is in "
            f"{group.vpc_id}, and not in {vpc_id}.",
        )
    return str(group.id)


def base_of(protocol: str | None, from_port: int | None, to_port: int | None) -> Permission:
    """Protocol and ports, checked. Raises EC2ClientError."""
    if not protocol:
        raise _invalid(
            "Invalid value 'null' for protocol. VPC security group rules must specify protocols explicitly."
        )
    lowered = protocol.lower()
    name = _NAMES.get(lowered, "-1" if lowered == "all" else lowered)
    if name in _PORTS:
        return Permission(name, *_ports(from_port, to_port))
    if name in _TYPES:
        first, last = (-1 if value is None else value for value in (from_port, to_port))
        if not (-1 <= first <= 255 and -1 <= last <= 255):
            raise _invalid(f"ICMP type or code ({first}, {last}) out of range: both are -1 to 255")
        return Permission(name, first, last)
    if name != "-1" and not (name.isascii() and name.isdigit() and int(name) <= 255):
        raise _invalid(f"Invalid value '{protocol}' for IP protocol. Unknown protocol.")
    return Permission(name, None, None)  # EC2 admits all ports then, whatever the request says


def _ports(from_port: int | None, to_port: int | None) -> tuple[int, int]:
    if from_port is None or to_port is None:
        raise _invalid("Invalid value for portRange. Must specify both from and to ports with TCP/UDP.")
    if not (0 <= from_port <= 65535 and 0 <= to_port <= 65535):
        raise _invalid(f"TCP/UDP port ({from_port}, {to_port}) out of range: both are 0 to 65535")
    if from_port > to_port:
        raise _invalid(f"Invalid TCP/UDP port range ({from_port}:{to_port})")
    return from_port, to_port


def cidr(text: str | None, version: int) -> str:
    """A range in EC2's form, with its host bits cleared. Raises EC2ClientError."""
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    try:
        if "/" not in (text or ""):
            raise ValueError
        return str(kind(text or "", strict=False))
    except ValueError:
        raise _invalid(f"CIDR block {text} is malformed") from None


def _invalid(message: str) -> EC2ClientError:
    return EC2ClientError("InvalidParameterValue", message)
