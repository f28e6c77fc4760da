"""moto's objects of VPCs, made and changed after our records. All want the server's lock held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from instant_env.localec2.records.network_records import (
    GatewayRecord,
    RouteTableRecord,
    SubnetRecord,
    VpcRecord,
)
from instant_env.localec2.state import moto_api as moto

#: Filters that EC2 documents and moto does not know: the class's name -> filter -> value.
MORE_FILTERS: dict[str, dict[str, Callable[[Any], object]]] = {
    "VPC": {"owner-id": lambda vpc: vpc.owner_id},
    "Subnet": {
        "availability-zone-id": lambda subnet: subnet.availability_zone_id,
        "available-ip-address-count": lambda subnet: subnet.available_ip_address_count,
        "map-public-ip-on-launch": lambda subnet: subnet.map_public_ip_on_launch,
        "owner-id": lambda subnet: subnet.owner_id,
        "subnet-arn": lambda subnet: subnet.arn,
    },
    "RouteTable": {
        "owner-id": lambda table: table.owner_id,
        "route.origin": lambda table: [route.origin for route in table.routes],
        "route.state": lambda table: [route.state for route in table.routes],
    },
}


def _with_more_filters(kind: Any) -> None:
    """Make a class of moto's answer filters that it does not know, once."""
    known, more = kind.get_filter_value, MORE_FILTERS[kind.__name__]
    if getattr(known, "more", None) is more:
        return

    def get_filter_value(self: Any, name: str, method: str | None = None) -> Any:
        return more[name](self) if name in more else known(self, name, method)

    get_filter_value.more = more  # type: ignore[attr-defined]
    kind.get_filter_value = get_filter_value


for _kind in (moto.vpcs.VPC, moto.subnets.Subnet, moto.route_tables.RouteTable):
    _with_more_filters(_kind)


class _Route(moto.route_tables.Route):  # type: ignore[misc]  # moto is untyped
    """Knows when it leads nowhere."""

    @property
    def state(self) -> str:
        attached = self.local or (
            self.gateway.vpc is not None and self.gateway.vpc.id == self.route_table.vpc_id
        )
        return "active" if attached else "blackhole"


def show_vpc(ec2: Any, record: VpcRecord) -> None:
    """The VPC with its network ACL; its main route table is another record."""
    vpc = ec2.vpcs.get(record.id)
    if vpc is None:
        vpc = moto.vpcs.VPC(ec2, record.id, record.cidr, is_default=False)
        (association,) = vpc._cidr_block_association_set.values()
        association["association_id"] = record.cidr_association_id
        vpc._cidr_block_association_set = {record.cidr_association_id: association}
        ec2.vpcs[record.id] = vpc
        ec2.network_acls[record.acl_id] = moto.network_acls.NetworkAcl(
            ec2, record.acl_id, record.id, default=True
        )
        ec2.add_default_entries(record.acl_id)
    vpc.enable_dns_hostnames = record.dns_hostnames
    for table in ec2.route_tables.values():
        if table.vpc_id == record.id:
            main = table.id == record.main_table_id
            table.main_association_id = record.main_association_id if main else None


def hide_vpc(ec2: Any, record: VpcRecord) -> None:
    """The VPC with its network ACL and its default security group."""
    ec2.vpcs.pop(record.id, None)
    ec2.network_acls.pop(record.acl_id, None)
    for resource_id in (record.id, record.acl_id, *ec2.groups.pop(record.id, {})):
        ec2.tags.pop(resource_id, None)


def show_subnet(ec2: Any, record: SubnetRecord) -> None:
    """The subnet with its associations."""
    subnet = ec2.subnets[record.zone].get(record.id)
    if subnet is None:
        zone = ec2.get_zone_by_name(record.zone)
        subnet = moto.subnets.Subnet(
            ec2, record.id, record.vpc_id, record.cidr, None, zone, False, record.map_public_ip
        )
        ec2.subnets[record.zone][record.id] = subnet
        acl = next(acl for acl in ec2.network_acls.values() if acl.default and acl.vpc_id == record.vpc_id)
        acl._associations[record.acl_association_id] = moto.network_acls.NetworkAclAssociation(
            ec2, record.acl_association_id, record.id, acl.id
        )
    subnet.map_public_ip_on_launch = record.map_public_ip
    _dissociate(ec2, record.id)
    if record.table_id is not None:
        ec2.route_tables[record.table_id]._associations[record.association_id] = record.id


def hide_subnet(ec2: Any, record: SubnetRecord) -> None:
    _dissociate(ec2, record.id)
    ec2.subnets[record.zone].pop(record.id, None)
    for acl in ec2.network_acls.values():
        acl._associations.pop(record.acl_association_id, None)
    ec2.tags.pop(record.id, None)


def _dissociate(ec2: Any, subnet_id: str) -> None:
    for table in ec2.route_tables.values():
        kept = {key: target for key, target in table._associations.items() if target != subnet_id}
        table._associations = kept


def show_gateway(ec2: Any, record: GatewayRecord) -> None:
    gateway = ec2.internet_gateways.get(record.id)
    if gateway is None:
        gateway = ec2.internet_gateways[record.id] = _gateway(ec2, record.id)
    gateway.vpc = ec2.vpcs[record.vpc_id] if record.vpc_id is not None else None


def hide_gateway(ec2: Any, gateway_id: str) -> None:
    """Routes that lead to it stay, and lead nowhere."""
    gateway = ec2.internet_gateways.pop(gateway_id, None)
    if gateway is not None:
        gateway.vpc = None
    ec2.tags.pop(gateway_id, None)


def _gateway(ec2: Any, gateway_id: str) -> Any:
    with moto.fixed_ids(moto.internet_gateways, random_internet_gateway_id=gateway_id):
        return moto.internet_gateways.InternetGateway(ec2)


def show_table(ec2: Any, record: RouteTableRecord, vpc: VpcRecord) -> None:
    """The table with its routes; which subnets have it is in their records."""
    table = ec2.route_tables.get(record.id)
    if table is None:
        table = moto.route_tables.RouteTable(ec2, record.id, record.vpc_id)
        ec2.route_tables[record.id] = table
    if record.id == vpc.main_table_id:
        table.main_association_id = vpc.main_association_id
    routes = [_Route(table, vpc.cidr, None, local=True)]
    for route in record.routes:
        gateway = ec2.internet_gateways.get(route.gateway_id) or _gateway(ec2, route.gateway_id)
        routes.append(_Route(table, route.cidr, None, gateway=gateway))
    table._routes = {route.id: route for route in routes}


def hide_table(ec2: Any, table_id: str) -> None:
    ec2.route_tables.pop(table_id, None)
    ec2.tags.pop(table_id, None)
