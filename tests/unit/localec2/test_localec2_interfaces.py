"""Network interfaces and Elastic IPs in the API, in the machines' metadata, and over a restart."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return str(error.value.response["Error"]["Code"])


def launch(served: Served, **more: Any) -> str:
    made = served.ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1, **more
    )["Instances"][0]
    wait(served, made["InstanceId"], "running")
    return made["InstanceId"]


def described(served: Served, instance_id: str) -> Any:
    return served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]


def wait(served: Served, instance_id: str, state: str) -> Any:
    deadline = time.monotonic() + 60
    while (instance := described(served, instance_id))["State"]["Name"] != state:
        assert time.monotonic() < deadline, instance["State"]
        time.sleep(0.01)
    return instance


def interface(served: Served, **more: Any) -> str:
    subnet = served.ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-east-1a"]}])[
        "Subnets"
    ][0]["SubnetId"]
    made = served.ec2.create_network_interface(SubnetId=subnet, **more)["NetworkInterface"]
    return str(made["NetworkInterfaceId"])


def shown(served: Served, interface_id: str) -> Any:
    return served.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface_id])["NetworkInterfaces"][0]


def macs(served: Served, instance_id: str) -> dict[str, Any]:
    file = served.state.layout.instances / instance_id / "metadata.json"
    found: dict[str, Any] = json.loads(file.read_text())["tree"]["network"]["interfaces"]["macs"]
    return found


def test_a_machine_of_an_interface_and_an_address_made_ahead(served: Served) -> None:
    ec2 = served.ec2
    eni = interface(served, Description="ahead", PrivateIpAddress="172.31.3.4")
    address = ec2.allocate_address(Domain="vpc")
    ec2.associate_address(AllocationId=address["AllocationId"], NetworkInterfaceId=eni)
    instance_id = launch(served, NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": eni}])
    instance = described(served, instance_id)
    assert instance["PrivateIpAddress"] == "172.31.3.4"
    assert instance["PublicIpAddress"] == address["PublicIp"]
    assert [item["NetworkInterfaceId"] for item in instance["NetworkInterfaces"]] == [eni]
    assert served.network.interfaces[eni].public == address["PublicIp"]
    assert code_of(ec2.delete_network_interface, NetworkInterfaceId=eni) == "InvalidParameterValue"
    attachment = shown(served, eni)["Attachment"]["AttachmentId"]
    assert code_of(ec2.detach_network_interface, AttachmentId=attachment) == "OperationNotPermitted"

    served.restart()
    assert described(served, instance_id)["PublicIpAddress"] == address["PublicIp"]

    served.ec2.terminate_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "terminated")
    kept = shown(served, eni)
    assert (kept["Status"], kept["PrivateIpAddress"]) == ("available", "172.31.3.4")
    assert kept["Association"]["PublicIp"] == address["PublicIp"], "it stays with the interface"
    served.restart()
    assert shown(served, eni)["Status"] == "available"
    served.ec2.delete_network_interface(NetworkInterfaceId=eni)
    served.ec2.release_address(AllocationId=address["AllocationId"])
    assert served.ec2.describe_addresses()["Addresses"] == []


def test_a_second_interface_comes_and_goes(served: Served) -> None:
    ec2 = served.ec2
    group_id = ec2.create_security_group(GroupName="other", Description="d")["GroupId"]
    eni, instance_id = (
        interface(served, Groups=[group_id]),
        launch(served, Placement={"AvailabilityZone": "us-east-1a"}),
    )
    place: dict[str, Any] = {"InstanceId": instance_id, "NetworkInterfaceId": eni}
    assert code_of(ec2.attach_network_interface, **place, DeviceIndex=2) == "AttachmentLimitExceeded"
    attachment = ec2.attach_network_interface(**place, DeviceIndex=1)["AttachmentId"]
    found = shown(served, eni)
    assert found["Status"] == "in-use"
    assert found["Attachment"]["DeviceIndex"] == 1
    assert [group["GroupId"] for group in found["Groups"]] == [group_id], "its own groups alone"
    assert len(described(served, instance_id)["NetworkInterfaces"]) == 2
    tree = macs(served, instance_id)[found["MacAddress"]]
    assert (tree["device-number"], tree["interface-id"]) == ("1", eni)
    until(lambda: eni in served.network.interfaces)
    assert served.network.interfaces[eni].groups == (group_id,)
    assert code_of(ec2.attach_network_interface, **place, DeviceIndex=1) == "InvalidParameterValue"
    assert code_of(ec2.delete_security_group, GroupId=group_id) == "DependencyViolation"

    address = ec2.allocate_address()["AllocationId"]
    ec2.associate_address(AllocationId=address, NetworkInterfaceId=eni)
    assert macs(served, instance_id)[found["MacAddress"]]["public-ipv4s"].startswith("127.")

    ec2.detach_network_interface(AttachmentId=attachment)
    until(lambda: shown(served, eni)["Status"] == "available")
    assert list(macs(served, instance_id)) == [
        described(served, instance_id)["NetworkInterfaces"][0]["MacAddress"]
    ]
    assert eni not in served.network.interfaces


def test_an_address_takes_the_place_of_the_machines_own_and_gives_it_back(served: Served) -> None:
    ec2, instance_id = served.ec2, launch(served)
    own = described(served, instance_id)["PublicIpAddress"]
    first, second = (ec2.allocate_address() for _ in range(2))
    made = ec2.associate_address(AllocationId=first["AllocationId"], InstanceId=instance_id)
    assert described(served, instance_id)["PublicIpAddress"] == first["PublicIp"]
    assert code_of(ec2.release_address, AllocationId=first["AllocationId"]) == "InvalidIPAddress.InUse"
    ec2.associate_address(AllocationId=second["AllocationId"], InstanceId=instance_id)
    assert described(served, instance_id)["PublicIpAddress"] == second["PublicIp"]
    ec2.release_address(AllocationId=first["AllocationId"])
    assert (
        code_of(ec2.disassociate_address, AssociationId=made["AssociationId"])
        == "InvalidAssociationID.NotFound"
    )

    ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    wait(served, instance_id, "stopped")
    assert described(served, instance_id)["PublicIpAddress"] == second["PublicIp"], "it outlives a stop"
    ec2.start_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "running")
    (shown_address,) = ec2.describe_addresses()["Addresses"]
    assert shown_address["InstanceId"] == instance_id
    ec2.disassociate_address(AssociationId=shown_address["AssociationId"])
    after = described(served, instance_id)["PublicIpAddress"]
    assert after not in (second["PublicIp"], "")
    assert after.startswith(own.rsplit(".", 1)[0])


def test_an_address_is_not_taken_where_that_was_not_asked_for(served: Served) -> None:
    ec2 = served.ec2
    one, two = interface(served), interface(served)
    allocation = ec2.allocate_address()["AllocationId"]
    ec2.associate_address(AllocationId=allocation, NetworkInterfaceId=one)
    stay: dict[str, Any] = {
        "AllocationId": allocation,
        "NetworkInterfaceId": two,
        "AllowReassociation": False,
    }
    assert code_of(ec2.associate_address, **stay) == "Resource.AlreadyAssociated"
    ec2.associate_address(AllocationId=allocation, NetworkInterfaceId=two)
    assert ec2.describe_addresses()["Addresses"][0]["NetworkInterfaceId"] == two
    assert "Association" not in shown(served, one)
    ec2.delete_network_interface(NetworkInterfaceId=two)
    assert "AssociationId" not in ec2.describe_addresses()["Addresses"][0]


def test_interfaces_that_cannot_be(served: Served) -> None:
    ec2 = served.ec2
    eni = interface(served, PrivateIpAddress="172.31.3.4")
    subnet = shown(served, eni)["SubnetId"]
    create = ec2.create_network_interface
    assert code_of(create, SubnetId=subnet, PrivateIpAddress="172.31.3.4") == "InvalidIPAddress.InUse"
    assert code_of(create, SubnetId=subnet, PrivateIpAddress="172.31.0.1") == "InvalidParameterValue"
    assert code_of(create, SubnetId="subnet-0") == "InvalidSubnetID.NotFound"
    assert code_of(create, SubnetId=subnet, Groups=["sg-0"]) == "InvalidGroup.NotFound"
    assert (
        code_of(ec2.delete_network_interface, NetworkInterfaceId="eni-0")
        == "InvalidNetworkInterfaceID.NotFound"
    )
    arguments: dict[str, Any] = {
        "ImageId": served.register(),
        "InstanceType": "t3.micro",
        "MinCount": 1,
        "MaxCount": 1,
    }
    second_only = [{"DeviceIndex": 1, "NetworkInterfaceId": eni}]
    assert code_of(ec2.run_instances, **arguments, NetworkInterfaces=second_only) == "InvalidParameterValue"
    two = [{"DeviceIndex": 0, "NetworkInterfaceId": eni}]
    assert code_of(ec2.run_instances, **arguments | {"MaxCount": 2}, NetworkInterfaces=two) == (
        "InvalidNetworkInterface.InUse"
    )
    assert ec2.describe_instances()["Reservations"] == []


def test_an_instance_takes_interfaces_with_it_when_that_was_said(served: Served) -> None:
    eni = interface(served)
    given: list[Any] = [
        {"DeviceIndex": 0},
        {"DeviceIndex": 1, "NetworkInterfaceId": eni, "DeleteOnTermination": True},
    ]
    instance_id = launch(served, NetworkInterfaces=given)
    instance = described(served, instance_id)
    assert "PublicIpAddress" not in instance, "as on EC2 with two interfaces"
    assert instance["Placement"]["AvailabilityZone"] == "us-east-1a"
    assert len(macs(served, instance_id)) == 2
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "terminated")
    assert code_of(served.ec2.describe_network_interfaces, NetworkInterfaceIds=[eni]).startswith(
        "InvalidNetworkInterface"
    )


def test_a_full_subnet_says_so(served: Served) -> None:
    """A /28 has 16 addresses, 5 of them Amazon's; drawing until one was free never ended."""
    subnet = next(iter(served.state.mirror.ec2.get_default_subnets().values()))
    subnet.cidr_block = "172.31.0.0/28"
    made = [
        served.ec2.create_network_interface(SubnetId=subnet.id)["NetworkInterface"]["PrivateIpAddress"]
        for _ in range(11)
    ]
    assert sorted(made, key=lambda address: int(address.rpartition(".")[2])) == [
        f"172.31.0.{number}" for number in range(4, 15)
    ]
    assert code_of(served.ec2.create_network_interface, SubnetId=subnet.id) == (
        "InsufficientFreeAddressesInSubnet"
    )
    refused = code_of(
        served.ec2.run_instances, ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        SubnetId=subnet.id,
    )  # fmt: skip
    assert refused == "InsufficientFreeAddressesInSubnet"
    assert served.ec2.describe_instances()["Reservations"] == []


