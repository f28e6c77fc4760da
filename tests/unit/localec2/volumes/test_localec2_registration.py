"""RegisterImage from snapshots, and attributes of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import ZONE, completed, holds, image, launch, refused, state_of, volume_of, write
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

NO_SNAPSHOT = "snap-00000000000000000"


def snapshot(served: Served, letter: str, size_gib: int = 1) -> str:
    volume_id = served.ec2.create_volume(Size=size_gib, AvailabilityZone=ZONE)["VolumeId"]
    first = served.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    completed(served, first)
    write(served.state.layout.volume(volume_id), letter)
    snapshot_id = served.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    completed(served, snapshot_id)
    return str(snapshot_id)


def registration(root: str, **more: Any) -> dict[str, Any]:
    mapping = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": root}}
    return {
        "Name": "registered", "Architecture": "x86_64", "RootDeviceName": "/dev/xvda", "BootMode": "uefi",
        "VirtualizationType": "hvm", "EnaSupport": True, "BlockDeviceMappings": [mapping],
    } | more  # fmt: skip


def test_an_image_of_two_snapshots_and_a_blank_disk(served: Served) -> None:
    root, data = snapshot(served, "r"), snapshot(served, "d")
    mappings = [
        {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": root, "VolumeSize": 2, "VolumeType": "gp2"}},
        {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": data, "DeleteOnTermination": False}},
        {"DeviceName": "/dev/sdg", "Ebs": {"VolumeSize": 3}},
    ]
    tags = [{"ResourceType": "image", "Tags": [{"Key": "Project", "Value": "p"}]}]
    arguments = registration(
        root, BlockDeviceMappings=mappings, ImdsSupport="v2.0", BootMode="uefi-preferred",
        TagSpecifications=tags, Description="two",
    )  # fmt: skip
    image_id = served.ec2.register_image(**arguments)["ImageId"]
    served.restart()
    made = image(served, image_id)
    assert (made["State"], made["Architecture"], made["BootMode"]) == (
        "available",
        "x86_64",
        "uefi-preferred",
    )
    assert (made["ImdsSupport"], made["EnaSupport"], made["RootDeviceName"]) == ("v2.0", True, "/dev/xvda")
    assert (made["Description"], made["Tags"]) == ("two", tags[0]["Tags"])
    assert [item["DeviceName"] for item in made["BlockDeviceMappings"]] == [
        "/dev/xvda",
        "/dev/sdf",
        "/dev/sdg",
    ]
    assert "SnapshotId" not in made["BlockDeviceMappings"][2]["Ebs"]
    launched = served.ec2.run_instances(
        ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1,
        BlockDeviceMappings=[{"DeviceName": "/dev/sdg", "NoDevice": ""}],
    )["Instances"][0]  # fmt: skip
    options = launched["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 2)
    until(lambda: state_of(served, launched["InstanceId"]) == "running")
    volumes = {
        v["Attachments"][0]["Device"]: v for v in served.ec2.describe_volumes()["Volumes"] if v["Attachments"]
    }
    assert {device: v["Size"] for device, v in volumes.items()} == {"/dev/xvda": 2, "/dev/sdf": 1}
    assert volumes["/dev/xvda"]["VolumeType"] == "gp2"
    assert volumes["/dev/sdf"]["Attachments"][0]["DeleteOnTermination"] is False
    assert holds(served.state.layout.volume(volumes["/dev/xvda"]["VolumeId"]), "r")
    assert holds(served.state.layout.volume(volumes["/dev/sdf"]["VolumeId"]), "d")
    for snapshot_id in (root, data):
        with refused("InvalidSnapshot.InUse"):
            served.ec2.delete_snapshot(SnapshotId=snapshot_id)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Architecture": "i386"}, "InvalidParameterValue"),
        ({"VirtualizationType": None}, "UnsupportedOperation"),
        ({"VirtualizationType": "paravirtual"}, "UnsupportedOperation"),
        ({"BootMode": None}, "UnsupportedOperation"),
        ({"BootMode": "legacy-bios"}, "UnsupportedOperation"),
        ({"RootDeviceName": "/dev/sda1"}, "InvalidBlockDeviceMapping"),
        ({"RootDeviceName": None}, "MissingParameter"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 1}}]},
         "InvalidBlockDeviceMapping"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": NO_SNAPSHOT}}]},
         "InvalidSnapshot.NotFound"),
        ({"TpmSupport": "v2.0"}, "UnsupportedOperation"),
        ({"TagSpecifications": [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]},
         "InvalidParameterValue"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered(served: Served, change: dict[str, Any], code: str) -> None:
    arguments = registration(snapshot(served, "r")) | change
    with refused(code):
        served.ec2.register_image(**{name: value for name, value in arguments.items() if value is not None})
    assert served.ec2.describe_images()["Images"] == []


def test_names_are_given_once(served: Served) -> None:
    root = snapshot(served, "r")
    served.ec2.register_image(**registration(root))
    with refused("InvalidAMIName.Duplicate"):
        served.ec2.register_image(**registration(root))
    instance_id = launch(served)
    with refused("InvalidAMIName.Duplicate"):
        served.ec2.create_image(InstanceId=instance_id, Name="registered", NoReboot=True)


def test_a_snapshot_of_two_images_stays_with_the_other(served: Served) -> None:
    root = snapshot(served, "r")
    first = served.ec2.register_image(**registration(root))["ImageId"]
    second = served.ec2.register_image(**registration(root, Name="second"))["ImageId"]
    served.ec2.deregister_image(ImageId=first, DeleteAssociatedSnapshots=True)
    assert served.ec2.describe_snapshots(SnapshotIds=[root])["Snapshots"]
    served.ec2.deregister_image(ImageId=second)
    assert served.ec2.describe_snapshots(SnapshotIds=[root])["Snapshots"]
    served.ec2.delete_snapshot(SnapshotId=root)


def test_imds_support_is_added_to_an_image_and_inherited(served: Served) -> None:
    image_id = served.ec2.register_image(**registration(snapshot(served, "r")))["ImageId"]
    served.ec2.modify_image_attribute(ImageId=image_id, ImdsSupport={"Value": "v2.0"})
    described = served.ec2.describe_image_attribute(ImageId=image_id, Attribute="imdsSupport")
    assert described["ImdsSupport"] == {"Value": "v2.0"}
    launched = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = launched["Instances"][0]["InstanceId"]
    until(lambda: state_of(served, instance_id) == "running")
    assert volume_of(served, instance_id)
    made = served.ec2.create_image(InstanceId=instance_id, Name="child", NoReboot=True)["ImageId"]
    assert image(served, made)["ImdsSupport"] == "v2.0"


def test_a_copy_is_an_image_of_its_own(served: Served) -> None:
    tags: Any = [{"ResourceType": "image", "Tags": [{"Key": "Project", "Value": "p"}]}]
    source = served.ec2.register_image(**registration(snapshot(served, "r"), TagSpecifications=tags))[
        "ImageId"
    ]
    arguments: Any = {
        "Name": "copy",
        "SourceImageId": source,
        "SourceRegion": "us-east-1",
        "ClientToken": "t",
    }
    copied = served.ec2.copy_image(**arguments, CopyImageTags=True)["ImageId"]
    assert served.ec2.copy_image(**arguments, CopyImageTags=True)["ImageId"] == copied
    with refused("IdempotentParameterMismatch"):
        served.ec2.copy_image(**arguments)
    with refused("InvalidAMIName.Duplicate"):
        served.ec2.copy_image(**arguments | {"ClientToken": "other"})
    with refused("UnsupportedOperation"):
        served.ec2.copy_image(**arguments | {"SourceRegion": "eu-west-1", "ClientToken": "other"})
    until(lambda: image(served, copied)["State"] == "available")
    assert (image(served, copied)["Tags"], image(served, copied)["SourceImageId"]) == (
        tags[0]["Tags"],
        source,
    )
    served.ec2.deregister_image(ImageId=source, DeleteAssociatedSnapshots=True)
    served.restart()
    launched = served.ec2.run_instances(ImageId=copied, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = launched["Instances"][0]["InstanceId"]
    until(lambda: state_of(served, instance_id) == "running")
    assert holds(served.state.layout.volume(volume_of(served, instance_id)), "r")


def test_a_stock_image_is_copied_too(served: Served) -> None:
    copied = served.ec2.copy_image(Name="mine", SourceImageId=served.register(), SourceRegion="us-east-1")
    until(lambda: image(served, copied["ImageId"])["State"] == "available")
    (mine,) = served.ec2.describe_images(Owners=["self"])["Images"]
    assert (mine["ImageId"], mine["Public"]) == (copied["ImageId"], False)
    assert served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
