"""From the sealed, stopped builder to an AMI: by CreateImage, or by a snapshot and RegisterImage."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from instant_env.bake.bases import BaseImage
from instant_env.bake.plan import BakePlan, Upload
from instant_env.bake.recipe import Initramfs
from instant_env.bake.request import Method, Request
from instant_env.cloud.images import BakedImage, delete_snapshot, list_baked
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code, retry_cleanup
from instant_env.cloud.tags import Role, project_filter, tag_specifications

#: Creating an AMI copies the volume's dirty blocks; minutes on EC2.
_TIMEOUT_S = 3600.0
_POLL_S = 0.25
#: EC2 is eventually consistent: what one of its servers says, the next may not know yet.
_IN_A_ROW = 3

T = TypeVar("T")


def make(
    cloud: Cloud, instance_id: str, plan: BakePlan, base: BaseImage, request: Request, revision: str,
    expires_at: datetime,
) -> BakedImage:  # fmt: skip
    """An AMI of the stopped machine, tagged, available. It has an expiry until it is verified."""
    init = (step.sha256 for step in plan.steps if isinstance(step, Upload) and step.name == "instant-init")
    tags: dict[str, Any] = {
        "run_id": request.run_id, "role": Role.IMAGE, "name": request.image_name, "expires_at": expires_at,
        "extra": {
            "recipe": plan.recipe.name, "base": plan.base.base, "base-ami": plan.base_ami,
            "arch": plan.arch.value, "plan-hash": plan.hash, "login-user": plan.base.login_user,
            "init-sha256": next(init, ""), "git-revision": revision, "manifest": f"{request.image_name}.json",
            "encryption": request.options.encryption,
            "hibernates": "yes" if plan.recipe.hibernates else "no",
        },
    }  # fmt: skip
    described = f"instant-env {plan.recipe.name} on {plan.base.base}, plan {plan.hash[:12]}"[:255]
    try:
        if request.options.method is Method.CREATE_IMAGE:
            image_id = cloud.ec2.create_image(
                InstanceId=instance_id,
                Name=request.image_name,
                Description=described,
                TagSpecifications=tag_specifications("image", "snapshot", **tags),
            )["ImageId"]
        else:
            snapshot_id = _snapshot(cloud, instance_id, described, tags)
            image_id = _register(cloud, snapshot_id, plan, base, request, described, tags)
    except ClientError as error:
        raise cloud_error(error, f"making an image of {instance_id}") from error

    def state() -> tuple[str, BakedImage | None]:
        images = [image for image in list_baked(cloud, run_id=request.run_id) if image.id == image_id]
        return (images[0].state, images[0]) if images else ("unknown", None)

    image = _settled(image_id, "available", state)
    if image is None:
        raise CloudError(f"{image_id} is available and cannot be described", hint="run it again")
    return image


def _snapshot(cloud: Cloud, instance_id: str, described: str, tags: dict[str, Any]) -> str:
    """A snapshot of the machine's root volume, complete."""
    (reservation,) = cloud.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    (instance,) = reservation["Instances"]
    (volume_id,) = [
        mapping["Ebs"]["VolumeId"]
        for mapping in instance["BlockDeviceMappings"]
        if mapping["DeviceName"] == instance["RootDeviceName"]
    ]
    snapshot_id = cloud.ec2.create_snapshot(
        VolumeId=volume_id, Description=described, TagSpecifications=tag_specifications("snapshot", **tags)
    )["SnapshotId"]

    def state() -> tuple[str, None]:
        try:
            snapshots = cloud.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        except ClientError as error:
            if error_code(error) == "InvalidSnapshot.NotFound":
                return "unknown", None
            raise
        return (snapshots[0]["State"] if snapshots else "unknown"), None

    _settled(snapshot_id, "completed", state)
    return snapshot_id


def _register(
    cloud: Cloud, snapshot_id: str, plan: BakePlan, base: BaseImage, request: Request, described: str,
    tags: dict[str, Any],
) -> str:  # fmt: skip
    """RegisterImage: what CreateImage would take over from the machine has to be said here."""
    # Without an initramfs what boots is an EFI binary; anything else boots as its base does.
    boot_mode = "uefi" if plan.recipe.initramfs is Initramfs.NONE else base.boot_mode
    mapping: Any = {
        "DeviceName": base.root_device,
        "Ebs": {"SnapshotId": snapshot_id, "VolumeType": "gp3", "DeleteOnTermination": True},
    }
    more: dict[str, Any] = {"BootMode": boot_mode} if boot_mode else {}
    return cloud.ec2.register_image(
        Name=request.image_name,
        Description=described,
        Architecture=plan.arch.value,
        RootDeviceName=base.root_device,
        BlockDeviceMappings=[mapping],
        VirtualizationType="hvm",
        EnaSupport=True,
        ImdsSupport="v2.0",
        TagSpecifications=tag_specifications("image", **tags),
        **more,
    )["ImageId"]


def _settled(what: str, target: str, state: Callable[[], tuple[str, T]]) -> T:
    """Poll until the state was ``target`` several times in a row. Raises CloudError when it never will be."""
    deadline, in_a_row = time.monotonic() + _TIMEOUT_S, 0
    while time.monotonic() < deadline:
        now, value = state()
        if now in ("failed", "error", "invalid", "deregistered"):
            raise CloudError(f"{what} is {now}", hint="is the disk of the machine full?")
        in_a_row = in_a_row + 1 if now == target else 0
        if in_a_row >= _IN_A_ROW:
            return value
        if not in_a_row:
            time.sleep(_POLL_S)
    raise CloudError(f"{what} is not {target} after {_TIMEOUT_S:.0f} s")


def finish(cloud: Cloud, image: BakedImage, request: Request) -> None:
    """Apply the options for verified images: the date of deprecation, protection from deregistration."""
    options = request.options
    try:
        if options.deprecate_after_days is not None:
            at = datetime.now(UTC) + timedelta(days=options.deprecate_after_days)
            cloud.ec2.enable_image_deprecation(ImageId=image.id, DeprecateAt=at)
        if options.protect:
            cloud.ec2.enable_image_deregistration_protection(ImageId=image.id, WithCooldown=False)
    except ClientError as error:
        raise cloud_error(error, f"setting up {image.id}") from error


def discard(cloud: Cloud, run_id: str) -> None:
    """Remove every image and snapshot of a run, found by their tags: a request may have been answered by an
    error, or by nothing, and done all the same."""
    filters = project_filter(run=run_id, role=Role.IMAGE.value)

    def images() -> None:
        for image in cloud.ec2.describe_images(Owners=["self"], Filters=filters)["Images"]:
            cloud.ec2.deregister_image(ImageId=image["ImageId"])

    def snapshots() -> None:
        for snapshot in cloud.ec2.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]:
            delete_snapshot(cloud, snapshot["SnapshotId"])

    try:  # each looks again at what there is before it tries again
        retry_cleanup(images)
        retry_cleanup(snapshots)
    except ClientError as error:
        raise cloud_error(error, f"removing what run {run_id} made", hint="run: invoke clean") from error
