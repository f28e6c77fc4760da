"""AMIs that live as long as one run: copies of ours that differ in one thing.

They carry the pool's role, so that they do not count as baked ones. Snapshots made with a copy carry the
run's tags; those that it shares with the original do not, and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from instant_env.cloud.images import delete_snapshot, made_once
from instant_env.cloud.rules.consistency import wait_for_state
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import PREFIX, Role, project_filter, read_tags, tag_specifications
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import EbsBlockDeviceTypeDef

#: CopyImage copies the snapshots' blocks; minutes on EC2.
_COPY_TIMEOUT_S = 1800.0
#: Types of volumes whose IOPS, or throughput, are ordered; of the others EC2 refuses the word (API reference,
#: EbsBlockDevice).
_WITH_IOPS, _WITH_THROUGHPUT = ("gp3", "io1", "io2"), ("gp3",)


def check_own(cloud: Cloud, image_id: str, what_for: str) -> None:
    """Raises UsageError for an AMI of another account, whose snapshots nobody else can register; and
    botocore's errors."""
    named: Any = [{"Name": "image-id", "Values": [image_id]}]
    if not cloud.ec2.describe_images(Owners=["self"], Filters=named)["Images"]:
        raise UsageError(
            f"{what_for}: {image_id} is another account's, and its snapshots cannot be registered again",
            hint="leave out the technique cold, or boot_mode",
        )


def with_boot_mode(
    cloud: Cloud, image_id: str, boot_mode: str, *, run_id: str, name: str, expires_at: datetime
) -> str:
    """Register the AMI's snapshots once more, with another boot mode; return the new AMI's id once it can be
    launched. Volumes and support for IMDSv2, ENA and NitroTPM are those of the AMI.

    Raises UsageError when the AMI is not ours, or the cloud does not take that mode.
    """
    check_own(cloud, image_id, f"boot_mode {boot_mode}")
    image = cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]
    support: dict[str, Any] = {
        name: image[name]
        for name in ("EnaSupport", "ImdsSupport", "SriovNetSupport", "TpmSupport")
        if image.get(name)
    }
    if support.get("TpmSupport") and boot_mode != "uefi":  # flatcar/mantle#582
        raise UsageError(
            f"boot_mode {boot_mode}: {image_id} has NitroTPM, which EC2 has with uefi only",
            hint="leave out this boot mode",
        )
    try:
        copy_id = made_once(
            cloud,
            lambda: cloud.ec2.register_image(
                Name=name,
                Architecture=image["Architecture"],
                RootDeviceName=image["RootDeviceName"],
                VirtualizationType="hvm",
                BootMode=boot_mode,  # type: ignore[arg-type]
                BlockDeviceMappings=[
                    {"DeviceName": volume["DeviceName"], "Ebs": _volume_again(volume["Ebs"])}
                    for volume in image["BlockDeviceMappings"]
                    if "Ebs" in volume
                ],
                TagSpecifications=tag_specifications(
                    "image", run_id=run_id, role=Role.POOL, name=name, expires_at=expires_at
                ),
                **support,
            )["ImageId"],
            name=name,
            run_id=run_id,
        )
        _wait(cloud, copy_id)
    except ClientError as error:
        if error_code(error) in ("UnsupportedOperation", "InvalidParameterValue"):
            raise UsageError(
                f"boot_mode {boot_mode} of {image_id}: {error.response['Error'].get('Message', '')}"
            ) from error
        raise cloud_error(error, f"registering {image_id} with boot mode {boot_mode}") from error
    return copy_id


def _volume_again(ebs: Any) -> EbsBlockDeviceTypeDef:
    """The volume as RegisterImage takes it. What is not said is not the original's: DeleteOnTermination would
    be false (nanovms/ops#1304) and the type gp2. An encrypted snapshot says so itself, and EC2 refuses
    ``Encrypted`` beside it."""
    names = ["SnapshotId", "VolumeSize", "VolumeType", "DeleteOnTermination"]
    names += ["Iops"] * (ebs.get("VolumeType") in _WITH_IOPS)
    names += ["Throughput"] * (ebs.get("VolumeType") in _WITH_THROUGHPUT)
    again: Any = {name: ebs[name] for name in names if name in ebs}
    return again  # type: ignore[no-any-return]


def _wait(cloud: Cloud, image_id: str) -> None:
    """Until the copy can be launched. Raises CloudError."""

    def state() -> str:
        images = cloud.ec2.describe_images(ImageIds=[image_id])["Images"]
        return images[0]["State"] if images else ""

    wait_for_state(state, "available", f"the copy {image_id}", timeout_s=_COPY_TIMEOUT_S)


def fresh_copy(cloud: Cloud, image_id: str, *, run_id: str, name: str, expires_at: datetime) -> str:
    """Copy the AMI with its snapshots, within the region; wait until it can be launched. Raises
    CloudError."""
    try:
        copy_id = cloud.ec2.copy_image(
            Name=name,
            SourceImageId=image_id,
            SourceRegion=cloud.region,
            TagSpecifications=tag_specifications(
                "image", "snapshot", run_id=run_id, role=Role.POOL, name=name, expires_at=expires_at
            ),
        )["ImageId"]
        _wait(cloud, copy_id)
    except ClientError as error:
        raise cloud_error(error, f"copying {image_id}") from error
    return copy_id


def delete_copy(cloud: Cloud, image_id: str) -> None:
    """Deregister a copy and delete the snapshots that were made with it. What is gone already is fine.

    Raises CloudError, also when EC2 calls a snapshot used for longer than a minute.
    """
    try:
        images = cloud.ec2.describe_images(ImageIds=[image_id])["Images"]
        volumes = [volume for image in images for volume in image.get("BlockDeviceMappings", [])]
        ids = [volume["Ebs"]["SnapshotId"] for volume in volumes if volume.get("Ebs", {}).get("SnapshotId")]
        if images:
            cloud.ec2.deregister_image(ImageId=image_id)
        own = cloud.ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"] if ids else []
        for snapshot in own:
            if read_tags(snapshot.get("Tags")).get(f"{PREFIX}role") == Role.POOL:
                delete_snapshot(cloud, snapshot["SnapshotId"])
    except ClientError as error:
        if not error_code(error).startswith(("InvalidAMIID", "InvalidSnapshot.NotFound")):
            raise cloud_error(error, f"deregistering {image_id}", hint="run: invoke clean") from error


def delete_copies_of_run(cloud: Cloud, run_id: str) -> None:
    """Delete every copy that a run made, and snapshots whose copy is gone already. Raises the first error,
    after it has tried all of them."""
    filters = project_filter(run=run_id, role=Role.POOL.value)
    errors: list[Exception] = []

    def attempt(delete: Callable[[Cloud, str], object], resource_id: str) -> None:
        try:
            delete(cloud, resource_id)
        except (CloudError, ClientError) as error:
            errors.append(error)

    for image in cloud.ec2.describe_images(Owners=["self"], Filters=filters)["Images"]:
        attempt(delete_copy, image["ImageId"])
    for snapshot in cloud.ec2.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]:
        attempt(delete_snapshot, snapshot["SnapshotId"])
    if errors:
        raise errors[0]
