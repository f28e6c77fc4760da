"""VPCs: made with a main route table and a default security group, and deleted with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from instant_env.localec2.api.networks.ranges import check_own, dependent, sized
from instant_env.localec2.records.network_records import RouteTableRecord, VpcRecord
from instant_env.localec2.records.records import RuleRecord, SecurityGroupRecord
from instant_env.localec2.state.moto_api import (
    ACCOUNT_ID,
    ActionResult,
    EC2ClientError,
    EC2Response,
    EmptyResult,
    new_id,
)

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class Vpcs(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    if TYPE_CHECKING:

        def _required(self, name: str) -> str: ...

    def create_vpc(self) -> ActionResult:
        tags = self._parse_tag_specification()
        network = sized(self._required("CidrBlock"), "InvalidVpc.Range")
        self.error_on_dryrun()
        state = self.services.state
        vpc = VpcRecord(
            id=new_id("vpc"), tags=tags.get("vpc", {}), cidr=str(network),
            cidr_association_id=new_id("vpc-cidr-assoc"), acl_id=new_id("acl"),
            main_table_id=new_id("rtb"), main_association_id=new_id("rtbassoc"),
        )  # fmt: skip
        state.save(vpc)
        state.save(RouteTableRecord(id=vpc.main_table_id, vpc_id=vpc.id))
        state.save(_default_group(vpc.id))
        return ActionResult({"Vpc": self.ec2_backend.vpcs[vpc.id]})

    def delete_vpc(self) -> ActionResult:
        state, networks = self.services.state, self.services.state.networks
        vpc = networks.vpc(self._required("VpcId"))
        check_own(vpc)
        groups = self.ec2_backend.groups[vpc.id].values()
        if (
            any(record.vpc_id == vpc.id for record in networks.subnets.values())
            or networks.gateway_of(vpc.id) is not None
            or any(
                record.vpc_id == vpc.id and record.id != vpc.main_table_id
                for record in networks.tables.values()
            )
            or any(not group.is_default for group in groups)
        ):
            raise dependent("vpc", vpc.id)
        self.error_on_dryrun()
        # The VPC goes first: what is without one is removed at the next start.
        group_ids = [group.id for group in groups]
        state.forget(vpc)
        state.forget(networks.tables[vpc.main_table_id])
        for group_id in group_ids:
            self.services.forget_group(group_id)
        self.services.lifecycle.refresh_network()
        return EmptyResult()

    def describe_vpcs(self) -> ActionResult:
        for vpc_id in self._get_param("VpcIds", []):
            self.services.state.networks.vpc(vpc_id)
        return super().describe_vpcs()

    def describe_vpc_attribute(self) -> ActionResult:
        self.services.state.networks.vpc(self._required("VpcId"))
        return super().describe_vpc_attribute()

    def modify_vpc_attribute(self) -> ActionResult:
        """`EnableDnsSupport` is true and stays so: the allow-list has seen to it."""
        vpc = self.services.state.networks.vpc(self._required("VpcId"))
        values = {
            name: self._get_param(f"{name}.Value")
            for name in ("EnableDnsSupport", "EnableDnsHostnames", "EnableNetworkAddressUsageMetrics")
        }
        given = [name for name, value in values.items() if value is not None]
        if len(given) != 1:
            raise EC2ClientError(
                "InvalidParameterCombination" if given else "MissingParameter",
                f"The request must contain one attribute to change, not {len(given)}",
            )
        self.error_on_dryrun()
        if given == ["EnableDnsHostnames"]:
            vpc.dns_hostnames = bool(values["EnableDnsHostnames"])
            self.services.state.save(vpc)
        return EmptyResult()


def _default_group(vpc_id: str) -> SecurityGroupRecord:
    """VPC User Guide, "Default security groups": all from its members, and all to everywhere."""
    group_id = new_id("sg")
    return SecurityGroupRecord(
        id=group_id, vpc_id=vpc_id, name="default", description="default VPC security group",
        is_default=True,
        rules=[
            RuleRecord(
                id=new_id("sgr"), egress=False, ip_protocol="-1", from_port=None, to_port=None,
                source_group={"GroupId": group_id, "UserId": ACCOUNT_ID},
            ),
            RuleRecord(
                id=new_id("sgr"), egress=True, ip_protocol="-1", from_port=None, to_port=None,
                ip_range={"CidrIp": "0.0.0.0/0"},
            ),
        ],
    )  # fmt: skip
