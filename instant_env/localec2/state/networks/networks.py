"""All VPCs, subnets, internet gateways and route tables, and the look-ups that answer as EC2 does."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from typing import TypeVar

from instant_env.localec2.records.network_records import (
    GatewayRecord,
    NetworkRecord,
    Route,
    RouteTableRecord,
    SubnetRecord,
    VpcRecord,
)
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state.mirror import Mirror
from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.networks import moto_objects

log = logging.getLogger(__name__)

R = TypeVar("R", bound=NetworkRecord)


class Networks:
    """The networks of one server. Methods want the state's lock held."""

    def __init__(self, store: RecordStore, mirror: Mirror) -> None:
        self._store, self._mirror = store, mirror
        self.vpcs: dict[str, VpcRecord] = {}
        self.subnets: dict[str, SubnetRecord] = {}
        self.gateways: dict[str, GatewayRecord] = {}
        self.tables: dict[str, RouteTableRecord] = {}
        self._defaults = {record.id: record for record in _default_network(mirror)}
        for record in self._defaults.values():
            self._keep(record.model_copy(deep=True))

    @property
    def default_vpc_id(self) -> str:
        return next(record.id for record in self.vpcs.values() if record.is_default)

    def load(self) -> None:
        """Show what is on the disk. What belongs to a VPC that is gone was about to be deleted."""
        for vpc in self._store.load_all(VpcRecord):
            self.show(vpc)
        for gateway in self._store.load_all(GatewayRecord):
            if gateway.vpc_id not in self.vpcs:
                gateway.vpc_id = None
            self.show(gateway)
        for table in self._store.load_all(RouteTableRecord):
            self._show_or_drop(table, table.vpc_id)
        for subnet in self._store.load_all(SubnetRecord):
            self._show_or_drop(subnet, subnet.vpc_id)

    def _show_or_drop(self, record: NetworkRecord, vpc_id: str) -> None:
        if vpc_id in self.vpcs:
            self.show(record)
        else:
            log.warning("%s, whose VPC %s does not exist, is removed", record.id, vpc_id)
            self._store.delete(type(record), record.key)

    def _keep(self, record: NetworkRecord) -> None:
        match record:
            case VpcRecord():
                self.vpcs[record.id] = record
            case SubnetRecord():
                self.subnets[record.id] = record
            case GatewayRecord():
                self.gateways[record.id] = record
            case RouteTableRecord():
                self.tables[record.id] = record

    def show(self, record: NetworkRecord) -> None:
        """Make moto show a record."""
        ec2 = self._mirror.ec2
        self._keep(record)
        match record:
            case VpcRecord():
                moto_objects.show_vpc(ec2, record)
            case SubnetRecord():
                moto_objects.show_subnet(ec2, record)
            case GatewayRecord():
                moto_objects.show_gateway(ec2, record)
            case RouteTableRecord():
                moto_objects.show_table(ec2, record, self.vpcs[record.vpc_id])
        if not record.is_default:
            ec2.tags[record.id] = dict(record.tags)

    def forget(self, record: NetworkRecord) -> None:
        """The reverse of show. What the default VPC comes with is as it was at first."""
        if (default := self._defaults.get(record.id)) is not None:
            self.show(default.model_copy(deep=True))
            return
        ec2 = self._mirror.ec2
        match record:
            case VpcRecord():
                self.vpcs.pop(record.id, None)
                moto_objects.hide_vpc(ec2, record)
            case SubnetRecord():
                self.subnets.pop(record.id, None)
                moto_objects.hide_subnet(ec2, record)
            case GatewayRecord():
                self.gateways.pop(record.id, None)
                moto_objects.hide_gateway(ec2, record.id)
            case RouteTableRecord():
                self.tables.pop(record.id, None)
                moto_objects.hide_table(ec2, record.id)

    def show_public_subnets(self, *, public: bool) -> None:
        """Whether the default VPC's subnets give public addresses, where nobody has changed that."""
        for default in self._defaults.values():
            if isinstance(default, SubnetRecord) and default.map_public_ip != public:
                default.map_public_ip = public
                current = self.subnets[default.id]
                if current.map_public_ip != public:
                    self.show(current.model_copy(update={"map_public_ip": public}))

    def own(self, resource_id: str) -> NetworkRecord | None:
        """The record of something that was not there from the beginning."""
        kinds: tuple[dict[str, NetworkRecord], ...] = (self.vpcs, self.subnets, self.gateways, self.tables)  # type: ignore[assignment]  # dict is invariant
        records = (kind[resource_id] for kind in kinds if resource_id in kind)
        return next((record for record in records if not record.is_default), None)

    # Look-ups that answer as EC2 does

    def vpc(self, vpc_id: str) -> VpcRecord:
        return _look_up(self.vpcs, vpc_id, "InvalidVpcID.NotFound", "vpc")

    def subnet(self, subnet_id: str) -> SubnetRecord:
        return _look_up(self.subnets, subnet_id, "InvalidSubnetID.NotFound", "subnet")

    def gateway(self, gateway_id: str) -> GatewayRecord:
        return _look_up(self.gateways, gateway_id, "InvalidInternetGatewayID.NotFound", "internetGateway")

    def table(self, table_id: str) -> RouteTableRecord:
        return _look_up(self.tables, table_id, "InvalidRouteTableID.NotFound", "routeTable")

    # What follows from them

    def gateway_of(self, vpc_id: str) -> GatewayRecord | None:
        """The internet gateway that is attached to a VPC."""
        return next((record for record in self.gateways.values() if record.vpc_id == vpc_id), None)

    def is_public(self, subnet_id: str) -> bool:
        """Whether a subnet has a route to an internet gateway that is attached to its VPC."""
        subnet = self.subnets[subnet_id]
        table = self.tables[subnet.table_id or self.vpcs[subnet.vpc_id].main_table_id]
        gateway = self.gateway_of(subnet.vpc_id)
        return gateway is not None and any(route.gateway_id == gateway.id for route in table.routes)

    def check_groups(self, group_ids: Iterable[str], vpc_id: str) -> None:
        """Refuse security groups that do not exist, or belong to another VPC."""
        for group_id in group_ids:
            group = self._mirror.ec2.get_security_group_from_id(group_id)
            if group is None:
                raise EC2ClientError(
                    "InvalidGroup.NotFound", f"The security group '{group_id}' does not exist"
                )
            if group.vpc_id != vpc_id:
                raise EC2ClientError(
                    "InvalidParameter",
                    f"Security group {group_id} and the interface's subnet belong to different networks: "
                    f"{group.vpc_id} and {vpc_id}.",
                )


