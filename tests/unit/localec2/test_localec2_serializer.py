"""The compiled serializer writes what moto's own does, byte by byte, for whatever is served here."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from moto.core import serialize as moto

from instant_env.localec2.state import serializer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


@pytest.fixture
def compared(served: Served) -> Iterator[list[str]]:
    """The operations that were written both ways; a difference fails the call, and with it the test."""
    operations: list[str] = []
    differences: list[str] = []

    class Both(serializer.EC2Serializer):
        def _serialize_result(self, resp: dict[str, Any], result: Any) -> Any:
            ours = super()._serialize_result(resp, result)["body"]
            theirs = moto.EC2Serializer._serialize_result(self, dict(resp), result)["body"]
            operations.append(self.operation_name)
            if ours != theirs:
                at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
                differences.append(
                    f"{self.operation_name}: {ours[at - 80 : at + 80]} | {theirs[at - 80 : at + 80]}"
                )
            return super()._serialize_result(resp, result)

    moto.SERVICE_SPECIFIC_SERIALIZERS["ec2"] = {"ec2": Both}
    yield operations
    serializer.install()
    assert differences == []


def test_everything_that_is_served_is_written_as_moto_writes_it(served: Served, compared: list[str]) -> None:
    ec2 = served.ec2
    group_id = ec2.create_security_group(GroupName="g & h", Description="d")["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]},
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]},
        ],
    )
    ec2.create_key_pair(KeyName="k", KeyType="ed25519")
    image_id = served.register()
    quoted = {"Key": "ü €", "Value": " \"h\" 'i'"}
    tags = [{"Key": "a<b", "Value": "c&d"}, {"Key": "empty", "Value": ""}, quoted]
    specifications = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
    made = ec2.run_instances(
        ImageId=image_id, InstanceType="m7i.large", MinCount=2, MaxCount=2, KeyName="k",
        SecurityGroupIds=[group_id], TagSpecifications=specifications, UserData="x",  # type: ignore[arg-type]
    )["Instances"]  # fmt: skip
    ids = [instance["InstanceId"] for instance in made]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 0})
    volume_id = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", VolumeType="gp3")["VolumeId"]
    ec2.stop_instances(InstanceIds=ids[:1])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=ids[:1], WaiterConfig={"Delay": 0})
    ec2.create_image(InstanceId=ids[0], Name="an image")
    ec2.terminate_instances(InstanceIds=ids[1:])
    for describe in (
        "instances", "volumes", "images", "snapshots", "security_groups", "security_group_rules", "key_pairs",
        "subnets", "vpcs", "availability_zones", "regions", "tags", "network_interfaces", "instance_status",
        "route_tables", "internet_gateways", "network_acls", "dhcp_options", "account_attributes",
    ):  # fmt: skip
        getattr(ec2, f"describe_{describe}")()
    ec2.describe_instance_types(InstanceTypes=["t3.micro", "m7g.large"])
    ec2.describe_instance_attribute(InstanceId=ids[0], Attribute="userData")
    ec2.get_console_output(InstanceId=ids[0])
    ec2.delete_volume(VolumeId=volume_id)
    assert {"RunInstances", "DescribeInstances", "DescribeSecurityGroups", "DeleteVolume"} <= set(compared)


def test_a_blob_is_base64() -> None:
    assert serializer._blob("a\n") == serializer._blob(b"a\n") == base64.b64encode(b"a\n").decode()
