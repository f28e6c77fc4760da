"""Subnets: ranges of a VPC in a zone, which decide whether instances get public addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from instant_env.localec2.api.networks.ranges import check_own, dependent, sized
from instant_env.localec2.records.network_records import SubnetRecord
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


class Subnets(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    if TYPE_CHECKING:

        def _required(self, name: str) -> str: ...

    def create_subnet(self) -> ActionResult:
        tags, networks = self._parse_tag_specification(), self.services.state.networks
        vpc = networks.vpc(self._required("VpcId"))
        network = sized(self._required("CidrBlock"), "InvalidSubnet.Range")
        if not network.subnet_of(network_of(vpc.cidr)):
            raise EC2ClientError("InvalidSubnet.Range", f"The CIDR '{network}' is invalid.")
        for other in networks.subnets.values():
            if other.vpc_id == vpc.id and network.overlaps(network_of(other.cidr)):
                raise EC2ClientError(
                    "InvalidSubnet.Conflict", f"The CIDR '{network}' conflicts with another subnet"
                )
        zone = self._zone()
        self.error_on_dryrun()
        record = SubnetRecord(
            id=new_id("subnet"), tags=tags.get("subnet", {}), vpc_id=vpc.id, cidr=str(network), zone=zone,
            acl_association_id=new_id("aclassoc"),
        )  # fmt: skip
        self.services.state.save(record)
        return ActionResult({"Subnet": self.services.state.subnet(record.id)})

    def _zone(self) -> str:
        """The zone that the request names, or the first one. Raises EC2ClientError."""
        zones: dict[str, str] = {
            zone.name: zone.zone_id for zone in self.ec2_backend.describe_availability_zones()
        }
        name, zone_id = self._get_param("AvailabilityZone"), self._get_param("AvailabilityZoneId")
        for zone in sorted(zones):
            if name in (None, zone) and zone_id in (None, zones[zone]):
                return zone
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Value ({name or zone_id}) for parameter availabilityZone is invalid. Subnets can currently "
            f"only be created in the following availability zones: {', '.join(sorted(zones))}.",
        )

    def delete_subnet(self) -> ActionResult:
        state = self.services.state
        record = state.networks.subnet(self._required("SubnetId"))
        check_own(record)
        if state.in_subnet(record.id):
            raise dependent("subnet", record.id)
        self.error_on_dryrun()
        state.forget(record)
        return EmptyResult()

    def describe_subnets(self) -> ActionResult:
        for subnet_id in self._get_param("SubnetIds", []):
            self.services.state.networks.subnet(subnet_id)
        return super().describe_subnets()

    def modify_subnet_attribute(self) -> ActionResult:
        record = self.services.state.networks.subnet(self._required("SubnetId"))
        public = self._get_param("MapPublicIpOnLaunch.Value")
        self.error_on_dryrun()
        if public is not None:
            record.map_public_ip = bool(public)
            self.services.state.save(record)
        return EmptyResult()
