"""CIDR blocks in requests, and the resources that are not a client's to delete."""

from __future__ import annotations

import ipaddress

from instant_env.localec2.records.network_records import NetworkRecord
from instant_env.localec2.state.moto_api import EC2ClientError

#: VPC User Guide, "VPC CIDR blocks" and "Subnet CIDR blocks": between /28 and /16.
LARGEST, SMALLEST = 16, 28
#: No interface can have an address of these (RFC 1122, RFC 3927, RFC 5771 and what is beyond).
_UNUSABLE = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
#: Where guests see the clients of this host (cmd/netd/portforward.go).
_CLIENTS = ipaddress.IPv4Network("203.0.113.0/24")


def block(text: str, parameter: str) -> ipaddress.IPv4Network:
    """A CIDR block in its canonical form: host bits are cleared, as EC2 does. Raises EC2ClientError."""
    try:
        if "/" not in text:
            raise ValueError
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Value ({text}) for parameter {parameter} is invalid. This is not a valid CIDR block.",
        ) from None


def sized(text: str, code: str) -> ipaddress.IPv4Network:
    """The CIDR block of a VPC or a subnet. Raises EC2ClientError with this code for one of another size."""
    network = block(text, "cidrBlock")
    unusable = any(network.overlaps(ipaddress.IPv4Network(other)) for other in _UNUSABLE)
    if not LARGEST <= network.prefixlen <= SMALLEST or unusable:
        raise EC2ClientError(code, f"The CIDR '{text}' is invalid.")
    if network.overlaps(_CLIENTS):
        raise EC2ClientError(
            "UnsupportedOperation", f"localec2 has clients of its own in {_CLIENTS}: {text} overlaps it."
        )
    return network


def check_own(record: NetworkRecord) -> None:
    """Refuse to take away what the default VPC comes with: its ids are drawn anew at each start."""
    if record.is_default:
        raise EC2ClientError(
            "UnsupportedOperation",
            f"localec2 keeps its default VPC, and {record.id} belongs to it: it is neither deleted nor "
            "detached.",
        )


def dependent(kind: str, resource_id: str) -> EC2ClientError:
    return EC2ClientError(
        "DependencyViolation", f"The {kind} '{resource_id}' has dependencies and cannot be deleted."
    )
