"""Images, snapshots and volumes as an API client sees them."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import image, launch, refused, state_of
from support.patience import until

from instant_env.localec2.qemu import disks

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def stopped(served: Served) -> str:
    """A stopped instance."""
    instance_id = launch(served)
    served.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "stopped")
    return instance_id


def bake(served: Served, instance_id: str, name: str) -> str:
    tags: Any = [
        {"ResourceType": kind, "Tags": [{"Key": "Project", "Value": "p"}]} for kind in ("image", "snapshot")
    ]
    image_id = served.ec2.create_image(InstanceId=instance_id, Name=name, TagSpecifications=tags)["ImageId"]
    until(lambda: image(served, image_id)["State"] == "available")
    return str(image_id)


def test_no_images_but_those_that_can_boot(served: Served) -> None:
    assert served.ec2.describe_images()["Images"] == []


def test_a_stock_image_has_its_owner_and_its_parameter(served: Served) -> None:
    name = "/aws/service/debian/release/12/latest/amd64"
    with refused("ParameterNotFound"):
        served.ssm.get_parameter(Name=name)
    image_id = served.register()
    assert served.ssm.get_parameter(Name=name)["Parameter"]["Value"] == image_id
    assert image(served, image_id)["OwnerId"] == "136693071363"
    assert served.ec2.describe_images(Owners=["self"])["Images"] == []
    assert served.register() == image_id, "the same bytes are the same image"
    newer = served.register("debian-12-newer", "fedcba9876543210")
    assert newer != image_id
    assert served.ssm.get_parameter(Name=name)["Parameter"]["Value"] == newer
    with refused("InvalidAMIID.NotFound"):
        image(served, image_id)


def test_an_image_of_a_stopped_instance(served: Served) -> None:
    instance_id = stopped(served)
    image_id = bake(served, instance_id, "baked-1")
    made = image(served, image_id)
    assert made["SourceInstanceId"] == instance_id
    assert made["Tags"] == [{"Key": "Project", "Value": "p"}]
    ebs = made["BlockDeviceMappings"][0]["Ebs"]
    (snapshot,) = served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert ebs["SnapshotId"] == snapshot["SnapshotId"]
    assert (snapshot["State"], snapshot["Progress"], snapshot["VolumeSize"]) == ("completed", "100%", 2)
    assert served.state.layout.snapshot(snapshot["SnapshotId"]).exists()
    with refused("InvalidAMIName.Duplicate"):
        served.ec2.create_image(InstanceId=instance_id, Name="baked-1")
    with refused("InvalidSnapshot.InUse"):
        served.ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
    served.ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
    assert served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
    assert not served.state.layout.snapshot(snapshot["SnapshotId"]).exists()


def test_an_image_of_a_running_instance_restarts_it(served: Served) -> None:
    instance_id = launch(served)
    launched = served.machine(instance_id)
    image_id = served.ec2.create_image(InstanceId=instance_id, Name="rebooted")["ImageId"]
    assert image(served, image_id)["State"] == "pending"
    until(lambda: image(served, image_id)["State"] == "available")
    until(lambda: state_of(served, instance_id) == "running")
    assert served.machine(instance_id) is not launched


def test_an_instance_can_be_terminated_while_its_image_is_made(served: Served) -> None:
    instance_id = launch(served)
    image_id = served.ec2.create_image(InstanceId=instance_id, Name="last")["ImageId"]
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "terminated")
    assert image(served, image_id)["State"] == "available"


def test_an_image_whose_copy_fails_says_why_and_the_instance_is_back(served: Served) -> None:
    instance_id = launch(served)
    (volume,) = served.ec2.describe_volumes()["Volumes"]
    served.state.layout.volume(volume["VolumeId"]).write_bytes(b"no disk")
    image_id = served.ec2.create_image(InstanceId=instance_id, Name="broken")["ImageId"]
    until(lambda: image(served, image_id)["State"] == "failed")
    assert image(served, image_id)["StateReason"]["Message"]
    (snapshot,) = served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert snapshot["State"] == "error"
    until(lambda: state_of(served, instance_id) == "running")


def test_a_deleted_snapshot_keeps_its_bytes_for_volumes_that_build_on_it(served: Served) -> None:
    image_id = bake(served, stopped(served), "baked")
    snapshot_id = image(served, image_id)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    volume_id = served.ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone="us-east-1a")["VolumeId"]
    served.ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
    assert served.state.layout.snapshot(snapshot_id).exists()
    served.ec2.delete_volume(VolumeId=volume_id)
    assert not served.state.layout.snapshot(snapshot_id).exists()


def test_volumes_are_attached_and_detached(served: Served) -> None:
    instance_id = launch(served)
    volume_id = served.ec2.create_volume(Size=3, AvailabilityZone="us-east-1a", VolumeType="gp3")["VolumeId"]
    served.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    (volume,) = served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert (volume["State"], volume["Attachments"][0]["Device"]) == ("in-use", "/dev/sdf")
    with refused("VolumeInUse"):
        served.ec2.delete_volume(VolumeId=volume_id)
    with refused("VolumeInUse"):
        served.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdg")
    served.ec2.detach_volume(VolumeId=volume_id)
    until(lambda: served.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["State"] == "available")
    served.ec2.delete_volume(VolumeId=volume_id)
    with refused("InvalidVolume.NotFound"):
        served.ec2.describe_volumes(VolumeIds=[volume_id])


def test_volumes_that_make_no_sense(served: Served) -> None:
    with refused("InvalidZone.NotFound"):
        served.ec2.create_volume(Size=1, AvailabilityZone="mars-1a")
    with refused("InvalidSnapshot.NotFound"):
        served.ec2.create_volume(SnapshotId="snap-00000000000000000", AvailabilityZone="us-east-1a")
    with refused("MissingParameter"):
        served.ec2.create_volume(AvailabilityZone="us-east-1a")
    with refused("InvalidParameterDependency"):
        served.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", KmsKeyId="alias/mine")
    with refused("UnsupportedOperation"):
        served.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", MultiAttachEnabled=True)


def test_a_volume_that_is_not_deleted_with_its_instance_lives_on(served: Served) -> None:
    mapping = {"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": False}}
    instance_id = launch(served, BlockDeviceMappings=[mapping])
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: state_of(served, instance_id) == "terminated")
    (volume,) = served.ec2.describe_volumes()["Volumes"]
    assert volume["State"] == "available"


def test_two_programs_that_register_the_same_stock_image_at_once_get_the_same_ami(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bakes side by side: the base of the first must not count as outdated."""
    together = threading.Barrier(2)
    copy = disks.copy

    def slow_copy(source: Path, target: Path) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.5)  # both copy at once, where nothing keeps them from it
        copy(source, target)

    monkeypatch.setattr(disks, "copy", slow_copy)
    served.disk("debian-12-test")
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: served.register(), range(2))
    assert first == second
    assert [image["ImageId"] for image in served.ec2.describe_images()["Images"]] == [first]


def test_a_lock_is_kept_only_while_somebody_has_it(served: Served) -> None:
    """A server that lives for weeks had one of each volume and snapshot that there ever was."""
    locks = served.services.lifecycle.storage.locks
    zone = f"{served.state.region}a"
    for _ in range(3):
        volume_id = served.ec2.create_volume(AvailabilityZone=zone, Size=1)["VolumeId"]
        snapshot_id = served.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
        served.ec2.get_waiter("snapshot_completed").wait(
            SnapshotIds=[snapshot_id], WaiterConfig={"Delay": 0, "MaxAttempts": 5000}
        )
        served.ec2.delete_volume(VolumeId=volume_id)
    assert len(locks) == 0
    sizes = []

    def hold() -> None:
        with locks.held("one"):
            sizes.append(len(locks))

    with locks.held("one"):
        assert len(locks) == 1
        waiting = threading.Thread(target=hold)
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive(), "two have the lock at once"
    waiting.join(60)
    assert sizes == [1], "the second had the same"
    assert len(locks) == 0
