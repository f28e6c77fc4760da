"""Snapshots and images of several volumes: which bytes are in them, and what they cost on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import ZONE, completed, holds, image, launch, refused, state_of, volume_of, write
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


@pytest.mark.parametrize("running", [True, False])
def test_what_was_written_to_a_volume_is_in_one_made_from_its_snapshot(served: Served, running: bool) -> None:
    instance_id = launch(served)
    root = volume_of(served, instance_id)
    write(served.state.layout.volume(root), "a")
    if not running:
        served.ec2.stop_instances(InstanceIds=[instance_id])
        until(lambda: state_of(served, instance_id) == "stopped")
    tags: Any = [{"ResourceType": "snapshot", "Tags": [{"Key": "Project", "Value": "p"}]}]
    made = served.ec2.create_snapshot(VolumeId=root, Description="first", TagSpecifications=tags)
    assert (made["State"], made["VolumeId"], made["Tags"][0]["Value"]) == ("pending", root, "p")
    found = completed(served, made["SnapshotId"])
    assert (found["Description"], found["VolumeSize"], found["Progress"]) == ("first", 2, "100%")
    write(served.state.layout.volume(root), "b")
    copy = served.ec2.create_volume(SnapshotId=made["SnapshotId"], AvailabilityZone=ZONE)["VolumeId"]
    other = launch(served)
    served.ec2.attach_volume(VolumeId=copy, InstanceId=other, Device="/dev/sdf")
    path = served.state.layout.volume(copy)
    until(path.exists)
    assert holds(path, "a")
    # Copy-on-write: nothing but what the volume has over its own snapshot.
    assert served.state.layout.snapshot(made["SnapshotId"]).stat().st_size < 1 << 20


def test_a_snapshot_waits_for_its_copy_and_holds_up_nobody(served: Served) -> None:
    instance_id = launch(served)
    served.machine(instance_id).copying.clear()
    made = served.ec2.create_snapshot(VolumeId=volume_of(served, instance_id))
    found = served.ec2.describe_snapshots(SnapshotIds=[made["SnapshotId"]])["Snapshots"]
    assert (found[0]["State"], found[0]["Progress"]) == ("pending", "0%")
    with refused("IncorrectState"):
        served.ec2.create_volume(SnapshotId=made["SnapshotId"], AvailabilityZone=ZONE)
    served.machine(instance_id).copying.set()
    completed(served, made["SnapshotId"])


def test_a_snapshot_that_a_killed_server_did_not_finish_is_an_error(served: Served) -> None:
    instance_id = launch(served)
    machine = served.machine(instance_id)
    machine.copying.clear()
    snapshot_id = served.ec2.create_snapshot(VolumeId=volume_of(served, instance_id))["SnapshotId"]
    part = served.state.layout.snapshot(snapshot_id).with_suffix(".part")
    assert part.exists()
    served.restart()
    (found,) = served.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    assert found["State"] == "error"
    assert not part.exists()
    served.ec2.delete_snapshot(SnapshotId=snapshot_id)
    machine.copying.set()


def test_layers_are_kept_for_as_long_as_something_builds_on_them(served: Served) -> None:
    layout = served.state.layout
    first = served.ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    a = served.ec2.create_snapshot(VolumeId=first)["SnapshotId"]
    completed(served, a)
    write(layout.volume(first), "a")
    second = served.ec2.create_volume(SnapshotId=a, AvailabilityZone=ZONE)["VolumeId"]
    b = served.ec2.create_snapshot(VolumeId=second)["SnapshotId"]
    completed(served, b)
    third = served.ec2.create_volume(SnapshotId=b, Size=3, AvailabilityZone=ZONE)["VolumeId"]
    for volume_id in (first, second):
        served.ec2.delete_volume(VolumeId=volume_id)
    for snapshot_id in (a, b):
        served.ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert layout.snapshot(a).exists()
    assert layout.snapshot(b).exists()
    c = served.ec2.create_snapshot(VolumeId=third)["SnapshotId"]
    assert completed(served, c)["VolumeSize"] == 3
    served.restart()
    served.ec2.delete_volume(VolumeId=third)
    assert layout.snapshot(a).exists(), "the last snapshot's lowest layer"
    served.ec2.delete_snapshot(SnapshotId=c)
    assert list(layout.snapshots.glob("*")) == []


def test_deep_layers_are_flattened(served: Served) -> None:
    volume_id = served.ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    depths = []
    for _ in range(9):
        snapshot_id = served.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
        completed(served, snapshot_id)
        depths.append(len(served.state.snapshots[snapshot_id].layers))
        volume_id = served.ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone=ZONE)["VolumeId"]
    assert depths == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_an_image_of_a_running_instance_has_all_its_volumes(served: Served) -> None:
    mappings: Any = [
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 3, "DeleteOnTermination": False}},
        {"DeviceName": "/dev/sdg", "Ebs": {"VolumeSize": 1}},
    ]
    instance_id = launch(served, BlockDeviceMappings=mappings)
    machine = served.machine(instance_id)
    for device, letter in (("/dev/xvda", "r"), ("/dev/sdf", "f")):
        write(served.state.layout.volume(volume_of(served, instance_id, device)), letter)
    changes: Any = [{"DeviceName": "/dev/sdg", "NoDevice": ""}]
    machine.copying.clear()
    image_id = served.ec2.create_image(
        InstanceId=instance_id, Name="live", NoReboot=True, BlockDeviceMappings=changes
    )["ImageId"]
    assert image(served, image_id)["State"] == "pending"
    with refused("InvalidAMIID.Unavailable"):
        served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    machine.copying.set()
    until(lambda: image(served, image_id)["State"] == "available")
    assert served.machine(instance_id) is machine, "it was not restarted"
    root, extra = image(served, image_id)["BlockDeviceMappings"]
    assert (root["DeviceName"], root["Ebs"]["DeleteOnTermination"]) == ("/dev/xvda", True)
    assert (extra["DeviceName"], extra["Ebs"]["VolumeSize"]) == ("/dev/sdf", 3)
    assert extra["Ebs"]["DeleteOnTermination"] is False
    launched = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    other = launched["Instances"][0]["InstanceId"]
    until(lambda: state_of(served, other) == "running")
    assert holds(served.state.layout.volume(volume_of(served, other)), "r")
    assert holds(served.state.layout.volume(volume_of(served, other, "/dev/sdf")), "f")
    snapshots = {item["SnapshotId"] for item in served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert snapshots == {root["Ebs"]["SnapshotId"], extra["Ebs"]["SnapshotId"]}
    gone = served.ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
    assert {item["SnapshotId"] for item in gone["DeleteSnapshotResults"]} == snapshots


def test_mappings_of_an_image_that_make_no_sense(served: Served) -> None:
    instance_id = launch(served)
    changes: list[Any] = [
        {"DeviceName": "/dev/xvda", "NoDevice": ""},
        {"DeviceName": "/dev/sdz", "NoDevice": ""},
        {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": "snap-00000000000000000"}},
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 1}},
    ]
    for change in changes:
        with refused("InvalidBlockDeviceMapping"):
            served.ec2.create_image(InstanceId=instance_id, Name="odd", BlockDeviceMappings=[change])
    assert served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_names_that_ec2_does_not_take(served: Served) -> None:
    instance_id = launch(served)
    for name in ("x" * 129, "semi;colon"):
        with refused("InvalidAMIName.Malformed"):
            served.ec2.create_image(InstanceId=instance_id, Name=name)


def test_what_is_encrypted_stays_so(served: Served) -> None:
    mapping: Any = {"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True}}
    instance_id = launch(served, BlockDeviceMappings=[mapping])
    snapshot_id = served.ec2.create_snapshot(VolumeId=volume_of(served, instance_id))["SnapshotId"]
    assert completed(served, snapshot_id)["Encrypted"] is True
    volume_id = served.ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone=ZONE)["VolumeId"]
    assert served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["Encrypted"] is True
