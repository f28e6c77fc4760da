"""Parameters at the values that describe what localec2 does are accepted, and empty members are absent."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from instant_env.localec2.api import allowed
from instant_env.localec2.api.requests.fields import present_fields
from instant_env.localec2.state.moto_api import input_types, known_actions

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

ZONE = "us-east-1a"
#: Booleans that are true unless a request says otherwise.
TRUE = (
    "DeleteOnTermination", "EnableDnsSupport.Value", "EnaSupport.Value", "SourceDestCheck",
    "SourceDestCheck.Value",
)  # fmt: skip


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


def api(served: Served) -> Any:
    """The client without its types: parameters come from tables here."""
    return served.ec2


def launch(served: Served, **more: Any) -> Any:
    image_id = next(iter(served.state.images), None) or served.register()
    arguments = {"ImageId": image_id, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    made: Any = api(served).run_instances(**arguments | more)["Instances"][0]
    return made


def described(served: Served, instance_id: str) -> Any:
    answer: Any = api(served).describe_instances(InstanceIds=[instance_id])
    return answer["Reservations"][0]["Instances"][0]


#: What the AWS provider of Terraform, Packer and people's configurations send with a launch.
SAME = [
    {"Monitoring": {"Enabled": False}},
    {"CreditSpecification": {"CpuCredits": "unlimited"}},
    {"MetadataOptions": {"HttpTokens": "required", "HttpProtocolIpv6": "disabled"}},
    {"NetworkInterfaces": [{"DeviceIndex": 0, "NetworkCardIndex": 0, "InterfaceType": "interface"}]},
    {"Placement": {"Tenancy": "default"}},
    {"CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}},
    {"MaintenanceOptions": {"AutoRecovery": "default"}},
    {"EnclaveOptions": {"Enabled": False}},
    {"CapacityReservationSpecification": {"CapacityReservationPreference": "open"}},
    {"PrivateDnsNameOptions": {"HostnameType": "ip-name", "EnableResourceNameDnsARecord": False}},
    {"BlockDeviceMappings": [
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeType": "gp3", "Iops": 3000, "Throughput": 125}}
    ]},
]  # fmt: skip
OTHER = [
    ({"MetadataOptions": {"HttpProtocolIpv6": "enabled"}}, "MetadataOptions.HttpProtocolIpv6"),
    (
        {"NetworkInterfaces": [{"DeviceIndex": 0, "NetworkCardIndex": 1}]},
        "NetworkInterface.1.NetworkCardIndex",
    ),
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "InterfaceType": "efa"}]}, "NetworkInterface.1.InterfaceType"),
    ({"Placement": {"Tenancy": "dedicated"}}, "Placement.Tenancy"),
    ({"CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 1}}, "CpuOptions.ThreadsPerCore"),
    ({"MaintenanceOptions": {"AutoRecovery": "disabled"}}, "MaintenanceOptions.AutoRecovery"),
    ({"EnclaveOptions": {"Enabled": True}}, "EnclaveOptions.Enabled"),
]


@pytest.mark.parametrize("parameters", SAME, ids=lambda value: next(iter(value)))
def test_a_launch_may_say_what_happens_anyway(served: Served, parameters: dict[str, Any]) -> None:
    assert launch(served, **parameters)["State"]["Name"] == "pending"


@pytest.mark.parametrize(("parameters", "name"), OTHER, ids=lambda value: str(value)[:40])
def test_any_other_value_is_refused_by_name(served: Served, parameters: dict[str, Any], name: str) -> None:
    with refused("UnsupportedOperation") as error:
        launch(served, **parameters)
    assert name in str(error.value)


def test_what_a_launch_says_is_answered(served: Served) -> None:
    """A client that compares its configuration with the answer finds no difference."""
    instance_id = launch(
        served, Monitoring={"Enabled": True}, CreditSpecification={"CpuCredits": "standard"},
        UserData="x",
    )["InstanceId"]  # fmt: skip
    shown = described(served, instance_id)
    assert shown["Monitoring"] == {"State": "enabled"}
    assert shown["CpuOptions"] == {"CoreCount": 1, "ThreadsPerCore": 2}
    assert shown["EnclaveOptions"] == {"Enabled": False}
    assert shown["MaintenanceOptions"]["AutoRecovery"] == "default"
    assert shown["CapacityReservationSpecification"] == {"CapacityReservationPreference": "open"}
    assert shown["PrivateDnsNameOptions"]["HostnameType"] == "ip-name"
    served.restart()
    assert described(served, instance_id)["Monitoring"] == {"State": "enabled"}


def test_credits_are_recorded(served: Served) -> None:
    burstable, other = (launch(served, InstanceType=kind)["InstanceId"] for kind in ("t3.micro", "m5.large"))

    def options() -> dict[str, str]:
        answer = api(served).describe_instance_credit_specifications()["InstanceCreditSpecifications"]
        return {item["InstanceId"]: item["CpuCredits"] for item in answer}

    assert options() == {burstable: "unlimited"}
    answer = api(served).modify_instance_credit_specification(
        InstanceCreditSpecifications=[
            {"InstanceId": burstable, "CpuCredits": "standard"},
            {"InstanceId": other, "CpuCredits": "standard"},
        ]
    )
    assert [item["InstanceId"] for item in answer["SuccessfulInstanceCreditSpecifications"]] == [burstable]
    assert [item["InstanceId"] for item in answer["UnsuccessfulInstanceCreditSpecifications"]] == [other]
    served.restart()
    assert options() == {burstable: "standard"}
    with refused("InvalidParameterCombination"):
        api(served).describe_instance_credit_specifications(InstanceIds=[other])


def test_monitoring_can_be_switched(served: Served) -> None:
    instance_id = launch(served)["InstanceId"]
    for call, state in (
        (api(served).monitor_instances, "enabled"),
        (api(served).unmonitor_instances, "disabled"),
    ):
        answer: Any = call(InstanceIds=[instance_id])
        assert answer["InstanceMonitorings"] == [{"InstanceId": instance_id, "Monitoring": {"State": state}}]
        assert described(served, instance_id)["Monitoring"]["State"] == state


def test_a_private_address_of_ones_own(served: Served) -> None:
    subnet = api(served).describe_subnets()["Subnets"][0]
    wanted = subnet["CidrBlock"].replace(".0/20", ".77")
    assert launch(served, SubnetId=subnet["SubnetId"], PrivateIpAddress=wanted)["PrivateIpAddress"] == wanted
    with refused("InvalidIPAddress.InUse"):
        launch(served, SubnetId=subnet["SubnetId"], PrivateIpAddress=wanted)
    nic = {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "PrivateIpAddress": wanted[:-1] + "8"}
    assert launch(served, NetworkInterfaces=[nic])["PrivateIpAddress"] == wanted[:-1] + "8"


def test_iops_and_throughput_are_recorded(served: Served) -> None:
    def volume(**order: Any) -> Any:
        return api(served).create_volume(
            AvailabilityZone=ZONE, **({"Size": 100, "VolumeType": "gp3"} | order)
        )

    assert (volume()["Iops"], volume()["Throughput"]) == (3000, 125)
    assert volume(Iops=3000, Throughput=125)["Iops"] == 3000
    volume_id = volume(Iops=4000, Throughput=500)["VolumeId"]
    served.restart()
    (shown,) = api(served).describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert (shown["Iops"], shown["Throughput"]) == (4000, 500)
    for order in ({"Iops": 2999}, {"Iops": 90000}, {"Throughput": 124}, {"Throughput": 751}):
        with refused("InvalidParameterValue"):
            volume(**order)
    with refused("InvalidParameterCombination"):
        volume(VolumeType="gp2", Iops=3000)


def test_what_is_asked_of_other_actions(served: Served) -> None:
    """DetachVolume, CopyImage and RegisterImage, as the AWS provider and Packer send them."""
    image_id = served.register()
    copied = api(served).copy_image(
        Name="copied", SourceImageId=image_id, SourceRegion="us-east-1", Encrypted=False
    )["ImageId"]
    (image,) = api(served).describe_images(ImageIds=[copied])["Images"]
    snapshot_id = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    api(served).get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot_id], WaiterConfig={"Delay": 0})
    api(served).register_image(
        Name="registered", Architecture="x86_64", VirtualizationType="hvm", BootMode="uefi", ImageLocation="",
        RootDeviceName="/dev/xvda", EnaSupport=True, KernelId="", RamdiskId="",
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}],
    )  # fmt: skip
    instance_id = launch(served)["InstanceId"]
    api(served).get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 0})
    volume_id = api(served).create_volume(AvailabilityZone=ZONE, Size=1, MultiAttachEnabled=False)["VolumeId"]
    api(served).attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    api(served).detach_volume(VolumeId=volume_id, InstanceId=instance_id, Force=False)
    api(served).get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 0})
    api(served).attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    api(served).detach_volume(VolumeId=volume_id, Force=True)
    api(served).get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 0})


def test_empty_members_are_absent(served: Served) -> None:
    """Packer sends `IamInstanceProfile.Name=''` with every launch."""
    instance = launch(
        served, IamInstanceProfile={"Name": ""}, KeyName="", UserData="", SubnetId="", ClientToken="",
        NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": "", "NetworkInterfaceId": "", "Description": ""}],
    )  # fmt: skip
    assert instance["State"]["Name"] == "pending"
    assert "IamInstanceProfile" not in instance
    with refused("MissingParameter"):
        api(served).associate_iam_instance_profile(
            InstanceId=instance["InstanceId"], IamInstanceProfile={"Name": ""}
        )


def test_empty_values_that_mean_something_stay(served: Served) -> None:
    instance_id = launch(served, TagSpecifications=[
        {"ResourceType": "instance", "Tags": [{"Key": "a", "Value": ""}]}
    ])["InstanceId"]  # fmt: skip
    found = api(served).describe_instances(Filters=[{"Name": "tag:a", "Values": [""]}])["Reservations"]
    assert found[0]["Instances"][0]["InstanceId"] == instance_id
    with refused("InvalidInstanceID.Malformed"):  # and not: all instances
        api(served).describe_instances(InstanceIds=[""])
    with refused("InvalidParameterValue"):
        api(served).create_tags(Resources=[instance_id], Tags=[{"Key": "", "Value": "x"}])


def test_user_data_in_lines(served: Served) -> None:
    """`base64 file` of coreutils breaks lines after 76 characters; RFC 2045 has them end in CR LF."""
    data = bytes(range(256))
    for text in (base64.encodebytes(data).decode(), base64.encodebytes(data).decode().replace("\n", "\r\n")):
        client = served.client("ec2")
        client.meta.events.register_first(
            "before-call.ec2.RunInstances",
            lambda params, text=text, **_: params["body"].update(UserData=text),
        )
        made = client.run_instances(
            ImageId=next(iter(served.state.images), None) or served.register(), InstanceType="t3.micro",
            MinCount=1, MaxCount=1,
        )["Instances"][0]  # fmt: skip
        answer = api(served).describe_instance_attribute(InstanceId=made["InstanceId"], Attribute="userData")
        assert base64.b64decode(answer["UserData"]["Value"], validate=True) == data


@pytest.mark.parametrize(
    ("name", "value"), [("MinCount", "one"), ("EbsOptimized", "perhaps"), ("MaxCount", "1.5")]
)
def test_values_that_are_not_of_their_type(served: Served, name: str, value: str) -> None:
    client = served.client("ec2")
    client.meta.events.register_first(
        "before-call.ec2.RunInstances", lambda params, **_: params["body"].update({name: value})
    )
    with refused("InvalidParameterValue") as error:
        client.run_instances(ImageId=served.register(), MinCount=1, MaxCount=1)
    assert name in str(error.value)


def test_the_rule_for_any_false_boolean() -> None:
    """No action says what it does not do: a Boolean that is false asks for nothing."""
    for action in set(allowed.ACTIONS) & known_actions():
        for name, kind in input_types(action).items():
            if kind == "boolean":
                default = "true" if name.endswith(TRUE) else "false"
                assert allowed.refusal(action, [(name, default)]) is None, (action, name)


def test_what_is_true_unless_said_cannot_be_false() -> None:
    """netd has EC2's source check and a resolver, always."""
    for action, name in (
        ("ModifyInstanceAttribute", "SourceDestCheck.Value"),
        ("ModifyNetworkInterfaceAttribute", "SourceDestCheck.Value"),
        ("ModifyInstanceAttribute", "EnaSupport.Value"),
        ("ModifyVpcAttribute", "EnableDnsSupport.Value"),
    ):
        assert name in str(allowed.refusal(action, [(name, "false")]))
        assert allowed.refusal(action, [(name, "true")]) is None


def test_absent_fields_are_not_given() -> None:
    wire = {
        "A.Name": [""],
        "Id.1": [""],
        "Tag.1.Value": [""],
        "B": ["x"],
        "NoDevice": [""],
        "NextToken": [""],
    }
    assert list(present_fields("RunInstances", wire)) == ["Id.1", "Tag.1.Value", "B", "NoDevice", "NextToken"]


def test_a_tag_without_a_value_has_an_empty_one(served: Served) -> None:
    instance_id = launch(served)["InstanceId"]
    api(served).create_tags(Resources=[instance_id], Tags=[{"Key": "bare"}])
    assert described(served, instance_id)["Tags"] == [{"Key": "bare", "Value": ""}]
    api(served).create_tags(Resources=[instance_id], Tags=[{"Key": "bare", "Value": "x"}])
    api(served).delete_tags(Resources=[instance_id], Tags=[{"Key": "bare"}])
    assert "Tags" not in described(served, instance_id)
