"""What EC2 says late, switch by switch, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.localec2_served import completed, refused, state_of, volume_of
from support.strict_served import launch, launched, strict

from instant_env.cloud.keys import KeyPair

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

LATE_S = 10.0


class Clock:
    """Stands still until it is moved."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(served: Served) -> Clock:
    clock = Clock()
    served.state.strictness.clock = clock
    return clock


def grow_old(served: Served) -> None:
    """Everything that is there is known from now on."""
    clock: Any = served.state.strictness.clock
    clock.now_s += LATE_S


def a_group(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    group_id = served.ec2.create_security_group(GroupName="new", Description="new")["GroupId"]
    return (
        group_id,
        [
            lambda i: served.ec2.describe_security_groups(GroupIds=[i]),
            lambda i: served.ec2.authorize_security_group_ingress(
                GroupId=i, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="10.0.0.1/32", DryRun=True
            ),
            lambda _: served.ec2.describe_security_groups(GroupNames=["new"]),
        ],
        "InvalidGroup.NotFound",
    )


def a_key(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    material = KeyPair.generate().public_openssh.encode()
    key_id = served.ec2.import_key_pair(KeyName="new", PublicKeyMaterial=material)["KeyPairId"]
    image_id = served.register()
    return (
        key_id,
        [
            lambda i: served.ec2.describe_key_pairs(KeyPairIds=[i]),
            lambda _: served.ec2.describe_key_pairs(KeyNames=["new"]),
            lambda _: served.ec2.run_instances(
                ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1, KeyName="new", DryRun=True
            ),
        ],
        "InvalidKeyPair.NotFound",
    )


def a_volume(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    volume_id = served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    return (
        volume_id,
        [
            lambda i: served.ec2.describe_volumes(VolumeIds=[i]),
            lambda i: served.ec2.create_snapshot(VolumeId=i, DryRun=True),
        ],
        "InvalidVolume.NotFound",
    )


def an_interface(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    subnet_id = served.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    answer = served.ec2.create_network_interface(SubnetId=subnet_id)
    return (
        answer["NetworkInterface"]["NetworkInterfaceId"],
        [
            lambda i: served.ec2.describe_network_interfaces(NetworkInterfaceIds=[i]),
            lambda i: served.ec2.delete_network_interface(NetworkInterfaceId=i, DryRun=True),
        ],
        "InvalidNetworkInterfaceID.NotFound",
    )


def an_instance(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    return (
        launch(served),
        [
            lambda i: served.ec2.describe_instances(InstanceIds=[i]),
            lambda i: served.ec2.terminate_instances(InstanceIds=[i], DryRun=True),
            lambda i: served.ec2.create_tags(Resources=[i], Tags=[{"Key": "a", "Value": "b"}], DryRun=True),
        ],
        "InvalidInstanceID.NotFound",
    )


def an_image(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    instance_id = launched(served)
    grow_old(served)
    image_id = served.ec2.create_image(InstanceId=instance_id, Name="new image", NoReboot=True)["ImageId"]
    return (
        image_id,
        [
            lambda i: served.ec2.describe_images(ImageIds=[i]),
            lambda i: served.ec2.deregister_image(ImageId=i, DryRun=True),
        ],
        "InvalidAMIID.NotFound",
    )


def a_snapshot(served: Served) -> tuple[str, list[Callable[[str], Any]], str]:
    volume_id = served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    grow_old(served)
    return (
        served.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"],
        [
            lambda i: served.ec2.describe_snapshots(SnapshotIds=[i]),
            lambda i: served.ec2.delete_snapshot(SnapshotId=i, DryRun=True),
        ],
        "InvalidSnapshot.NotFound",
    )


def _listed(served: Served) -> Iterator[str]:
    """The ids of everything that the listings show."""
    ec2 = served.ec2
    yield from (item["GroupId"] for item in ec2.describe_security_groups()["SecurityGroups"])
    yield from (item["KeyPairId"] for item in ec2.describe_key_pairs()["KeyPairs"])
    yield from (item["VolumeId"] for item in ec2.describe_volumes()["Volumes"])
    yield from (item["SnapshotId"] for item in ec2.describe_snapshots()["Snapshots"])
    yield from (item["ImageId"] for item in ec2.describe_images()["Images"])
    yield from (item["NetworkInterfaceId"] for item in ec2.describe_network_interfaces()["NetworkInterfaces"])
    yield from (i["InstanceId"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"])


def _finds(calls: list[Callable[[str], Any]], code: str, resource_id: str) -> set[bool]:
    """Whether each of the calls that name a resource finds it; a dry run ends with a refusal of its own."""
    found = set()
    for call in calls:
        answer = ""
        try:
            call(resource_id)
        except ClientError as error:
            answer = error.response["Error"]["Code"]
        assert answer in ("", code, "DryRunOperation")
        found.add(answer != code)
    return found


@pytest.mark.parametrize(
    "make",
    [a_group, a_key, a_volume, an_interface, an_instance, an_image, a_snapshot],
    ids=lambda m: m.__name__,
)
def test_what_is_new_is_unknown_then_known_then_unknown_again(
    served: Served, clock: Clock, make: Callable[[Served], tuple[str, list[Callable[[str], Any]], str]]
) -> None:
    """By its id, by its name, in every call that names it, and in the listing."""
    strict(served, late_ms=LATE_S * 1000)
    resource_id, calls, code = make(served)
    made_s = clock.now_s
    for age_s, known in (
        (0, False),
        (4.9, False),
        (5.1, True),
        (7.4, True),
        (7.6, False),
        (9.9, False),
        (10, True),
    ):
        clock.now_s = made_s + age_s
        assert _finds(calls, code, resource_id) == {known}, age_s
        assert (resource_id in set(_listed(served))) is known, age_s


def test_a_new_profile_cannot_be_launched_with_at_first(served: Served, clock: Clock) -> None:
    strict(served, late_ms=LATE_S * 1000)
    iam = served.client("iam")
    iam.create_instance_profile(InstanceProfileName="builders")
    for profile in ({"Name": "builders"}, {"Arn": "arn:aws:iam::123456789012:instance-profile/builders"}):
        with pytest.raises(ClientError, match=r"\(InvalidParameterValue\).*iamInstanceProfile"):
            launch(served, IamInstanceProfile=profile)
    clock.now_s += LATE_S
    launch(served, IamInstanceProfile={"Name": "builders"})


def test_a_stock_image_has_been_there_for_long(served: Served, clock: Clock) -> None:
    strict(served, late_ms=LATE_S * 1000)
    image_id = served.register()
    assert served.ec2.describe_images(ImageIds=[image_id])["Images"]


def test_a_server_that_has_started_anew_knows_what_it_has(served: Served, clock: Clock) -> None:
    strict(served, late_ms=LATE_S * 1000)
    volume_id = served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    served.restart()
    strict(served, late_ms=LATE_S * 1000)
    assert served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]


def test_tags_are_found_later_than_what_has_them(served: Served, clock: Clock) -> None:
    strict(served, late_tags_ms=LATE_S * 1000)
    tags: Any = [{"ResourceType": "volume", "Tags": [{"Key": "run", "Value": "1"}]}]
    volume_id = served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, TagSpecifications=tags)[
        "VolumeId"
    ]
    instance_id = launch(
        served,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "run", "Value": "1"}]}],
    )
    by_tag: Any = [{"Name": "tag:run", "Values": ["1"]}]
    by_key: Any = [{"Name": "tag-key", "Values": ["run"]}]
    for filters in (by_tag, by_key):
        assert served.ec2.describe_volumes(Filters=filters)["Volumes"] == []
        assert served.ec2.describe_instances(Filters=filters)["Reservations"] == []
    (volume,) = served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert volume["Tags"] == [{"Key": "run", "Value": "1"}], "the thing itself is known"
    clock.now_s += LATE_S
    for filters in (by_tag, by_key):
        assert [v["VolumeId"] for v in served.ec2.describe_volumes(Filters=filters)["Volumes"]] == [volume_id]
        assert len(served.ec2.describe_instances(Filters=filters)["Reservations"]) == 1
    served.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "later", "Value": "x"}])
    late: Any = [{"Name": "tag:later", "Values": ["x"]}]
    assert served.ec2.describe_instances(Filters=late)["Reservations"] == []
    assert len(served.ec2.describe_instances(Filters=by_tag)["Reservations"]) == 1, "the older tag is known"
    clock.now_s += LATE_S
    assert len(served.ec2.describe_instances(Filters=late)["Reservations"]) == 1


