"""Networks of one's own, with guests that really speak: VPCs with the same addresses, a route that goes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.patience import until

if TYPE_CHECKING:
    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]

ADDRESS = "10.20.1.77"
ANYWHERE: Any = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}


def network(cloud: TinyCloud) -> tuple[str, str, str]:
    """A VPC with a public subnet, whose machines anybody reaches: its route table, gateway and subnet."""
    ec2 = cloud.ec2
    vpc_id = ec2.create_vpc(CidrBlock="10.20.0.0/16")["Vpc"]["VpcId"]
    subnet_id = ec2.create_subnet(VpcId=vpc_id, CidrBlock="10.20.1.0/24")["Subnet"]["SubnetId"]
    ec2.modify_subnet_attribute(SubnetId=subnet_id, MapPublicIpOnLaunch={"Value": True})
    gateway_id = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway_id, VpcId=vpc_id)
    of_vpc: Any = [{"Name": "vpc-id", "Values": [vpc_id]}]
    (table,) = ec2.describe_route_tables(Filters=of_vpc)["RouteTables"]
    ec2.create_route(
        RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway_id
    )
    (group,) = ec2.describe_security_groups(Filters=of_vpc)["SecurityGroups"]
    ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[ANYWHERE])
    return table["RouteTableId"], gateway_id, subnet_id


def accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def test_machines_in_subnets_of_ones_own(tiny_cloud: TinyCloud) -> None:
    tiny_cloud.strict(late_ms=0)  # a VPC's own group is in no answer: nobody knows that it was just made
    ec2, port = tiny_cloud.ec2, tiny_cloud.endpoint.ssh_port
    table_id, gateway_id, subnet_id = network(tiny_cloud)
    *_, twin_subnet_id = network(tiny_cloud)
    one, twin = (
        tiny_cloud.launch_tiny(SecurityGroupIds=[], SubnetId=subnet, PrivateIpAddress=ADDRESS)
        for subnet in (subnet_id, twin_subnet_id)
    )
    guest, other = tiny_cloud.login(one), tiny_cloud.login(twin)
    for login in (guest, other):
        assert f"{ADDRESS}/24" in login.run("ip -4 address show")
        assert "default via 10.20.1.1 " in login.run("ip route show")
        assert login.run("cat /etc/resolv.conf").split()[-1] == "10.20.0.2"
        mac = login.run("imds meta-data/mac").strip()
        place = f"meta-data/network/interfaces/macs/{mac}"
        assert login.run(f"imds {place}/vpc-ipv4-cidr-block").strip() == "10.20.0.0/16"
        assert login.run(f"imds {place}/subnet-ipv4-cidr-block").strip() == "10.20.1.0/24"
    assert guest.run("imds meta-data/instance-id").strip() == one
    assert other.run("imds meta-data/instance-id").strip() == twin

    # Two machines of a VPC reach each other; the twin's, with the same range, is not among them.
    second = tiny_cloud.launch_tiny(SecurityGroupIds=[], SubnetId=subnet_id, PrivateIpAddress="10.20.1.78")
    tiny_cloud.login(second)
    ping = "ping -c 1 -W 3 10.20.1.78"
    assert guest.status(ping) == 0
    assert other.status(ping) != 0

    # Without the route, nothing leads to a machine that runs, and with it, something does again.
    address = tiny_cloud.describe(one)["PublicIpAddress"]
    assert accepts(address, port)
    ec2.delete_route(RouteTableId=table_id, DestinationCidrBlock="0.0.0.0/0")
    until(lambda: not accepts(address, port))
    ec2.create_route(RouteTableId=table_id, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway_id)
    until(lambda: accepts(address, port))
