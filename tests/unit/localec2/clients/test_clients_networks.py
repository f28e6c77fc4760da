"""Networks of one's own: VPCs, subnets, internet gateways and route tables, and what is launched in them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import launch, refused, state_of
from support.patience import until

from instant_env.localec2.network import metadata
from instant_env.localec2.records.network_records import RouteTableRecord, SubnetRecord, VpcRecord
from instant_env.localec2.records.records import SecurityGroupRecord

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


class Network:
    """A VPC with a subnet, a gateway and a table that leads to it, as Terraform's modules make them."""

    def __init__(self, served: Served, cidr: str = "10.0.0.0/16", subnet: str = "10.0.1.0/24") -> None:
        self.served, ec2 = served, served.ec2
        tags: dict[str, Any] = {
            kind: [{"ResourceType": kind, "Tags": [{"Key": "a", "Value": kind}]}] for kind in KINDS
        }
        self.vpc = ec2.create_vpc(CidrBlock=cidr, TagSpecifications=tags["vpc"])["Vpc"]["VpcId"]
        self.subnet = ec2.create_subnet(
            VpcId=self.vpc, CidrBlock=subnet, AvailabilityZone="us-east-1b", TagSpecifications=tags["subnet"]
        )["Subnet"]["SubnetId"]
        self.gateway = ec2.create_internet_gateway(TagSpecifications=tags["internet-gateway"])[
            "InternetGateway"
        ]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=self.gateway, VpcId=self.vpc)
        self.table = ec2.create_route_table(VpcId=self.vpc, TagSpecifications=tags["route-table"])[
            "RouteTable"
        ]["RouteTableId"]
        ec2.create_route(RouteTableId=self.table, DestinationCidrBlock="0.0.0.0/0", GatewayId=self.gateway)
        self.association = ec2.associate_route_table(RouteTableId=self.table, SubnetId=self.subnet)[
            "AssociationId"
        ]

    def delete(self) -> None:
        ec2 = self.served.ec2
        ec2.disassociate_route_table(AssociationId=self.association)
        ec2.delete_route_table(RouteTableId=self.table)
        ec2.delete_subnet(SubnetId=self.subnet)
        ec2.detach_internet_gateway(InternetGatewayId=self.gateway, VpcId=self.vpc)
        ec2.delete_internet_gateway(InternetGatewayId=self.gateway)
        ec2.delete_vpc(VpcId=self.vpc)


KINDS = ("vpc", "subnet", "internet-gateway", "route-table")


def seen(served: Served) -> dict[str, Any]:
    """All networks, as they are described."""
    ec2: Any = served.ec2
    found = {
        "vpcs": ec2.describe_vpcs()["Vpcs"], "subnets": ec2.describe_subnets()["Subnets"],
        "gateways": ec2.describe_internet_gateways()["InternetGateways"],
        "tables": ec2.describe_route_tables()["RouteTables"],
        "acls": ec2.describe_network_acls()["NetworkAcls"],
        "groups": ec2.describe_security_groups()["SecurityGroups"], "tags": ec2.describe_tags()["Tags"],
    }  # fmt: skip
    return {kind: sorted(items, key=str) for kind, items in found.items()}


def of_vpc(vpc_id: str, *more: tuple[str, str]) -> Any:
    return [{"Name": name, "Values": [value]} for name, value in (("vpc-id", vpc_id), *more)]


def plugged(served: Served, instance_id: str) -> Any:
    """The first interface of an instance, as netd knows it."""
    return served.network.interfaces[served.state.instances[instance_id].interface_id]