def test_a_launch_makes_as_many_machines_as_there_are_addresses_for(served: Served) -> None:
    subnet = next(iter(served.state.mirror.ec2.get_default_subnets().values()))
    subnet.cidr_block = "172.31.0.0/28"
    for _ in range(10):
        served.ec2.create_network_interface(SubnetId=subnet.id)
    wanted: Any = {"ImageId": served.register(), "InstanceType": "t3.micro", "SubnetId": subnet.id}
    assert code_of(served.ec2.run_instances, MinCount=2, MaxCount=2, **wanted) == (
        "InsufficientFreeAddressesInSubnet"
    )
    assert not served.state.instances
    assert not served.state.volumes
    assert len(served.ec2.run_instances(MinCount=1, MaxCount=2, **wanted)["Instances"]) == 1


def test_a_client_token_belongs_to_one_request(served: Served) -> None:
    """Every action of EC2 that takes one: the same again is the same answer, anything else is refused."""
    zone = f"{served.state.region}a"
    subnets = [subnet["SubnetId"] for subnet in served.ec2.describe_subnets()["Subnets"]]
    image_id = served.register()
    launch: Any = {"ImageId": image_id, "InstanceType": "t3.micro", "MaxCount": 1}
    copied: Any = {"SourceImageId": image_id, "SourceRegion": served.state.region}
    calls: list[tuple[Any, str, dict[str, Any], dict[str, Any]]] = [
        (served.ec2.create_network_interface, "NetworkInterface.NetworkInterfaceId",
         {"SubnetId": subnets[0]}, {"SubnetId": subnets[1]}),
        (served.ec2.create_volume, "VolumeId",
         {"AvailabilityZone": zone, "Size": 1}, {"AvailabilityZone": zone, "Size": 2}),
        (served.ec2.copy_image, "ImageId", {**copied, "Name": "one"}, {**copied, "Name": "two"}),
        (served.ec2.run_instances, "ReservationId",
         {**launch, "MinCount": 1}, {**launch, "MinCount": 1, "UserData": "other"}),
    ]  # fmt: skip
    for call, path, same, other in calls:
        answers = [call(ClientToken="token", **same) for _ in range(2)]
        for name in path.split("."):
            answers = [answer[name] for answer in answers]
        assert answers[0] == answers[1]
        assert code_of(call, ClientToken="token", **other) == "IdempotentParameterMismatch"
        assert code_of(call, ClientToken="t" * 65, **same) == "InvalidParameterValue"
    assert len(served.state.interfaces) == 1
    served.restart()
    assert code_of(served.ec2.create_network_interface, ClientToken="token", SubnetId=subnets[1]) == (
        "IdempotentParameterMismatch"
    )


def test_there_are_five_elastic_addresses(served: Served) -> None:
    made = [served.ec2.allocate_address()["AllocationId"] for _ in range(5)]
    assert code_of(served.ec2.allocate_address) == "AddressLimitExceeded"
    served.ec2.release_address(AllocationId=made[0])
    served.ec2.allocate_address()
