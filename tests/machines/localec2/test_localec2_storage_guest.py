"""Volumes, snapshots and images as guests see them: what one writes, another reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_cloud import switches_of
from support.tiny_cloud import served

if TYPE_CHECKING:
    from support.tiny_cloud import Guest, TinyCloud

    from instant_env.arch import Arch

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]

ZONE = "us-east-1a"


def write(guest: Guest, device: str, text: str) -> None:
    guest.run(f"mke2fs -q {device} && mount {device} /mnt && echo {text} >/mnt/file && umount /mnt")


def read(guest: Guest, device: str) -> str:
    return guest.run(f"mount {device} /mnt && cat /mnt/file && umount /mnt")


@pytest.fixture
def oddly_placed_cloud(
    tmp_path: Path, guest_arch: Arch, request: pytest.FixtureRequest
) -> Iterator[TinyCloud]:
    """A server whose files have all that QEMU's options, URIs and shells take for something else."""
    yield from served(tmp_path / "in 'st', \"ä\" a=b:c %20 @@ $HOME", guest_arch, switches_of(request))


def test_what_one_guest_writes_another_reads(oddly_placed_cloud: TinyCloud) -> None:
    tiny_cloud = oddly_placed_cloud
    ec2 = tiny_cloud.ec2
    mappings: Any = [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}}]
    first = tiny_cloud.launch_tiny(BlockDeviceMappings=mappings)
    guest = tiny_cloud.login(first)
    filters: Any = [
        {"Name": "attachment.instance-id", "Values": [first]},
        {"Name": "attachment.device", "Values": ["/dev/sdf"]},
    ]
    (volume,) = ec2.describe_volumes(Filters=filters)["Volumes"]
    device = guest.device(volume["VolumeId"])
    write(guest, device, "before")

    # The guest writes on while its volume is copied: what it wrote first is in the snapshot, all else is not.
    snapshot_id = ec2.create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"]
    guest.run(f"mount {device} /mnt && echo after >/mnt/file && sync && umount /mnt")
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot_id], WaiterConfig={"Delay": 1})

    # An image of both its volumes while it runs; the memory disk of the guest says that it was not rebooted.
    guest.run("echo still here >/run/mark")
    image_id = ec2.create_image(InstanceId=first, Name="both", NoReboot=True)["ImageId"]
    ec2.get_waiter("image_available").wait(ImageIds=[image_id], WaiterConfig={"Delay": 1})
    assert guest.run("cat /run/mark") == "still here"
    ec2.terminate_instances(InstanceIds=[first])

    second = tiny_cloud.launch(image_id, KeyName="tests", SecurityGroupIds=[tiny_cloud.group_id])
    other = tiny_cloud.login(second)
    filters[0]["Values"] = [second]
    (copied,) = ec2.describe_volumes(Filters=filters)["Volumes"]
    assert read(other, other.device(copied["VolumeId"])) == "after"

    volume_id = ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone=ZONE)["VolumeId"]
    ec2.attach_volume(VolumeId=volume_id, InstanceId=second, Device="/dev/sdg")
    assert read(other, other.device(volume_id)) == "before"
    ec2.detach_volume(VolumeId=volume_id)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1})


def test_a_volume_that_grew_is_larger_at_the_next_start(tiny_cloud: TinyCloud) -> None:
    """ModifyVolume of an attached volume; QEMU's NVMe device tells a running guest nothing."""
    ec2, instance_id = tiny_cloud.ec2, tiny_cloud.launch_tiny()
    tiny_cloud.login(instance_id)
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance_id]}])[
        "Volumes"
    ]
    volume_id, size_gib = volume["VolumeId"], volume["Size"] + 2
    ec2.modify_volume(VolumeId=volume_id, Size=size_gib)
    tiny_cloud.wait(instance_id, "running")
    ec2.stop_instances(InstanceIds=[instance_id])
    tiny_cloud.wait(instance_id, "stopped")
    ec2.start_instances(InstanceIds=[instance_id])
    sectors = tiny_cloud.login(instance_id).run("cat /sys/block/nvme0n1/size")
    assert int(sectors) * 512 == size_gib << 30
