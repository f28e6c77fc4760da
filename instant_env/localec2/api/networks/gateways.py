"""Internet gateways: a VPC has at most one, and without one nothing leads to its public addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from instant_env.localec2.api.networks.ranges import check_own, dependent
from instant_env.localec2.records.network_records import GatewayRecord
from instant_env.localec2.state.moto_api import (
    ActionResult,
    EC2ClientError,
    EC2Response,
    EmptyResult,
    new_id,
)

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class InternetGateways(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    if TYPE_CHECKING:

        def _required(self, name: str) -> str: ...

    def create_internet_gateway(self) -> ActionResult:
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        record = GatewayRecord(id=new_id("igw"), tags=tags.get("internet-gateway", {}))
        self.services.state.save(record)
        return ActionResult({"InternetGateway": self.ec2_backend.internet_gateways[record.id]})

    def delete_internet_gateway(self) -> ActionResult:
        record = self.services.state.networks.gateway(self._required("InternetGatewayId"))
        check_own(record)
        if record.vpc_id is not None:
            raise dependent("internetGateway", record.id)
        self.error_on_dryrun()
        self.services.state.forget(record)
        return EmptyResult()

    def describe_internet_gateways(self) -> ActionResult:
        for gateway_id in self._get_param("InternetGatewayIds", []):
            self.services.state.networks.gateway(gateway_id)
        return super().describe_internet_gateways()

    def attach_internet_gateway(self) -> ActionResult:
        networks = self.services.state.networks
        record = networks.gateway(self._required("InternetGatewayId"))
        vpc = networks.vpc(self._required("VpcId"))
        if record.vpc_id is not None:
            raise EC2ClientError(
                "Resource.AlreadyAssociated",
                f"resource {record.id} is already attached to network {record.vpc_id}",
            )
        if networks.gateway_of(vpc.id) is not None:
            raise EC2ClientError(
                "InvalidParameterValue", f"Network {vpc.id} already has an internet gateway attached"
            )
        self.error_on_dryrun()
        self._attach(record, vpc.id)
        return EmptyResult()

    def detach_internet_gateway(self) -> ActionResult:
        networks = self.services.state.networks
        record = networks.gateway(self._required("InternetGatewayId"))
        vpc = networks.vpc(self._required("VpcId"))
        if record.vpc_id != vpc.id:
            raise EC2ClientError(
                "Gateway.NotAttached", f"resource {record.id} is not attached to network {vpc.id}"
            )
        check_own(record)
        if any(nic.public_ip and nic.vpc_id == vpc.id for nic in self.ec2_backend.enis.values()):
            raise EC2ClientError(
                "DependencyViolation",
                f"Network {vpc.id} has some mapped public address(es). Please unmap those public address(es) "
                "before detaching the gateway.",
            )
        self.error_on_dryrun()
        self._attach(record, None)
        return EmptyResult()

    def _attach(self, record: GatewayRecord, vpc_id: str | None) -> None:
        record.vpc_id = vpc_id
        self.services.state.save(record)
        self.services.lifecycle.refresh_network()
