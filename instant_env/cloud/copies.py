"""AMIs that live as long as one run: copies of ours that differ in one thing.

They carry the pool's role, so that they do not count as baked ones. Snapshots made with a copy carry the
run's tags; those that it shares with the original do not, and stay.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import PREFIX, Role, project_filter, read_tags, tag_specifications
from instant_env.errors import UsageError
from instant_env.waiting import wait_until

#: CopyImage copies the snapshots' blocks; minutes on EC2.
_COPY_TIMEOUT_S = 1800.0
_POLL_S = 1.0


def with_boot_mode(
    cloud: Cloud, image_id: str, boot_mode: str, *, run_id: str, name: str, expires_at: datetime
) -> str:
    """Register the AMI's snapshots once more, with another boot mode; return the new AMI's id.

    Raises UsageError when the cloud does not take that mode.
    """
    image = cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]
    volumes: list[Any] = [
        {"DeviceName": volume["DeviceName"], "Ebs": {"SnapshotId": volume["Ebs"]["SnapshotId"]}}
        for volume in image["BlockDeviceMappings"]
        if "Ebs" in volume
    ]
    more: dict[str, Any] = {"EnaSupport": True} if image.get("EnaSupport") else {}
    if image.get("ImdsSupport") == "v2.0":
        more["ImdsSupport"] = "v2.0"
    try:
        return cloud.ec2.register_image(
            Name=name,
            Architecture=image["Architecture"],
            RootDeviceName=image["RootDeviceName"],
            VirtualizationType="hvm",
            BootMode=boot_mode,  # type: ignore[arg-type]
            BlockDeviceMappings=volumes,
            TagSpecifications=tag_specifications(
                "image", run_id=run_id, role=Role.POOL, name=name, expires_at=expires_at
            ),
            **more,
        )["ImageId"]
    except ClientError as error:
        if error_code(error) in ("UnsupportedOperation", "InvalidParameterValue"):
            raise UsageError(
                f"boot_mode {boot_mode} of {image_id}: {error.response['Error'].get('Message', '')}"
            ) from error
        raise cloud_error(error, f"registering {image_id} with boot mode {boot_mode}") from error


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

        def end_state() -> str:
            state = cloud.ec2.describe_images(ImageIds=[copy_id])["Images"][0]["State"]
            return state if state in ("available", "failed", "invalid", "error", "deregistered") else ""

        state = wait_until(end_state, _COPY_TIMEOUT_S, _POLL_S)
    except ClientError as error:
        raise cloud_error(error, f"copying {image_id}") from error
    if state == "available":
        return copy_id
    raise CloudError(
        f"the copy {copy_id} of {image_id} is {state or f'not available after {_COPY_TIMEOUT_S:.0f} s'}"
    )


def delete_copy(cloud: Cloud, image_id: str) -> None:
    """Deregister a copy and delete the snapshots that were made with it. What is gone already is fine."""
    try:
        images = cloud.ec2.describe_images(ImageIds=[image_id])["Images"]
        volumes = [volume for image in images for volume in image.get("BlockDeviceMappings", [])]
        ids = [volume["Ebs"]["SnapshotId"] for volume in volumes if volume.get("Ebs", {}).get("SnapshotId")]
        if images:
            cloud.ec2.deregister_image(ImageId=image_id)
        own = cloud.ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"] if ids else []
        for snapshot in own:
            if read_tags(snapshot.get("Tags")).get(f"{PREFIX}role") == Role.POOL:
                cloud.ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
    except ClientError as error:
        if not error_code(error).startswith(("InvalidAMIID", "InvalidSnapshot.NotFound")):
            raise cloud_error(error, f"deregistering {image_id}", hint="run: invoke clean") from error


def delete_copies_of_run(cloud: Cloud, run_id: str) -> None:
    """Delete every copy that a run made."""
    filters = project_filter(run=run_id, role=Role.POOL.value)
    for image in cloud.ec2.describe_images(Owners=["self"], Filters=filters)["Images"]:
        delete_copy(cloud, image["ImageId"])
