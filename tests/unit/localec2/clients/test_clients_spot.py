"""RequestSpotInstances, as Terraform's aws_spot_instance_request and scripts use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import refused, state_of
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

TAGS: Any = [{"ResourceType": "spot-instances-request", "Tags": [{"Key": "Name", "Value": "build"}]}]


def specification(served: Served, **more: Any) -> Any:
    return {"ImageId": served.register(), "InstanceType": "t3.micro"} | more


def shown(served: Served, *request_ids: str) -> list[Any]:
    return list(
        served.ec2.describe_spot_instance_requests(SpotInstanceRequestIds=list(request_ids))[
            "SpotInstanceRequests"
        ]
    )


def instance(served: Served, instance_id: str) -> Any:
    return served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]


def test_a_request_launches_as_a_launch_does(served: Served) -> None:
    ec2: Any = served.ec2
    ec2.create_key_pair(KeyName="k")
    group_id = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
    (made,) = ec2.request_spot_instances(
        SpotPrice="0.05", Type="one-time", TagSpecifications=TAGS,
        LaunchSpecification=specification(
            served, KeyName="k", SecurityGroupIds=[group_id], UserData="Zmlyc3Q=", EbsOptimized=True,
            Monitoring={"Enabled": True}, Placement={"AvailabilityZone": "us-east-1c"},
            BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3, "VolumeType": "gp3"}}],
        ),
    )["SpotInstanceRequests"]  # fmt: skip
    assert (made["State"], made["Status"]["Code"], made["Type"]) == ("active", "fulfilled", "one-time")
    assert made["Tags"] == TAGS[0]["Tags"]
    assert float(made["SpotPrice"]) == 0.05
    assert made["LaunchSpecification"]["KeyName"] == "k"
    launched = instance(served, made["InstanceId"])
    assert launched["InstanceLifecycle"] == "spot"
    assert launched["SpotInstanceRequestId"] == made["SpotInstanceRequestId"]
    assert launched["Placement"]["AvailabilityZone"] == made["LaunchedAvailabilityZone"] == "us-east-1c"
    assert [item["GroupId"] for item in launched["SecurityGroups"]] == [group_id]
    assert (launched["KeyName"], launched["Monitoring"]["State"]) == ("k", "enabled")
    assert "Tags" not in launched, "tags are the request's"
    record = served.state.instances[made["InstanceId"]]
    assert (record.user_data_base64, record.ebs_optimized) == ("Zmlyc3Q=", True)
    assert [volume.size_gib for volume in served.state.attached(record.id)] == [3]
    until(lambda: state_of(served, record.id) == "running")
    served.restart()
    (kept,) = shown(served, made["SpotInstanceRequestId"])
    assert (kept["Tags"], kept["InstanceId"]) == (made["Tags"], record.id)
    with refused("UnsupportedOperation"):
        served.ec2.stop_instances(InstanceIds=[record.id])


def test_a_cancelled_request_leaves_its_instance(served: Served) -> None:
    ec2 = served.ec2
    (made,) = ec2.request_spot_instances(LaunchSpecification=specification(served))["SpotInstanceRequests"]
    request_id, instance_id = made["SpotInstanceRequestId"], made["InstanceId"]
    until(lambda: state_of(served, instance_id) == "running")
    (answer,) = ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request_id])[
        "CancelledSpotInstanceRequests"
    ]
    assert answer == {"SpotInstanceRequestId": request_id, "State": "cancelled"}
    assert state_of(served, instance_id) == "running"
    ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: shown(served, request_id)[0]["Status"]["Code"] == "instance-terminated-by-user")
    assert shown(served, request_id)[0]["State"] == "cancelled"


def test_a_persistent_request_launches_again(served: Served) -> None:
    (made,) = served.ec2.request_spot_instances(
        Type="persistent", InstanceInterruptionBehavior="stop", LaunchSpecification=specification(served)
    )["SpotInstanceRequests"]
    assert (made["Type"], made["InstanceInterruptionBehavior"]) == ("persistent", "stop")
    first = made["InstanceId"]
    until(lambda: state_of(served, first) == "running")
    served.ec2.terminate_instances(InstanceIds=[first])
    until(lambda: shown(served, made["SpotInstanceRequestId"])[0].get("InstanceId") not in (None, first))


def test_several_instances_and_a_token(served: Served) -> None:
    order: Any = {"InstanceCount": 2, "ClientToken": "t", "LaunchSpecification": specification(served)}
    made = served.ec2.request_spot_instances(**order)["SpotInstanceRequests"]
    assert len({item["InstanceId"] for item in made}) == len({item["SpotInstanceRequestId"] for item in made})
    again = served.ec2.request_spot_instances(**order)["SpotInstanceRequests"]
    assert sorted(item["InstanceId"] for item in again) == sorted(item["InstanceId"] for item in made)
    assert len(shown(served)) == 2
    with refused("IdempotentParameterMismatch"):
        served.ec2.request_spot_instances(**order | {"InstanceCount": 1})


@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("InvalidAMIID.NotFound", {"LaunchSpecification": {"ImageId": "ami-0123456789abcdef0"}}),
        ("InvalidParameterValue", {"InstanceCount": 0}),
        ("InvalidParameterValue", {"SpotPrice": "cheap"}),
        ("InvalidParameterCombination", {"InstanceInterruptionBehavior": "stop"}),
        ("UnsupportedOperation", {"InstanceInterruptionBehavior": "hibernate", "Type": "persistent"}),
        ("UnsupportedOperation", {"ValidUntil": "2030-01-01T00:00:00Z"}),
        ("UnsupportedOperation", {"BlockDurationMinutes": 60}),
        ("UnsupportedOperation", {"LaunchGroup": "all"}),
        (
            "InvalidParameterValue",
            {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}]},
        ),
    ],
)
def test_requests_that_make_nothing(served: Served, code: str, more: dict[str, Any]) -> None:
    order: Any = {"LaunchSpecification": specification(served)} | more
    with refused(code):
        served.ec2.request_spot_instances(**order)
    assert shown(served) == []
    assert served.ec2.describe_instances()["Reservations"] == []


def test_a_request_in_a_subnet_that_goes_is_closed(served: Served) -> None:
    """A persistent request whose subnet is deleted launches no more."""
    ec2 = served.ec2
    vpc_id = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet_id = ec2.create_subnet(VpcId=vpc_id, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    (made,) = ec2.request_spot_instances(
        Type="persistent", LaunchSpecification=specification(served, SubnetId=subnet_id)
    )["SpotInstanceRequests"]
    request_id, instance_id = made["SpotInstanceRequestId"], made["InstanceId"]
    until(lambda: state_of(served, instance_id) == "running")
    with served.state.lock:
        request = served.state.spot_requests[request_id]
        request.template.subnet_id = "subnet-0123456789abcdef0"
    ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: shown(served, request_id)[0]["State"] == "closed")
