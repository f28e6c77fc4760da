"""Route tables, their routes, and the subnets that they are associated with.

Routes lead to internet gateways; other targets are refused by the list of parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from instant_env.localec2.api.networks.ranges import block, check_own, dependent
from instant_env.localec2.records.network_records import (
    Route,
    RouteTableRecord,
    SubnetRecord,
    VpcRecord,
)
from instant_env.localec2.state.client_tokens import records_of_token, request_digest
from instant_env.localec2.state.moto_api import (
    ActionResult,
    EC2ClientError,
    EC2Response,
    EmptyResult,
    new_id,
)
from instant_env.localec2.state.networks.networks import network_of

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services

_ASSOCIATED = {"State": "associated"}


class RouteTables(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    if TYPE_CHECKING:

        def _required(self, name: str) -> str: ...

    def create_route_table(self) -> ActionResult:
        tags, networks = self._parse_tag_specification(), self.services.state.networks
        vpc = networks.vpc(self._required("VpcId"))
        token, digest = self._get_param("ClientToken"), request_digest(self.querystring)
        self.error_on_dryrun()
        earlier = records_of_token(networks.tables.values(), token, digest)
        record = earlier[0] if earlier else RouteTableRecord(
            id=new_id("rtb"), tags=tags.get("route-table", {}), vpc_id=vpc.id, client_token=token,
            request_digest=digest,
        )  # fmt: skip
        if not earlier:
            self.services.state.save(record)
        return ActionResult({"RouteTable": self.ec2_backend.route_tables[record.id], "ClientToken": token})

    def delete_route_table(self) -> ActionResult:
        networks = self.services.state.networks
        record = networks.table(self._required("RouteTableId"))
        associated = any(subnet.table_id == record.id for subnet in networks.subnets.values())
        if associated or networks.vpc(record.vpc_id).main_table_id == record.id:
            raise dependent("routeTable", record.id)
        check_own(record)
        self.error_on_dryrun()
        self.services.state.forget(record)
        return EmptyResult()

    def describe_route_tables(self) -> ActionResult:
        for table_id in self._get_param("RouteTableIds", []):
            self.services.state.networks.table(table_id)
        return super().describe_route_tables()

    # Routes

    def _destination(self, vpc: VpcRecord) -> str:
        """The request's destination. Raises EC2ClientError for one within the VPC."""
        destination = block(self._required("DestinationCidrBlock"), "destinationCidrBlock")
        if destination.subnet_of(network_of(vpc.cidr)):
            raise EC2ClientError(
                "InvalidParameterValue",
                f"The destination {destination} is within {vpc.cidr}, which the route table has as local: a "
                "route to an internet gateway leads out of the VPC.",
            )
        return str(destination)

    def _target(self, table: RouteTableRecord) -> str:
        """The internet gateway that the request names. Raises EC2ClientError."""
        gateway_id, networks = self._required("GatewayId"), self.services.state.networks
        if not gateway_id.startswith("igw-"):
            raise EC2ClientError(
                "UnsupportedOperation",
                f"localec2 has routes to internet gateways (igw-...) only, not to {gateway_id}.",
            )
        if gateway_id not in networks.gateways:
            raise EC2ClientError("InvalidGatewayID.NotFound", f"The gateway ID '{gateway_id}' does not exist")
        if networks.gateways[gateway_id].vpc_id != table.vpc_id:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"route table {table.id} and network gateway {gateway_id} belong to different networks",
            )
        return gateway_id

    def create_route(self) -> ActionResult:
        networks = self.services.state.networks
        table = networks.table(self._required("RouteTableId"))
        destination = self._destination(networks.vpc(table.vpc_id))
        if any(route.cidr == destination for route in table.routes):
            raise EC2ClientError(
                "RouteAlreadyExists", f"The route identified by {destination} already exists."
            )
        route = Route(cidr=destination, gateway_id=self._target(table))
        self.error_on_dryrun()
        self._set_routes(table, [*table.routes, route])
        return ActionResult({"Return": True})

    def replace_route(self) -> ActionResult:
        networks = self.services.state.networks
        table = networks.table(self._required("RouteTableId"))
        destination = self._destination(networks.vpc(table.vpc_id))
        if all(route.cidr != destination for route in table.routes):
            raise EC2ClientError(
                "InvalidParameterValue",
                f"There is no route defined for '{destination}' in the route table. Use CreateRoute instead.",
            )
        new = Route(cidr=destination, gateway_id=self._target(table))
        self.error_on_dryrun()
        self._set_routes(table, [new if route.cidr == destination else route for route in table.routes])
        return EmptyResult()

    def delete_route(self) -> ActionResult:
        networks = self.services.state.networks
        table = networks.table(self._required("RouteTableId"))
        destination = str(block(self._required("DestinationCidrBlock"), "destinationCidrBlock"))
        if destination == networks.vpc(table.vpc_id).cidr:
            raise EC2ClientError(
                "InvalidParameterValue", f"cannot remove local route {destination} in route table {table.id}"
            )
        kept = [route for route in table.routes if route.cidr != destination]
        if len(kept) == len(table.routes):
            raise EC2ClientError(
                "InvalidRoute.NotFound",
                f"no route with destination-cidr-block {destination} in route table {table.id}",
            )
        self.error_on_dryrun()
        self._set_routes(table, kept)
        return EmptyResult()

    def _set_routes(self, table: RouteTableRecord, routes: list[Route]) -> None:
        table.routes = routes
        self.services.state.save(table)
        self.services.lifecycle.refresh_network()

    # Associations

    def associate_route_table(self) -> ActionResult:
        networks = self.services.state.networks
        table = networks.table(self._required("RouteTableId"))
        subnet = networks.subnet(self._required("SubnetId"))
        self._check_same_vpc(table, subnet)
        if subnet.table_id not in (None, table.id):
            raise EC2ClientError(
                "Resource.AlreadyAssociated",
                f"the specified association for route table {table.id} conflicts with an existing "
                "association",
            )
        self.error_on_dryrun()
        if subnet.table_id is None:
            self._associate(subnet, table.id)
        return ActionResult({"AssociationId": subnet.association_id, "AssociationState": _ASSOCIATED})

    def disassociate_route_table(self) -> ActionResult:
        place = self._place(self._required("AssociationId"))
        if isinstance(place, VpcRecord):
            raise EC2ClientError(
                "InvalidParameterValue",
                f"cannot disassociate the main route table association {place.main_association_id}",
            )
        self.error_on_dryrun()
        self._associate(place, None)
        return EmptyResult()

    def replace_route_table_association(self) -> ActionResult:
        """Of a subnet, or of a VPC: that makes another table its main one."""
        table = self.services.state.networks.table(self._required("RouteTableId"))
        place = self._place(self._required("AssociationId"))
        self._check_same_vpc(table, place)
        self.error_on_dryrun()
        if isinstance(place, SubnetRecord):
            if place.table_id != table.id:
                self._associate(place, table.id)
            association_id = place.association_id
        else:
            if place.main_table_id != table.id:
                place.main_table_id, place.main_association_id = table.id, new_id("rtbassoc")
                self.services.state.save(place)
                self.services.lifecycle.refresh_network()
            association_id = place.main_association_id
        return ActionResult({"NewAssociationId": association_id, "AssociationState": _ASSOCIATED})

    def _place(self, association_id: str) -> SubnetRecord | VpcRecord:
        """Where a route table is associated. Raises EC2ClientError."""
        networks = self.services.state.networks
        for subnet in networks.subnets.values():
            if subnet.association_id == association_id:
                return subnet
        for vpc in networks.vpcs.values():
            if vpc.main_association_id == association_id:
                return vpc
        raise EC2ClientError(
            "InvalidAssociationID.NotFound", f"The association ID '{association_id}' does not exist"
        )

    @staticmethod
    def _check_same_vpc(table: RouteTableRecord, place: SubnetRecord | VpcRecord) -> None:
        vpc_id = place.id if isinstance(place, VpcRecord) else place.vpc_id
        if vpc_id != table.vpc_id:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"Route table {table.id} and network {place.id} belong to different networks",
            )

    def _associate(self, subnet: SubnetRecord, table_id: str | None) -> None:
        subnet.table_id = table_id
        subnet.association_id = new_id("rtbassoc") if table_id is not None else None
        self.services.state.save(subnet)
        self.services.lifecycle.refresh_network()
