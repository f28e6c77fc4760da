"""VPCs and what they are made of, as records.

Associations lie where there is one of a kind: the main route table in its VPC, another one in its subnet. So
each change is one record, and no end of the server leaves half of it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from instant_env.localec2.records.records import ResourceRecord


class NetworkRecord(ResourceRecord):
    """What all of them have in common.

    The default VPC and what it comes with are drawn from the server's seed (``is_default``). They are stored
    when they are changed, and their tags are apart (``TagsRecord``).
    """

    is_default: bool = False


class VpcRecord(NetworkRecord):
    """A VPC. Its default security group is a record of its own."""

    kind: ClassVar[str] = "vpc"
    cidr: str
    cidr_association_id: str
    acl_id: str  # its network ACL, which admits everything
    main_table_id: str
    main_association_id: str
    dns_hostnames: bool = False


class SubnetRecord(NetworkRecord):
    """A subnet. Without a route table of its own it has the VPC's main one."""

    kind: ClassVar[str] = "subnet"
    vpc_id: str
    cidr: str
    zone: str
    acl_association_id: str
    map_public_ip: bool = False
    table_id: str | None = None
    association_id: str | None = None


class GatewayRecord(NetworkRecord):
    """An internet gateway."""

    kind: ClassVar[str] = "internet-gateway"
    vpc_id: str | None = None


class Route(BaseModel):
    """A route to an internet gateway, which may be gone since."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cidr: str
    gateway_id: str


class RouteTableRecord(NetworkRecord):
    """A route table; the route to the VPC itself is not in it."""

    kind: ClassVar[str] = "route-table"
    vpc_id: str
    routes: list[Route] = Field(default_factory=list)
    client_token: str | None = None
    request_digest: str = ""