def test_a_vpc_has_what_it_comes_with_and_leaves_nothing(served: Served) -> None:
    before, ec2 = seen(served), served.ec2
    vpc = ec2.create_vpc(CidrBlock="10.1.2.3/16", InstanceTenancy="default")["Vpc"]
    vpc_id = vpc["VpcId"]
    assert (vpc["CidrBlock"], vpc["IsDefault"], vpc["State"]) == ("10.1.0.0/16", False, "available")
    (table,) = ec2.describe_route_tables(Filters=of_vpc(vpc_id, ("association.main", "true")))["RouteTables"]
    assert [(route["DestinationCidrBlock"], route["GatewayId"]) for route in table["Routes"]] == [
        ("10.1.0.0/16", "local")
    ]
    (group,) = ec2.describe_security_groups(Filters=of_vpc(vpc_id, ("group-name", "default")))[
        "SecurityGroups"
    ]
    assert group["IpPermissions"][0]["UserIdGroupPairs"][0]["GroupId"] == group["GroupId"]
    assert group["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    (acl,) = ec2.describe_network_acls(Filters=of_vpc(vpc_id, ("default", "true")))["NetworkAcls"]
    assert len(acl["Entries"]) == 4
    for name, value in (("EnableDnsSupport", True), ("EnableDnsHostnames", True)):
        ec2.modify_vpc_attribute(VpcId=vpc_id, **{name: {"Value": value}})  # type: ignore[arg-type]
    ec2.create_tags(Resources=[vpc_id, table["RouteTableId"]], Tags=[{"Key": "Name", "Value": "mine"}])
    shown = seen(served)
    served.restart()
    ec2 = served.ec2
    assert seen(served) == shown
    hostnames = ec2.describe_vpc_attribute(VpcId=vpc_id, Attribute="enableDnsHostnames")
    assert hostnames["EnableDnsHostnames"]["Value"]
    with refused("UnsupportedOperation"):
        ec2.modify_vpc_attribute(VpcId=vpc_id, EnableDnsSupport={"Value": False})
    with refused("CannotDelete"):
        ec2.delete_security_group(GroupId=group["GroupId"])
    with refused("DependencyViolation"):
        ec2.delete_route_table(RouteTableId=table["RouteTableId"])
    ec2.delete_vpc(VpcId=vpc_id)
    assert seen(served) == before
    served.restart()
    assert seen(served) == before
    for kind in (VpcRecord, RouteTableRecord, SecurityGroupRecord):
        assert served.state.store.load_all(kind) == []


@pytest.mark.parametrize(
    ("cidr", "code"),
    [
        ("10.0.0.0/15", "InvalidVpc.Range"), ("10.0.0.0/29", "InvalidVpc.Range"),
        ("127.3.0.0/16", "InvalidVpc.Range"), ("169.254.0.0/16", "InvalidVpc.Range"),
        ("10.0.0.0", "InvalidParameterValue"), ("10.0.0/16", "InvalidParameterValue"),
        ("fd00::/16", "InvalidParameterValue"), ("203.0.113.0/28", "UnsupportedOperation"),
    ],
)  # fmt: skip
def test_ranges_that_no_vpc_has(served: Served, cidr: str, code: str) -> None:
    with refused(code):
        served.ec2.create_vpc(CidrBlock=cidr)
    assert len(served.ec2.describe_vpcs()["Vpcs"]) == 1


def test_a_subnet_lies_in_its_vpc_and_overlaps_no_other(served: Served) -> None:
    ec2: Any = served.ec2
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/20")["Vpc"]["VpcId"]
    first = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.7/24", AvailabilityZone="us-east-1c")["Subnet"]
    assert (first["CidrBlock"], first["AvailabilityZone"]) == ("10.0.1.0/24", "us-east-1c")
    assert (first["MapPublicIpOnLaunch"], first["DefaultForAz"]) == (False, False)
    assert first["AvailableIpAddressCount"] == 251
    for cidr, code in (
        ("10.0.1.128/25", "InvalidSubnet.Conflict"), ("10.0.0.0/20", "InvalidSubnet.Conflict"),
        ("10.0.16.0/24", "InvalidSubnet.Range"), ("10.0.0.0/19", "InvalidSubnet.Range"),
        ("10.0.2.0/29", "InvalidSubnet.Range"), ("10.0.2.0/33", "InvalidParameterValue"),
    ):  # fmt: skip
        with refused(code):
            ec2.create_subnet(VpcId=vpc, CidrBlock=cidr)
    with refused("InvalidParameterValue"):
        ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.2.0/24", AvailabilityZone="us-east-1z")
    with refused("InvalidVpcID.NotFound"):
        ec2.create_subnet(VpcId="vpc-0123456789abcdef0", CidrBlock="10.0.2.0/24")
    by_id = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.2.0/28", AvailabilityZoneId="use1-az4")["Subnet"]
    assert by_id["AvailabilityZoneId"] == "use1-az4"
    twin = ec2.create_vpc(CidrBlock="10.0.0.0/20")["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=twin, CidrBlock="10.0.1.0/24")
    ec2.modify_subnet_attribute(SubnetId=first["SubnetId"], MapPublicIpOnLaunch={"Value": True})
    ec2.modify_subnet_attribute(SubnetId=first["SubnetId"], AssignIpv6AddressOnCreation={"Value": False})
    served.restart()
    (shown,) = served.ec2.describe_subnets(SubnetIds=[first["SubnetId"]])["Subnets"]
    assert shown["MapPublicIpOnLaunch"]
    with refused("DependencyViolation"):
        served.ec2.delete_vpc(VpcId=vpc)


def test_a_whole_network_is_the_same_after_a_restart(served: Served) -> None:
    before = seen(served)
    network = Network(served)
    shown = seen(served)
    assert {tag["ResourceType"]: tag["Value"] for tag in shown["tags"]} == {kind: kind for kind in KINDS}
    (table,) = served.ec2.describe_route_tables(RouteTableIds=[network.table])["RouteTables"]
    assert table["Routes"][1]["State"] == "active"
    assert table["Associations"][0]["SubnetId"] == network.subnet
    served.restart()
    assert seen(served) == shown
    network.delete()
    assert seen(served) == before
    served.restart()
    assert seen(served) == before


def test_filters_of_networks(served: Served) -> None:
    network, ec2 = Network(served), served.ec2

    def subnets(**filters: str) -> list[str]:
        given: Any = [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()]
        return [item["SubnetId"] for item in ec2.describe_subnets(Filters=given)["Subnets"]]

    assert subnets(map_public_ip_on_launch="false") == [network.subnet]
    assert subnets(available_ip_address_count="251", owner_id="123456789012") == [network.subnet]
    (zone,) = ec2.describe_availability_zones(ZoneNames=["us-east-1b"])["AvailabilityZones"]
    assert subnets(availability_zone_id=zone["ZoneId"], vpc_id=network.vpc) == [network.subnet]
    assert len(subnets(subnet_arn="*:subnet/subnet-*")) == 7
    for name, value in (("route.state", "active"), ("route.gateway-id", network.gateway)):
        of_route: Any = [{"Name": name, "Values": [value]}, {"Name": "tag:a", "Values": ["*"]}]
        (table,) = ec2.describe_route_tables(Filters=of_route)["RouteTables"]
        assert table["RouteTableId"] == network.table
    with refused("UnsupportedOperation"):
        subnets(outpost_arn="x")


def test_what_depends_on_something_keeps_it(served: Served) -> None:
    network, ec2 = Network(served), served.ec2
    with refused("DependencyViolation"):
        ec2.delete_vpc(VpcId=network.vpc)
    with refused("DependencyViolation"):
        ec2.delete_route_table(RouteTableId=network.table)
    with refused("DependencyViolation"):
        ec2.delete_internet_gateway(InternetGatewayId=network.gateway)
    card = ec2.create_network_interface(SubnetId=network.subnet)["NetworkInterface"]["NetworkInterfaceId"]
    with refused("DependencyViolation"):
        ec2.delete_subnet(SubnetId=network.subnet)
    ec2.delete_network_interface(NetworkInterfaceId=card)
    group = ec2.create_security_group(VpcId=network.vpc, GroupName="web", Description="web")["GroupId"]
    instance = launch(served, SubnetId=network.subnet)
    with refused("DependencyViolation"):
        ec2.delete_subnet(SubnetId=network.subnet)
    ec2.terminate_instances(InstanceIds=[instance])
    until(lambda: state_of(served, instance) == "terminated")
    ec2.disassociate_route_table(AssociationId=network.association)
    ec2.delete_route_table(RouteTableId=network.table)
    ec2.delete_subnet(SubnetId=network.subnet)
    ec2.detach_internet_gateway(InternetGatewayId=network.gateway, VpcId=network.vpc)
    with refused("DependencyViolation"):
        ec2.delete_vpc(VpcId=network.vpc)
    ec2.delete_security_group(GroupId=group)
    ec2.delete_vpc(VpcId=network.vpc)
    assert state_of(served, instance) == "terminated"
    served.restart()
    assert state_of(served, instance) == "terminated", "it is shown without its subnet"


def test_what_is_not_there(served: Served) -> None:
    ec2: Any = served.ec2
    network = Network(served)
    lost = "0123456789abcdef0"
    calls: list[tuple[str, Callable[[], object]]] = [
        ("InvalidVpcID.NotFound", lambda: ec2.describe_vpcs(VpcIds=[f"vpc-{lost}"])),
        ("InvalidVpcID.NotFound", lambda: ec2.delete_vpc(VpcId=f"vpc-{lost}")),
        ("InvalidSubnetID.NotFound", lambda: ec2.describe_subnets(SubnetIds=[f"subnet-{lost}"])),
        ("InvalidSubnetID.NotFound", lambda: ec2.delete_subnet(SubnetId=f"subnet-{lost}")),
        (
            "InvalidInternetGatewayID.NotFound",
            lambda: ec2.describe_internet_gateways(InternetGatewayIds=[f"igw-{lost}"]),
        ),
        (
            "InvalidInternetGatewayID.NotFound",
            lambda: ec2.delete_internet_gateway(InternetGatewayId=f"igw-{lost}"),
        ),
        ("InvalidRouteTableID.NotFound", lambda: ec2.describe_route_tables(RouteTableIds=[f"rtb-{lost}"])),
        ("InvalidRouteTableID.NotFound", lambda: ec2.delete_route_table(RouteTableId=f"rtb-{lost}")),
        (
            "InvalidGatewayID.NotFound",
            lambda: ec2.create_route(
                RouteTableId=network.table, DestinationCidrBlock="9.0.0.0/8", GatewayId=f"igw-{lost}"
            ),
        ),
        (
            "InvalidAssociationID.NotFound",
            lambda: ec2.disassociate_route_table(AssociationId=f"rtbassoc-{lost}"),
        ),
        (
            "Gateway.NotAttached",
            lambda: ec2.detach_internet_gateway(
                InternetGatewayId=network.gateway, VpcId=served.state.networks.default_vpc_id
            ),
        ),
    ]
    for code, call in calls:
        with refused(code) as error:
            call()
        assert lost in str(error.value) or code == "Gateway.NotAttached"


def test_gateways_are_attached_to_one_vpc(served: Served) -> None:
    network, ec2 = Network(served), served.ec2
    other = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    second = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    with refused("Resource.AlreadyAssociated"):
        ec2.attach_internet_gateway(InternetGatewayId=network.gateway, VpcId=other)
    with refused("InvalidParameterValue"):
        ec2.attach_internet_gateway(InternetGatewayId=second, VpcId=network.vpc)
    with refused("InvalidParameterValue"):
        ec2.create_route(RouteTableId=network.table, DestinationCidrBlock="9.0.0.0/8", GatewayId=second)
    ec2.detach_internet_gateway(InternetGatewayId=network.gateway, VpcId=network.vpc)

    def state() -> str:
        (table,) = served.ec2.describe_route_tables(RouteTableIds=[network.table])["RouteTables"]
        return table["Routes"][1]["State"]

    assert state() == "blackhole"
    ec2.delete_internet_gateway(InternetGatewayId=network.gateway)
    assert state() == "blackhole"
    served.restart()
    assert state() == "blackhole"


def test_routes(served: Served) -> None:
    network, ec2 = Network(served), served.ec2
    with refused("RouteAlreadyExists"):
        ec2.create_route(
            RouteTableId=network.table, DestinationCidrBlock="0.0.0.0/0", GatewayId=network.gateway
        )
    for cidr in ("10.0.0.0/16", "10.0.1.0/24"):
        with refused("InvalidParameterValue"):
            ec2.create_route(RouteTableId=network.table, DestinationCidrBlock=cidr, GatewayId=network.gateway)
    ec2.create_route(RouteTableId=network.table, DestinationCidrBlock="9.1.2.3/8", GatewayId=network.gateway)
    ec2.replace_route(RouteTableId=network.table, DestinationCidrBlock="9.0.0.0/8", GatewayId=network.gateway)
    with refused("InvalidParameterValue"):
        ec2.replace_route(
            RouteTableId=network.table, DestinationCidrBlock="8.0.0.0/8", GatewayId=network.gateway
        )
    ec2.delete_route(RouteTableId=network.table, DestinationCidrBlock="9.0.0.0/8")
    with refused("InvalidRoute.NotFound"):
        ec2.delete_route(RouteTableId=network.table, DestinationCidrBlock="9.0.0.0/8")
    with refused("InvalidParameterValue"):
        ec2.delete_route(RouteTableId=network.table, DestinationCidrBlock="10.0.0.0/16")
    for target in ({"NatGatewayId": "nat-1"}, {"NetworkInterfaceId": "eni-1"}, {"GatewayId": "vgw-1"}):
        with refused("UnsupportedOperation") as error:
            ec2.create_route(RouteTableId=network.table, DestinationCidrBlock="9.0.0.0/8", **target)  # type: ignore[arg-type]
        assert next(iter(target.values())) in str(error.value)


def test_associations(served: Served) -> None:
    network, ec2 = Network(served), served.ec2
    again = ec2.associate_route_table(RouteTableId=network.table, SubnetId=network.subnet)
    assert again["AssociationId"] == network.association
    second = ec2.create_route_table(VpcId=network.vpc, ClientToken="t")["RouteTable"]["RouteTableId"]
    assert ec2.create_route_table(VpcId=network.vpc, ClientToken="t")["RouteTable"]["RouteTableId"] == second
    with refused("Resource.AlreadyAssociated"):
        ec2.associate_route_table(RouteTableId=second, SubnetId=network.subnet)
    moved = ec2.replace_route_table_association(AssociationId=network.association, RouteTableId=second)
    assert moved["NewAssociationId"] != network.association
    with refused("InvalidParameterValue"):
        ec2.associate_route_table(RouteTableId=second, SubnetId=next(iter(served.state.networks.subnets)))
    main = of_vpc(network.vpc, ("association.main", "true"))
    (first,) = ec2.describe_route_tables(Filters=main)["RouteTables"]
    association = first["Associations"][0]["RouteTableAssociationId"]
    with refused("InvalidParameterValue"):
        ec2.disassociate_route_table(AssociationId=association)
    ec2.replace_route_table_association(AssociationId=association, RouteTableId=network.table)
    served.restart()
    (now,) = served.ec2.describe_route_tables(Filters=main)["RouteTables"]
    assert now["RouteTableId"] == network.table
    served.ec2.delete_route_table(RouteTableId=first["RouteTableId"])


def test_the_default_vpc_stays_and_can_be_changed(served: Served) -> None:
    ec2, networks = served.ec2, served.state.networks
    vpc = networks.default_vpc_id
    gateway = networks.gateway_of(vpc)
    assert gateway is not None
    subnet = next(iter(networks.subnets))
    calls: list[Callable[[], object]] = [
        lambda: ec2.delete_vpc(VpcId=vpc), lambda: ec2.delete_subnet(SubnetId=subnet),
        lambda: ec2.detach_internet_gateway(InternetGatewayId=gateway.id, VpcId=vpc),
    ]  # fmt: skip
    for call in calls:
        with refused("UnsupportedOperation"):
            call()
    own = ec2.create_subnet(VpcId=vpc, CidrBlock="172.31.200.0/24")["Subnet"]["SubnetId"]
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": False})
    ec2.create_tags(Resources=[subnet, own], Tags=[{"Key": "a", "Value": "b"}])
    ec2.delete_route(RouteTableId=networks.vpcs[vpc].main_table_id, DestinationCidrBlock="0.0.0.0/0")
    shown = seen(served)
    served.restart()
    assert seen(served) == shown


def test_an_instance_in_a_subnet_of_ones_own(served: Served) -> None:
    """Its address is one of the subnet's; netd and IMDS know the VPC."""
    network, twin = Network(served), Network(served)
    first = launch(served, SubnetId=network.subnet, PrivateIpAddress="10.0.1.77")
    (shown,) = served.ec2.describe_instances(InstanceIds=[first])["Reservations"][0]["Instances"]
    assert (shown["VpcId"], shown["SubnetId"], shown["PrivateIpAddress"]) == (
        network.vpc, network.subnet, "10.0.1.77",
    )  # fmt: skip
    assert shown["Placement"]["AvailabilityZone"] == "us-east-1b"
    (group,) = served.ec2.describe_security_groups(Filters=of_vpc(network.vpc))["SecurityGroups"]
    assert [item["GroupId"] for item in shown["SecurityGroups"]] == [group["GroupId"]]
    with refused("InvalidIPAddress.InUse"):
        served.ec2.create_network_interface(SubnetId=network.subnet, PrivateIpAddress="10.0.1.77")
    other = launch(served, SubnetId=twin.subnet, PrivateIpAddress="10.0.1.77")
    cards = [plugged(served, instance_id) for instance_id in (first, other)]
    assert [(card.vpc, card.vpc_cidr, card.subnet, card.address) for card in cards] == [
        (network.vpc, "10.0.0.0/16", "10.0.1.0/24", "10.0.1.77"),
        (twin.vpc, "10.0.0.0/16", "10.0.1.0/24", "10.0.1.77"),
    ]
    builder = served.services.lifecycle.machine_builder
    (interface,) = builder.metadata_interfaces(served.state.instances[first])
    assert isinstance(interface, metadata.Interface)
    assert (interface.vpc_id, interface.vpc_cidr, interface.subnet_cidr) == (
        network.vpc,
        "10.0.0.0/16",
        "10.0.1.0/24",
    )
    drawn = launch(served, SubnetId=network.subnet)
    address = ipaddress.IPv4Address(served.state.instances[drawn].private_ip)
    assert address in list(ipaddress.IPv4Network("10.0.1.0/24"))[4:-1]


def test_an_interface_may_list_its_one_address(served: Served) -> None:
    """As Terraform's aws_network_interface does."""
    ec2: Any = served.ec2
    network = Network(served)

    def create(*addresses: tuple[str, bool]) -> Any:
        listed = [{"PrivateIpAddress": address, "Primary": primary} for address, primary in addresses]
        return ec2.create_network_interface(SubnetId=network.subnet, PrivateIpAddresses=listed)

    assert create(("10.0.1.9", True))["NetworkInterface"]["PrivateIpAddress"] == "10.0.1.9"
    with refused("UnsupportedOperation"):
        create(("10.0.1.10", True), ("10.0.1.11", False))
    with refused("InvalidParameterCombination"):
        create(("10.0.1.10", False))
    with refused("InvalidIPAddress.InUse"):
        create(("10.0.1.9", True))


def test_public_addresses_are_the_subnets_business(served: Served) -> None:
    network, ec2 = Network(served), served.ec2

    def public_ip(instance_id: str) -> str | None:
        (shown,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
        return shown.get("PublicIpAddress")

    card: Any = {"DeviceIndex": 0, "SubnetId": network.subnet}
    assert public_ip(launch(served, SubnetId=network.subnet)) is None
    wanted = launch(served, NetworkInterfaces=[card | {"AssociatePublicIpAddress": True}])
    assert public_ip(wanted) == plugged(served, wanted).public != ""
    ec2.modify_subnet_attribute(SubnetId=network.subnet, MapPublicIpOnLaunch={"Value": True})
    assert public_ip(launch(served, SubnetId=network.subnet))
    unwanted = launch(served, NetworkInterfaces=[card | {"AssociatePublicIpAddress": False}])
    assert public_ip(unwanted) is None
    with refused("DependencyViolation"):
        ec2.detach_internet_gateway(InternetGatewayId=network.gateway, VpcId=network.vpc)


def test_nothing_leads_to_a_subnet_without_a_route(served: Served) -> None:
    """Not from the host either, as from the internet on EC2; with the route, the running machine is there."""
    network, ec2 = Network(served), served.ec2
    ec2.modify_subnet_attribute(SubnetId=network.subnet, MapPublicIpOnLaunch={"Value": True})
    instance = launch(served, SubnetId=network.subnet)
    public = served.state.instances[instance].public_ip
    assert plugged(served, instance).public == public
    ec2.delete_route(RouteTableId=network.table, DestinationCidrBlock="0.0.0.0/0")
    assert plugged(served, instance).public == ""
    ec2.create_route(RouteTableId=network.table, DestinationCidrBlock="0.0.0.0/0", GatewayId=network.gateway)
    assert plugged(served, instance).public == public
    ec2.disassociate_route_table(AssociationId=network.association)
    assert plugged(served, instance).public == "", "the main table has no route"
    ec2.associate_route_table(RouteTableId=network.table, SubnetId=network.subnet)
    assert plugged(served, instance).public == public


def test_an_elastic_ip_wants_a_gateway(served: Served) -> None:
    ec2 = served.ec2
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    card = ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
    allocation = ec2.allocate_address(Domain="vpc")["AllocationId"]
    with refused("Gateway.NotAttached"):
        ec2.associate_address(AllocationId=allocation, NetworkInterfaceId=card)
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.associate_address(AllocationId=allocation, NetworkInterfaceId=card)
    with refused("DependencyViolation"):
        ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)


def test_groups_of_another_vpc(served: Served) -> None:
    network, ec2 = Network(served), served.ec2
    (theirs,) = ec2.describe_security_groups(Filters=of_vpc(network.vpc))["SecurityGroups"]
    theirs_id, image = theirs["GroupId"], served.register()
    ours = ec2.create_security_group(GroupName="web", Description="in the default VPC")["GroupId"]
    inside = ec2.create_security_group(VpcId=network.vpc, GroupName="web", Description="d")["GroupId"]
    card = ec2.create_network_interface(SubnetId=network.subnet)["NetworkInterface"]["NetworkInterfaceId"]
    instance = launch(served, SubnetId=network.subnet, SecurityGroupIds=[inside])
    run: Any = {"ImageId": image, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    calls: list[Callable[[], object]] = [
        lambda: ec2.run_instances(**run, SubnetId=network.subnet, SecurityGroupIds=[ours]),
        lambda: ec2.run_instances(**run, SecurityGroupIds=[theirs_id]),
        lambda: ec2.create_network_interface(SubnetId=network.subnet, Groups=[ours]),
        lambda: ec2.modify_network_interface_attribute(NetworkInterfaceId=card, Groups=[ours]),
        lambda: ec2.modify_instance_attribute(InstanceId=instance, Groups=[ours]),
    ]
    for call in calls:
        with refused("InvalidParameter") as error:
            call()
        assert "belong to different networks" in str(error.value)
    with refused("InvalidParameterCombination"):
        ec2.run_instances(**run, SubnetId=network.subnet, SecurityGroups=["web"])
    pair: Any = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": ours}]}
    with refused("InvalidGroup.NotFound"):
        ec2.authorize_security_group_ingress(GroupId=inside, IpPermissions=[pair])
    (rule,) = ec2.describe_security_groups(GroupIds=[theirs_id])["SecurityGroups"]
    ec2.revoke_security_group_ingress(GroupId=theirs_id, IpPermissions=rule["IpPermissions"])
    with refused("InvalidPermission.NotFound"):
        ec2.revoke_security_group_ingress(GroupId=theirs_id, IpPermissions=rule["IpPermissions"])
    served.restart()
    (kept,) = served.ec2.describe_security_groups(GroupIds=[theirs_id])["SecurityGroups"]
    assert (kept["VpcId"], kept["IpPermissions"], kept["GroupName"]) == (network.vpc, [], "default")


def test_a_deletion_that_a_kill_interrupts_is_finished(served: Served) -> None:
    """The VPC's record goes first; what is left belongs to nothing."""
    before = seen(served)
    network = Network(served)
    served.state.store.delete(VpcRecord, network.vpc)
    served.restart()
    served.ec2.delete_internet_gateway(InternetGatewayId=network.gateway)
    assert seen(served) == before
    for kind in (SubnetRecord, RouteTableRecord, SecurityGroupRecord):
        assert served.state.store.load_all(kind) == []
