"""From the sealed, stopped builder to an AMI: by CreateImage, or by a snapshot and RegisterImage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from instant_env.bake.bases import BaseImage
from instant_env.bake.plan import BakePlan, Upload
from instant_env.bake.recipe import Boot, Initramfs
from instant_env.bake.request import Method, Request
from instant_env.cloud.images import BakedImage, delete_snapshot, list_baked, made_once
from instant_env.cloud.rules.consistency import wait_for_state
from instant_env.cloud.session import Cloud, cloud_error, retry_cleanup
from instant_env.cloud.tags import Role, project_filter, tag_specifications

#: Creating an AMI copies the volume's dirty blocks; minutes on EC2.
_TIMEOUT_S = 3600.0
#: A bake of minutes is not given up for an image whose tags come late.
_UNKNOWN_S = 300.0


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
            **({"parent-ami": plan.parent_ami} if plan.parent_ami else {}),
            "hibernates": "yes" if plan.recipe.hibernates else "no",
        },
    }  # fmt: skip
    described = f"instant-env {plan.recipe.name} on {plan.base.base}, plan {plan.hash[:12]}"[:255]
    try:
        if method_of(plan, base, request) is Method.CREATE_IMAGE:
            image_id = made_once(
                cloud,
                lambda: cloud.ec2.create_image(
                    InstanceId=instance_id,
                    Name=request.image_name,
                    Description=described,
                    TagSpecifications=tag_specifications("image", "snapshot", **tags),
                )["ImageId"],
                name=request.image_name,
                run_id=request.run_id,
            )
        else:
            snapshot_id = _snapshot(cloud, instance_id, described, tags)
            image_id = made_once(
                cloud,
                lambda: _register(cloud, snapshot_id, plan, base, request, described, tags),
                name=request.image_name,
                run_id=request.run_id,
            )
    except ClientError as error:
        raise cloud_error(error, f"making an image of {instance_id}") from error

    seen: list[BakedImage] = []

    def state() -> str:
        seen[:] = [image for image in list_baked(cloud, run_id=request.run_id) if image.id == image_id]
        return seen[0].state if seen else ""

    wait_for_state(state, "available", image_id, timeout_s=_TIMEOUT_S, patience_s=_UNKNOWN_S)
    return seen[0]


def boot_mode_of(plan: BakePlan, base: BaseImage) -> str:
    """Where one EFI binary is what boots, only a machine with UEFI can do it; else as the base boots, whose
    GRUB reads its entries under BIOS, too. Empty: EC2's choice."""
    is_efi_binary = plan.recipe.initramfs is Initramfs.NONE and plan.base.boot is Boot.UKI
    return "uefi" if is_efi_binary else base.boot_mode


def method_of(plan: BakePlan, base: BaseImage, request: Request) -> Method:
    """The method asked for, unless CreateImage would give the image another boot mode than it needs: it takes
    that of the builder's AMI (EC2 User Guide, "Boot modes"), and types with BIOS alone would start it."""
    return request.options.method if boot_mode_of(plan, base) == base.boot_mode else Method.REGISTER


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

    def state() -> str:
        snapshots = cloud.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        return snapshots[0]["State"] if snapshots else ""

    wait_for_state(state, "completed", snapshot_id, timeout_s=_TIMEOUT_S)
    return snapshot_id


def _register(
    cloud: Cloud, snapshot_id: str, plan: BakePlan, base: BaseImage, request: Request, described: str,
    tags: dict[str, Any],
) -> str:  # fmt: skip
    """RegisterImage: what CreateImage would take over from the machine has to be said here."""
    boot_mode = boot_mode_of(plan, base)
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