def test_a_public_address_comes_after_running(served: Served, clock: Clock) -> None:
    strict(served, late_address_ms=LATE_S * 1000)
    instance_id = launched(served)

    def addresses() -> list[str | None]:
        (instance,) = served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
        (interface,) = served.ec2.describe_network_interfaces()["NetworkInterfaces"]
        assert instance["PrivateIpAddress"], "which is there from the beginning"
        return [instance.get("PublicIpAddress"), interface.get("Association", {}).get("PublicIp")]

    assert state_of(served, instance_id) == "running"
    assert addresses() == [None, None]
    clock.now_s += LATE_S
    (first, second) = addresses()
    assert first == second == served.state.instances[instance_id].public_ip
    by_address: Any = [{"Name": "ip-address", "Values": [first]}]
    assert len(served.ec2.describe_instances(Filters=by_address)["Reservations"]) == 1


def test_an_elastic_address_is_known_before_its_machine_runs(served: Served, clock: Clock) -> None:
    subnet_id = served.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    interface_id = served.ec2.create_network_interface(SubnetId=subnet_id)["NetworkInterface"][
        "NetworkInterfaceId"
    ]
    address = served.ec2.allocate_address()
    served.ec2.associate_address(AllocationId=address["AllocationId"], NetworkInterfaceId=interface_id)
    strict(served, late_address_ms=LATE_S * 1000)
    instance_id = launched(served, NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": interface_id}])
    (instance,) = served.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
    assert instance["PublicIpAddress"] == address["PublicIp"]


def test_a_snapshot_stays_in_use_after_its_image_has_gone(served: Served, clock: Clock) -> None:
    strict(served, snapshot_in_use_ms=LATE_S * 1000)
    instance_id = launched(served)
    made = [
        served.ec2.create_image(InstanceId=instance_id, Name=f"image {n}", NoReboot=True)["ImageId"]
        for n in (1, 2)
    ]
    snapshots = [
        served.ec2.describe_images(ImageIds=[i])["Images"][0]["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
        for i in made
    ]
    for snapshot_id in snapshots:
        completed(served, snapshot_id)
    served.ec2.deregister_image(ImageId=made[0])
    with refused("InvalidSnapshot.InUse"):
        served.ec2.delete_snapshot(SnapshotId=snapshots[0])
    clock.now_s += LATE_S
    served.ec2.delete_snapshot(SnapshotId=snapshots[0])
    served.ec2.deregister_image(ImageId=made[1], DeleteAssociatedSnapshots=True)
    with refused("InvalidSnapshot.NotFound"):
        served.ec2.describe_snapshots(SnapshotIds=[snapshots[1]])


def test_a_volume_of_a_launch_is_late_as_its_machine_is(served: Served, clock: Clock) -> None:
    strict(served, late_ms=LATE_S * 1000)
    instance_id = launched(served)
    clock.now_s += LATE_S
    assert volume_of(served, instance_id)
