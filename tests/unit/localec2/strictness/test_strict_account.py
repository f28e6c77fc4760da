"""What EC2 refuses, by the account and by what is plainly true; each with its switch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.localec2_served import ZONE, completed, refused, volume_of
from support.patience import until
from support.strict_served import launch, launched, strict

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

SPOT: Any = {"MarketType": "spot"}


def own_snapshot(served: Served) -> str:
    volume_id = served.ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    snapshot_id = served.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    completed(served, snapshot_id)
    return snapshot_id


def own_image(served: Served, **ebs: Any) -> str:
    mapping: Any = {"DeviceName": "/dev/xvda", "Ebs": ebs}
    return served.ec2.register_image(
        Name="own", Architecture="x86_64", RootDeviceName="/dev/xvda", VirtualizationType="hvm",
        BootMode="uefi", BlockDeviceMappings=[mapping],
    )["ImageId"]  # fmt: skip


def subnet_of(served: Served, zone: str) -> str:
    filters: Any = [{"Name": "availability-zone", "Values": [zone]}]
    return served.ec2.describe_subnets(Filters=filters)["Subnets"][0]["SubnetId"]


# Places


def test_a_zone_that_is_not_the_subnets_is_refused(served: Served) -> None:
    strict(served, zones_checked=True)
    subnet_id = subnet_of(served, "us-east-1b")
    with refused("InvalidParameterValue"):
        launch(served, SubnetId=subnet_id, Placement={"AvailabilityZone": "us-east-1a"})
    interfaces = [{"DeviceIndex": 0, "SubnetId": subnet_id, "AssociatePublicIpAddress": True}]
    with refused("InvalidParameterValue"):
        launch(served, NetworkInterfaces=interfaces, Placement={"AvailabilityZone": "us-east-1a"})
    instance_id = launch(served, SubnetId=subnet_id, Placement={"AvailabilityZone": "us-east-1b"})
    assert served.state.instances[instance_id].zone == "us-east-1b"
    strict(served, zones_checked=False)
    launch(served, SubnetId=subnet_id, Placement={"AvailabilityZone": "us-east-1a"})


def test_a_type_that_a_zone_does_not_have_is_refused(served: Served) -> None:
    """us-east-1e has nothing of the current generations (DescribeInstanceTypeOfferings)."""
    strict(served, zones_checked=True)
    filters: Any = [{"Name": "instance-type", "Values": ["m7i.large"]}]
    offerings = served.ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=filters
    )["InstanceTypeOfferings"]
    zones = {item["Location"] for item in offerings}
    assert "us-east-1e" not in zones
    with refused("Unsupported"):
        launch(served, InstanceType="m7i.large", Placement={"AvailabilityZone": "us-east-1e"})
    with refused("Unsupported"):
        launch(served, InstanceType="m7i.large", SubnetId=subnet_of(served, "us-east-1e"))
    instance_id = launch(served, InstanceType="m7i.large")
    assert served.state.instances[instance_id].zone in zones
    strict(served, zones_checked=False)
    launch(served, InstanceType="m7i.large", Placement={"AvailabilityZone": "us-east-1e"})


def test_subnets_may_give_no_public_addresses(served: Served) -> None:
    strict(served, public_subnets=False)
    subnets = served.ec2.describe_subnets()["Subnets"]
    assert {subnet["MapPublicIpOnLaunch"] for subnet in subnets} == {False}
    without = launched(served)
    assert served.state.instances[without].public_ip is None
    asked = launched(served, NetworkInterfaces=[{"DeviceIndex": 0, "AssociatePublicIpAddress": True}])
    assert served.state.instances[asked].public_ip
    served.ec2.modify_subnet_attribute(SubnetId=subnets[0]["SubnetId"], MapPublicIpOnLaunch={"Value": True})
    by_subnet = launched(served, SubnetId=subnets[0]["SubnetId"])
    assert served.state.instances[by_subnet].public_ip
    strict(served, public_subnets=True)
    again = served.ec2.describe_subnets()["Subnets"]
    assert {subnet["MapPublicIpOnLaunch"] for subnet in again} == {True}


def test_an_account_may_have_no_default_vpc(served: Served) -> None:
    vpc_id = served.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    strict(served, default_vpc=False)
    assert served.ec2.describe_vpcs()["Vpcs"] == []
    assert served.ec2.describe_subnets()["Subnets"] == []
    assert served.ec2.describe_security_groups()["SecurityGroups"] == []
    with refused("InvalidVpcID.NotFound"):
        served.ec2.describe_vpcs(VpcIds=[vpc_id])
    with refused("VPCIdNotSpecified"):
        launch(served)
    with refused("VPCIdNotSpecified"):
        served.ec2.create_security_group(GroupName="g", Description="g")
    own = served.ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnet_id = served.ec2.create_subnet(VpcId=own, CidrBlock="10.7.0.0/24")["Subnet"]["SubnetId"]
    served.ec2.create_security_group(GroupName="g", Description="g", VpcId=own)
    launch(served, SubnetId=subnet_id)
    assert [vpc["VpcId"] for vpc in served.ec2.describe_vpcs()["Vpcs"]] == [own]


# The account


def test_an_account_without_spots_role_gets_no_spot_until_it_is_made(served: Served) -> None:
    strict(served, spot_role=False)
    with refused("AuthFailure.ServiceLinkedRoleCreationNotPermitted"):
        launch(served, InstanceMarketOptions=SPOT)
    image_id = served.register()
    with refused("AuthFailure.ServiceLinkedRoleCreationNotPermitted"):
        served.ec2.request_spot_instances(
            LaunchSpecification={"ImageId": image_id, "InstanceType": "t3.micro"}
        )
    assert served.ec2.describe_instances()["Reservations"] == []
    launch(served)  # on demand
    iam = served.client("iam")
    with refused("NoSuchEntity"):
        iam.get_role(RoleName="AWSServiceRoleForEC2Spot")
    iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    assert iam.get_role(RoleName="AWSServiceRoleForEC2Spot")["Role"]["Path"].endswith("/spot.amazonaws.com/")
    with refused("InvalidInput"):
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    with refused("InvalidInput"):
        iam.create_service_linked_role(AWSServiceName="autoscaling.amazonaws.com")
    launch(served, InstanceMarketOptions=SPOT)


def test_the_free_plan_has_few_types(served: Served) -> None:
    strict(served, free_plan=True)
    with pytest.raises(ClientError, match="not eligible for Free Tier") as error:
        launch(served, InstanceType="m7i.large")
    assert error.value.response["Error"]["Code"] == "InvalidParameterCombination"
    launch(served, InstanceType="m7i-flex.large")
    strict(served, free_plan=False)
    launch(served, InstanceType="m7i.large")


def test_the_quota_of_vcpus_counts_machines_that_have_just_ended(served: Served) -> None:
    strict(served, vcpu_quota=4)
    first, second = launched(served), launched(served)
    with refused("VcpuLimitExceeded"):
        launch(served)
    launch(served, InstanceMarketOptions=SPOT)  # has a quota of its own
    served.ec2.terminate_instances(InstanceIds=[first])
    until(lambda: served.state.instances[first].state == "terminated")
    with refused("VcpuLimitExceeded"):
        launch(served)
    ended = served.state.instances[first].terminated_at
    assert ended is not None
    with served.state.lock:
        served.state.instances[first].terminated_at = ended.replace(year=ended.year - 1)
    third = launched(served)
    served.ec2.stop_instances(InstanceIds=[second])
    until(lambda: served.state.instances[second].state == "stopped")
    launched(served)
    with refused("VcpuLimitExceeded"):
        served.ec2.start_instances(InstanceIds=[second])
    assert served.state.instances[third].state == "running"


def test_a_launch_of_several_is_refused_if_not_all_are_within_the_quota(served: Served) -> None:
    strict(served, vcpu_quota=4)
    with refused("VcpuLimitExceeded"):
        launch(served, MinCount=1, MaxCount=3)
    assert served.ec2.describe_instances()["Reservations"] == []


# Hibernation


def sleeper(served: Served) -> str:
    mapping: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeSize": 4}}]
    return launched(
        served, InstanceType="m5.large", HibernationOptions={"Configured": True}, BlockDeviceMappings=mapping
    )


def test_hibernation_is_refused_just_after_a_launch_and_after_a_start(served: Served) -> None:
    now_s = [1000.0]
    served.state.strictness.clock = lambda: now_s[0]
    strict(served, hibernation_ready_ms=120_000)
    instance_id = sleeper(served)
    for _ in range(2):
        with pytest.raises(ClientError, match="not ready to hibernate yet") as error:
            served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
        assert error.value.response["Error"]["Code"] == "UnsupportedOperation"
        assert served.state.instances[instance_id].state == "running"
        now_s[0] += 120
        served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
        until(lambda: served.state.instances[instance_id].state == "stopped")
        served.ec2.start_instances(InstanceIds=[instance_id])
        until(lambda: served.state.instances[instance_id].state == "running")


@pytest.mark.parametrize(
    ("kept", "code"), [(True, "Client.UserInitiatedHibernate"), (False, "Client.UserInitiatedShutdown")]
)
def test_the_reason_does_not_say_whether_the_guest_hibernated(served: Served, kept: bool, code: str) -> None:
    strict(served, hibernation_reason_kept=kept)
    instance_id = sleeper(served)
    served.machine(instance_id).sleeps = False
    served.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    until(lambda: served.state.instances[instance_id].state == "stopped")
    (instance,) = served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
    assert instance["StateReason"]["Code"] == code


# Images and volumes


def test_a_registered_image_has_ec2s_defaults(served: Served) -> None:
    strict(served, register_defaults=True)
    image_id = own_image(served, SnapshotId=own_snapshot(served))
    (image,) = served.ec2.describe_images(ImageIds=[image_id])["Images"]
    ebs = image["BlockDeviceMappings"][0]["Ebs"]
    assert (ebs["DeleteOnTermination"], ebs["VolumeType"]) == (False, "gp2")
    answer = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = answer["Instances"][0]["InstanceId"]
    until(lambda: served.state.instances[instance_id].state == "running")
    volume_id = volume_of(served, instance_id)
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: served.state.instances[instance_id].state == "terminated")
    (volume,) = served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert volume["State"] == "available", "it outlives its instance"


def test_a_registered_image_has_what_was_said(served: Served) -> None:
    strict(served, register_defaults=True)
    said: Any = {"DeleteOnTermination": True, "VolumeType": "gp3"}
    image_id = own_image(served, SnapshotId=own_snapshot(served), **said)
    (image,) = served.ec2.describe_images(ImageIds=[image_id])["Images"]
    assert image["BlockDeviceMappings"][0]["Ebs"].items() >= said.items()


def test_snapshots_of_others_images_are_not_to_be_used(served: Served) -> None:
    strict(served, foreign_snapshots=True)
    (image,) = served.ec2.describe_images(ImageIds=[served.register()])["Images"]
    foreign = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    with refused("InvalidSnapshot.NotFound"):
        own_image(served, SnapshotId=foreign)
    with refused("InvalidSnapshot.NotFound"):
        served.ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=foreign)
    with refused("InvalidSnapshot.NotFound"):
        served.ec2.copy_snapshot(SourceRegion="us-east-1", SourceSnapshotId=foreign)
    mapping: Any = [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": foreign}}]
    with refused("InvalidSnapshot.NotFound"):
        launch(served, BlockDeviceMappings=mapping)
    mapping[0]["DeviceName"] = "/dev/xvda"
    launch(served, BlockDeviceMappings=mapping)  # says only what the image says
    strict(served, foreign_snapshots=False)
    served.ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=foreign)


def test_keys_and_rates_of_volumes_are_recorded_and_checked(served: Served) -> None:
    snapshot_id = own_snapshot(served)
    arguments: Any = {"AvailabilityZone": ZONE, "SnapshotId": snapshot_id}
    made = served.ec2.create_volume(
        **arguments, Encrypted=True, KmsKeyId="alias/ours", VolumeInitializationRate=300
    )
    (volume,) = served.ec2.describe_volumes(VolumeIds=[made["VolumeId"]])["Volumes"]
    for answer in (made, volume):
        assert answer["VolumeInitializationRate"] == 300
        assert answer["KmsKeyId"] == "arn:aws:kms:us-east-1:123456789012:alias/ours"
    for rate in (99, 301):
        with refused("InvalidParameterValue"):
            served.ec2.create_volume(**arguments, VolumeInitializationRate=rate)
    with refused("InvalidParameterCombination"):
        served.ec2.create_volume(AvailabilityZone=ZONE, Size=1, VolumeInitializationRate=200)
    with refused("InvalidParameterDependency"):
        served.ec2.create_volume(**arguments, KmsKeyId="alias/ours")
    ebs: Any = {"Encrypted": True, "KmsKeyId": "alias/ours", "VolumeInitializationRate": 100}
    instance_id = launched(served, BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": ebs}])
    (root,) = served.ec2.describe_volumes(VolumeIds=[volume_of(served, instance_id)])["Volumes"]
    assert (root["VolumeInitializationRate"], root["Encrypted"]) == (100, True)
    with refused("UnsupportedOperation"):
        own_image(served, SnapshotId=snapshot_id, VolumeInitializationRate=100)


# The console


def test_the_console_is_that_of_the_last_change_of_state_unless_the_latest_is_asked_for(
    served: Served,
) -> None:
    instance_id = launched(served)
    console = served.state.layout.instance(instance_id) / "console.log"

    def text(**latest: bool) -> str:
        return served.ec2.get_console_output(InstanceId=instance_id, **latest).get("Output", "")

    console.write_text("booted\n")
    assert text() == text(Latest=True) == "booted\n"
    strict(served, posted_console=True)
    assert (text(), text(Latest=True)) == ("", "booted\n")
    served.machine(instance_id).reboot = lambda: None  # type: ignore[method-assign]  # there is no guest
    served.ec2.reboot_instances(InstanceIds=[instance_id])
    with console.open("a") as stream:
        stream.write("again\n")
    assert (text(), text(Latest=True)) == ("booted\n", "booted\nagain\n")
    served.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: served.state.instances[instance_id].state == "stopped")
    assert text() == "booted\nagain\n"
