"""Copies of AMIs for a run: alike but in one thing, waited for, and gone with what they brought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.moto_cloud import LATER

from instant_env.cloud import copies, images
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import Role, tag_specifications
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from support.clouds.aws_client import Aws

pytest_plugins = ("support.clouds.aws_client",)

#: A root volume in which nothing is as EC2 would have it by default.
ROOT_VOLUME: dict[str, Any] = {
    "VolumeSize": 10, "VolumeType": "gp3", "Iops": 4000, "Throughput": 250, "DeleteOnTermination": False,
}  # fmt: skip


def image(cloud: Cloud, image_id: str) -> Any:
    return cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]


def our_image(aws: Aws) -> str:
    """An AMI of this account, with a snapshot of its own."""
    ec2 = aws.cloud.ec2
    stock = aws.served.register()
    tags = tag_specifications("image", "snapshot", run_id="bake", role=Role.IMAGE, name="ours")
    brought = ec2.copy_image(
        Name="brought", SourceImageId=stock, SourceRegion="us-east-1", TagSpecifications=tags
    )["ImageId"]
    copies._wait(aws.cloud, brought)
    (mapping,) = image(aws.cloud, brought)["BlockDeviceMappings"]
    root: Any = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": mapping["Ebs"]["SnapshotId"]} | ROOT_VOLUME}
    return ec2.register_image(
        Name="ours", Architecture="x86_64", VirtualizationType="hvm", BootMode="uefi", EnaSupport=True,
        ImdsSupport="v2.0", RootDeviceName="/dev/xvda", BlockDeviceMappings=[root],
    )["ImageId"]  # fmt: skip


def with_boot_mode(aws: Aws, image_id: str, mode: str = "uefi-preferred") -> str:
    return copies.with_boot_mode(
        aws.cloud, image_id, mode, run_id="r1", name=f"copy-{mode}", expires_at=LATER
    )


def fresh_copy(aws: Aws, image_id: str) -> str:
    return copies.fresh_copy(aws.cloud, image_id, run_id="r1", name="fresh", expires_at=LATER)


def test_another_boot_mode_is_the_only_difference(aws: Aws) -> None:
    ours = our_image(aws)
    copy = with_boot_mode(aws, ours)
    before, after = image(aws.cloud, ours), image(aws.cloud, copy)
    differs = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert differs <= {"ImageId", "Name", "ImageLocation", "CreationDate", "BootMode", "Tags"}
    assert "BootMode" in differs
    ebs = after["BlockDeviceMappings"][0]["Ebs"]
    assert {key: ebs[key] for key in ROOT_VOLUME} == ROOT_VOLUME


@pytest.mark.parametrize(
    ("kind", "ordered"), [("gp3", {"Iops", "Throughput"}), ("io1", {"Iops"}), ("gp2", set()), ("st1", set())]
)
def test_only_what_a_type_of_volume_takes_is_said(kind: str, ordered: set[str]) -> None:
    """EC2 refuses IOPS and throughput of types that have none to order, and Encrypted beside a snapshot."""
    ebs = {"SnapshotId": "snap-1", "VolumeSize": 8, "VolumeType": kind, "Iops": 100, "Throughput": 125,
           "DeleteOnTermination": True, "Encrypted": True, "KmsKeyId": "k"}  # fmt: skip
    said = set(copies._volume_again(ebs))
    assert said == {"SnapshotId", "VolumeSize", "VolumeType", "DeleteOnTermination"} | ordered


def test_a_copy_is_waited_for_also_while_it_is_unknown(aws: Aws) -> None:
    """InvalidAMIID.NotFound right after it was made (ansible/ansible#4368: one in ten)."""
    ours = our_image(aws)

    def late(parsed: dict[str, Any], **_: Any) -> None:
        if looks:
            looks.pop()
            raise ClientError({"Error": {"Code": "InvalidAMIID.NotFound"}}, "DescribeImages")

    looks = [1, 2, 3]
    aws.cloud.ec2.meta.events.register("after-call.ec2.DescribeImages", late)
    copy = fresh_copy(aws, ours)
    assert not looks
    assert image(aws.cloud, copy)["State"] == "available"


def test_a_copy_with_another_boot_mode_can_be_launched_once_it_is_returned(aws: Aws) -> None:
    ours = our_image(aws)
    states = ["pending", "pending"]

    def pending(parsed: dict[str, Any], **_: Any) -> None:
        for one in parsed["Images"]:
            if one["ImageId"] != ours and states:
                one["State"] = states.pop()

    aws.cloud.ec2.meta.events.register("after-call.ec2.DescribeImages", pending)
    with_boot_mode(aws, ours)
    assert not states


def test_a_copy_that_failed_is_told(aws: Aws) -> None:
    ours = our_image(aws)

    def failed(parsed: dict[str, Any], **_: Any) -> None:
        for one in parsed["Images"]:
            one["State"] = "failed"

    aws.cloud.ec2.meta.events.register("after-call.ec2.DescribeImages", failed)
    with pytest.raises(CloudError, match="is failed"):
        fresh_copy(aws, ours)


def test_images_of_others_are_refused_before_anything_is_made(aws: Aws) -> None:
    stock = aws.served.register()
    with pytest.raises(UsageError, match="another account's"):
        with_boot_mode(aws, stock)
    assert "RegisterImage" not in aws.calls


def test_nitrotpm_is_kept_and_needs_uefi(aws: Aws) -> None:
    ours = our_image(aws)
    bodies: list[Any] = []

    def has_tpm(parsed: dict[str, Any], **_: Any) -> None:
        for one in parsed["Images"]:
            one["TpmSupport"] = "v2.0"

    def note(params: dict[str, Any], **_: Any) -> None:
        bodies.append(dict(params))
        del params["TpmSupport"]  # localec2 has none

    aws.cloud.ec2.meta.events.register("after-call.ec2.DescribeImages", has_tpm)
    aws.cloud.ec2.meta.events.register("provide-client-params.ec2.RegisterImage", note)
    with pytest.raises(UsageError, match="NitroTPM"):
        with_boot_mode(aws, ours, "legacy-bios")
    with_boot_mode(aws, ours, "uefi")
    (body,) = bodies
    assert body["TpmSupport"] == "v2.0"


def test_an_image_whose_answer_was_lost_is_the_one_of_that_name_and_run(aws: Aws) -> None:
    """RegisterImage has no client token: the client's repeat says InvalidAMIName.Duplicate."""
    ours = our_image(aws)
    aws.lose_answer("RegisterImage")
    copy = with_boot_mode(aws, ours)
    assert image(aws.cloud, copy)["Name"] == "copy-uefi-preferred"
    with pytest.raises(CloudError, match=r"InvalidAMIName\.Duplicate"):  # of another run
        copies.with_boot_mode(
            aws.cloud, ours, "uefi", run_id="r2", name="copy-uefi-preferred", expires_at=LATER
        )


def snapshots(aws: Aws) -> int:
    return len(aws.cloud.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"])


def test_a_snapshot_that_counts_as_used_for_a_while_goes_with_its_copy(aws: Aws) -> None:
    """InvalidSnapshot.InUse right after DeregisterImage (boto/boto#3019: one of five)."""
    ours = our_image(aws)
    before = snapshots(aws)
    copy = fresh_copy(aws, ours)
    assert snapshots(aws) == before + 1
    aws.fault("DeleteSnapshot", "InvalidSnapshot.InUse", times=3)
    copies.delete_copy(aws.cloud, copy)
    assert snapshots(aws) == before
    assert image(aws.cloud, ours)["State"] == "available"


def test_our_own_images_go_with_their_snapshots_too(aws: Aws) -> None:
    copy = fresh_copy(aws, our_image(aws))
    aws.fault("DeleteSnapshot", "InvalidSnapshot.InUse", times=2)
    (mapping,) = image(aws.cloud, copy)["BlockDeviceMappings"]
    assert images.deregister(aws.cloud, copy) == [mapping["Ebs"]["SnapshotId"]]


def test_a_snapshot_that_another_image_has_is_not_waited_for(aws: Aws) -> None:
    ours = our_image(aws)  # registered with the snapshot of another one
    (mapping,) = image(aws.cloud, ours)["BlockDeviceMappings"]
    aws.calls.clear()
    assert not images.delete_snapshot(aws.cloud, mapping["Ebs"]["SnapshotId"])
    assert aws.count("DeleteSnapshot") == 1


def test_the_copies_of_a_run_go_whatever_one_of_them_does(aws: Aws) -> None:
    """One is refused; the snapshot of another was left when its image went."""
    ours = our_image(aws)
    before = snapshots(aws)
    tags = {"run_id": "r1", "expires_at": LATER}
    first, second, third = (
        copies.fresh_copy(aws.cloud, ours, name=f"copy {number}", **tags)  # type: ignore[arg-type]
        for number in range(3)
    )
    aws.cloud.ec2.deregister_image(ImageId=third)
    aws.fault("DeregisterImage", "UnauthorizedOperation")
    with pytest.raises(CloudError, match=f"{first}|{second}"):
        copies.delete_copies_of_run(aws.cloud, "r1")
    assert snapshots(aws) == before + 1
    copies.delete_copies_of_run(aws.cloud, "r1")
    assert snapshots(aws) == before
