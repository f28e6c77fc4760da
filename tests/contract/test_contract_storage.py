"""Volumes, snapshots and images: the bytes that a guest wrote are those that another reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.contract_cloud import refused

from instant_env.cloud.tags import read_tags

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)


@pytest.mark.slow
def test_a_volume_written_in_one_guest_is_read_in_another(
    contract: ContractCloud, first: str, second: str
) -> None:
    """By way of a snapshot, taken while the volume is attached."""
    ec2 = contract.ec2
    writer, reader = contract.login(first), contract.login(second)
    zones = {contract.describe(i)["Placement"]["AvailabilityZone"] for i in (first, second)}
    zone = contract.describe(first)["Placement"]["AvailabilityZone"]
    volume_id = ec2.create_volume(AvailabilityZone=zone, Size=1, TagSpecifications=contract.tags("volume"))[
        "VolumeId"
    ]
    ec2.get_waiter("volume_available").wait(
        VolumeIds=[volume_id], WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    attachment = ec2.attach_volume(VolumeId=volume_id, InstanceId=first, Device="/dev/sdf")
    assert attachment["State"] in ("attaching", "attached")
    device = writer.device(volume_id)
    assert writer.run(f"blockdev --getsize64 {device}") == str(1024**3)
    writer.run(f"mkdir -p /mnt/a && mke2fs {device} && mount {device} /mnt/a")
    digest = writer.run(
        "dd if=/dev/urandom of=/mnt/a/data bs=64k count=16 2>/dev/null && sha256sum </mnt/a/data"
    )
    writer.run("sync")
    snapshot_id = ec2.create_snapshot(
        VolumeId=volume_id, Description="contract", TagSpecifications=contract.tags("snapshot")
    )["SnapshotId"]
    writer.run("echo later >/mnt/a/later && sync")
    ec2.get_waiter("snapshot_completed").wait(
        SnapshotIds=[snapshot_id], WaiterConfig={"Delay": 1, "MaxAttempts": 600}
    )
    (snapshot,) = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    assert (snapshot["VolumeId"], snapshot["VolumeSize"]) == (volume_id, 1)
    assert read_tags(snapshot["Tags"])["instant-env:run"] == contract.run_id

    copy_id = ec2.create_volume(
        AvailabilityZone=contract.describe(second)["Placement"]["AvailabilityZone"], SnapshotId=snapshot_id,
        TagSpecifications=contract.tags("volume"),
    )["VolumeId"]  # fmt: skip
    ec2.get_waiter("volume_available").wait(VolumeIds=[copy_id], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    ec2.attach_volume(VolumeId=copy_id, InstanceId=second, Device="/dev/sdf")
    device = reader.device(copy_id)
    assert reader.run(f"mkdir -p /mnt/b && mount {device} /mnt/b && sha256sum </mnt/b/data") == digest
    assert reader.status("test -e /mnt/b/later") == 1, "what was written after the snapshot is not in it"

    with refused("VolumeInUse"):
        ec2.attach_volume(VolumeId=volume_id, InstanceId=second, Device="/dev/sdg")
    with refused("VolumeInUse"):
        ec2.delete_volume(VolumeId=volume_id)
    writer.run("umount /mnt/a")
    reader.run("umount /mnt/b")
    for each in (volume_id, copy_id):
        ec2.detach_volume(VolumeId=each)
        ec2.get_waiter("volume_available").wait(
            VolumeIds=[each], WaiterConfig={"Delay": 1, "MaxAttempts": 120}
        )
        ec2.delete_volume(VolumeId=each)
    serial = volume_id.replace("-", "")
    gone = contract.eventually(
        lambda: writer.run("cat /sys/block/nvme*/device/serial"), lambda text: serial not in text
    )
    assert serial not in gone
    ec2.delete_snapshot(SnapshotId=snapshot_id)
    assert len(zones) >= 1


def test_mistakes_with_volumes(contract: ContractCloud, first: str) -> None:
    ec2 = contract.ec2
    (root,) = contract.wait(first, "running")["BlockDeviceMappings"]
    volume_id = root["Ebs"]["VolumeId"]
    with refused("VolumeInUse"):
        ec2.delete_volume(VolumeId=volume_id)
    with refused("InvalidSnapshot.NotFound"):
        ec2.create_volume(AvailabilityZone=contract.zone, SnapshotId="snap-0123456789abcdef0")
    with refused("IncorrectState"):
        lone = ec2.create_volume(
            AvailabilityZone=contract.zone, Size=1, TagSpecifications=contract.tags("volume")
        )["VolumeId"]
        ec2.get_waiter("volume_available").wait(VolumeIds=[lone], WaiterConfig={"Delay": 1})
        ec2.detach_volume(VolumeId=lone)
    ec2.delete_volume(VolumeId=lone)


def test_an_image_of_a_running_machine(contract: ContractCloud, first: str) -> None:
    ec2, name = contract.ec2, contract.name("image")
    image_id = ec2.create_image(
        InstanceId=first, Name=name, Description="contract", NoReboot=True,
        TagSpecifications=contract.tags("image", "snapshot"),
    )["ImageId"]  # fmt: skip
    with refused("InvalidAMIName.Duplicate"):
        ec2.create_image(InstanceId=first, Name=name, NoReboot=True)
    (image,) = ec2.describe_images(ImageIds=[image_id])["Images"]
    assert image["State"] in ("pending", "available")
    ec2.get_waiter("image_available").wait(ImageIds=[image_id], WaiterConfig={"Delay": 1, "MaxAttempts": 900})
    (image,) = ec2.describe_images(ImageIds=[image_id], Owners=["self"])["Images"]
    (parent,) = ec2.describe_images(ImageIds=[contract.image_id])["Images"]
    for same in ("Architecture", "RootDeviceName", "VirtualizationType", "BootMode"):
        assert image.get(same) == parent.get(same), same
    assert (image["Name"], image["Public"], image["RootDeviceType"]) == (name, False, "ebs")
    (mapping,) = image["BlockDeviceMappings"]
    snapshot_id = mapping["Ebs"]["SnapshotId"]
    with refused("InvalidSnapshot.InUse"):
        ec2.delete_snapshot(SnapshotId=snapshot_id)
    ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
    with refused("InvalidAMIID.NotFound"):
        ec2.describe_images(ImageIds=[image_id])
    with refused("InvalidSnapshot.NotFound"):
        ec2.describe_snapshots(SnapshotIds=[snapshot_id])
    assert contract.describe(first)["State"]["Name"] == "running"