def _look_up(records: dict[str, R], resource_id: str, code: str, kind: str) -> R:
    if resource_id not in records:
        raise EC2ClientError(code, f"The {kind} ID '{resource_id}' does not exist")
    return records[resource_id]


def network_of(cidr: str) -> ipaddress.IPv4Network:
    """A range that a record holds."""
    return ipaddress.IPv4Network(cidr)


def _default_network(mirror: Mirror) -> Iterable[NetworkRecord]:
    """Records of what moto has made of the server's seed."""
    ec2 = mirror.ec2
    vpc = ec2.default_vpc
    acl = next(acl for acl in ec2.network_acls.values() if acl.vpc_id == vpc.id)
    (table,) = (table for table in ec2.route_tables.values() if table.vpc_id == vpc.id)
    (association,) = vpc.cidr_block_association_set
    yield VpcRecord(
        id=vpc.id, is_default=True, cidr=vpc.cidr_block, cidr_association_id=association["association_id"],
        acl_id=acl.id, main_table_id=table.id, main_association_id=table.main_association_id,
        dns_hostnames=True,
    )  # fmt: skip
    for gateway in ec2.internet_gateways.values():
        yield GatewayRecord(id=gateway.id, is_default=True, vpc_id=vpc.id)
    yield RouteTableRecord(
        id=table.id, is_default=True, vpc_id=vpc.id,
        routes=[
            Route(cidr=route.destination_cidr_block, gateway_id=route.gateway.id)
            for route in table.routes
            if not route.local
        ],
    )  # fmt: skip
    acl_associations = {item.subnet_id: item.id for item in acl.associations}
    for subnet in ec2.describe_subnets():
        yield SubnetRecord(
            id=subnet.id, is_default=True, vpc_id=vpc.id, cidr=subnet.cidr_block,
            zone=subnet.availability_zone, acl_association_id=acl_associations[subnet.id],
            map_public_ip=subnet.map_public_ip_on_launch,
        )  # fmt: skip
