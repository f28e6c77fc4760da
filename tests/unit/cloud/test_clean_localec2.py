"""`clean` against localec2: protected and disabled AMIs, which moto does not know, and no auto-scaling."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from instant_env.cloud.interfaces import make_public_interface
from instant_env.cloud.janitor import Policy, Survey, survey
from instant_env.cloud.removal import KINDS, remove
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, tag_list, tag_specifications
from instant_env.settings import CloudName, Settings

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

NOW = datetime.now(UTC) + timedelta(minutes=1)


def cloud_of(served: Served, directory: Path) -> Cloud:
    server = served.state.server
    session = boto3.Session(server.access_key_id, server.secret_access_key, region_name="us-east-1")
    return Cloud(
        name=CloudName.LOCAL, settings=Settings(state_dir=directory), ec2=served.ec2, ssm=served.ssm,
        instance_connect=served.client("ec2-instance-connect"), region="us-east-1", ssh_port=22,
        caller_ip_url="", accelerator="tcg", session=session, endpoint_url=served.server.url,
    )  # fmt: skip


def own(served: Served, name: str) -> str:
    tags: Any = tag_list("r", Role.IMAGE, name=name, extra={"recipe": "minimal"})
    image_id = served.ec2.copy_image(
        Name=name, SourceImageId=served.register(), SourceRegion="us-east-1",
        TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")],
    )["ImageId"]  # fmt: skip
    while served.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"] != "available":
        time.sleep(0.02)
    return image_id


def test_protected_and_disabled_images_stay_with_their_snapshots(served: Served, tmp_path: Path) -> None:
    cloud = cloud_of(served, tmp_path)
    free, protected, disabled, launched = (own(served, f"image-{n}") for n in range(4))
    served.ec2.enable_image_deregistration_protection(ImageId=protected)
    served.ec2.disable_image(ImageId=disabled)
    instance = served.ec2.run_instances(ImageId=launched, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = instance["Instances"][0]["InstanceId"]
    found = survey(cloud, Policy(keep=0, everything=True), NOW)
    assert [(row.kind, row.id) for row in found.removals] == [("image", free)]
    reasons = {row.id: row.reason for row in found.kept}
    assert reasons[protected] == "protected from deregistration"
    assert reasons[launched].startswith(f"instance {instance_id} (")
    (snapshot,) = served.ec2.describe_images(ImageIds=[free])["Images"][0]["BlockDeviceMappings"]
    assert remove(cloud, found.removals, lambda _: None).failures == []
    left = {item["SnapshotId"] for item in served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert snapshot["Ebs"]["SnapshotId"] not in left
    assert len(left) == 3
    assert survey(cloud, Policy(keep=0, everything=True), NOW).removals == []


def test_what_a_dead_run_left_of_every_kind_goes(served: Served, tmp_path: Path) -> None:
    cloud, ec2 = cloud_of(served, tmp_path), served.ec2
    tags = tag_list("r", Role.BENCH, name="n", expires_at=NOW - timedelta(hours=1))

    def of(kind: str) -> Any:
        return [{"ResourceType": kind, "Tags": tags}]

    volume = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", TagSpecifications=of("volume"))[
        "VolumeId"
    ]
    snapshot = ec2.create_snapshot(VolumeId=volume, TagSpecifications=of("snapshot"))["SnapshotId"]
    while ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"] != "completed":
        time.sleep(0.02)
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_security_group(GroupName="g", Description="g", TagSpecifications=of("security-group"))
    ec2.create_key_pair(KeyName="k", TagSpecifications=of("key-pair"))
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=of("network-interface"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=of("elastic-ip"))
    upload = cloud.client("ebs").start_snapshot(VolumeSize=1, Tags=tags)["SnapshotId"]
    ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        TagSpecifications=of("instance"),
    )  # fmt: skip
    found = survey(cloud, Policy(), NOW)
    kinds = sorted(row.kind for row in found.removals)
    assert kinds == sorted([*(KINDS - {"image", "image-copy"}), "snapshot"])
    assert upload in {row.id for row in found.removals}
    told: list[str] = []
    assert remove(cloud, found.removals, told.append).failures == []
    assert [line for line in told if not line.startswith("removed ")] == []
    assert survey(cloud, Policy(), NOW).removals == []


def test_one_clean_after_a_killed_run_is_enough(served: Served, tmp_path: Path) -> None:
    """As `bench` leaves a race of prealloc-eni when it is killed: a machine has the interface, with the
    address and the group, and a volume beside; all of them are in use until the machine has ended."""
    cloud, ec2 = cloud_of(served, tmp_path), served.ec2
    expires_at = NOW - timedelta(hours=1)
    group = ec2.create_security_group(
        GroupName="g", Description="g",
        TagSpecifications=tag_specifications(
            "security-group", run_id="r", role=Role.BENCH, name="g", expires_at=expires_at
        ),
    )["GroupId"]  # fmt: skip
    made = make_public_interface(
        cloud, security_group_id=group, run_id="r", role=Role.POOL, name="eni", expires_at=expires_at
    )
    machine = ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": made.interface_id}],
        TagSpecifications=tag_specifications(
            "instance", "volume", run_id="r", role=Role.BENCH, name="n", expires_at=expires_at
        ),
    )["Instances"][0]["InstanceId"]  # fmt: skip
    volume = ec2.create_volume(
        Size=1, AvailabilityZone=made.zone,
        TagSpecifications=tag_specifications(
            "volume", run_id="r", role=Role.BENCH, name="v", expires_at=expires_at
        ),
    )["VolumeId"]  # fmt: skip
    while (
        ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]["State"]["Name"]
        != "running"
    ):
        time.sleep(0.02)
    ec2.attach_volume(VolumeId=volume, InstanceId=machine, Device="/dev/sdf")
    removals = survey(cloud, Policy(), NOW).removals
    assert {(row.kind, row.id) for row in removals} == {
        ("instance", machine), ("network-interface", made.interface_id), ("elastic-ip", made.allocation_id),
        ("volume", volume), ("security-group", group),
    }  # fmt: skip
    assert remove(cloud, removals, lambda _: None).failures == []
    assert survey(cloud, Policy(everything=True), NOW) == Survey([], [])
    assert ec2.describe_addresses()["Addresses"] == []
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []


def test_a_machine_that_is_ending_already_frees_what_it_has(served: Served, tmp_path: Path) -> None:
    """The run was killed after it had asked for the machine's end: only the interface is left to remove."""
    cloud, ec2 = cloud_of(served, tmp_path), served.ec2
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    made = make_public_interface(
        cloud, security_group_id=group, run_id="r", role=Role.POOL, name="eni",
        expires_at=NOW - timedelta(hours=1),
    )  # fmt: skip
    machine = ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": made.interface_id}],
        TagSpecifications=tag_specifications("instance", run_id="r", role=Role.BENCH, name="n"),
    )["Instances"][0]["InstanceId"]  # fmt: skip
    ec2.terminate_instances(InstanceIds=[machine])
    removals = survey(cloud, Policy(), NOW).removals
    assert [row.kind for row in removals] == ["network-interface", "elastic-ip"]
    assert remove(cloud, removals, lambda _: None).failures == []
    assert ec2.describe_addresses()["Addresses"] == []
