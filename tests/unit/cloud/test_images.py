"""What is read back of an AMI of ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from instant_env.cloud.images import BakedImage, _from_description

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import ImageTypeDef


def described(*mappings: Any) -> BakedImage:
    image: ImageTypeDef = {
        "ImageId": "ami-1",
        "Architecture": "x86_64",
        "CreationDate": "2026-01-02T03:04:05.000Z",
        "RootDeviceName": "/dev/xvda",
        "BlockDeviceMappings": list(mappings),
    }
    return _from_description(image)


def test_the_root_device_is_told_from_other_volumes() -> None:
    image = described(
        {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 20, "SnapshotId": "snap-data"}},
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 2, "SnapshotId": "snap-root"}},
    )
    assert image.root_gib == 2
    assert image.root_snapshot_id == "snap-root"
    assert image.size_gib == 22
    assert image.snapshot_ids == ("snap-data", "snap-root")
    assert image.created == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_technique_takes_the_size_of_the_root_device() -> None:
    from instant_env.launch.techniques.custom_init import CustomInit

    image = described(
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 20, "SnapshotId": "snap-data"}},
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 2, "SnapshotId": "snap-root"}},
    )
    technique = CustomInit()
    prepared = technique.prepare(None, {str(technique.recipe): image})  # type: ignore[arg-type]
    assert prepared.root_gib == 2
