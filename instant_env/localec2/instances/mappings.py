"""Block device mappings: what a request says about an image's volumes, over what is there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instant_env.localec2.instances.volume_types import check_volume_type, ordered, origin
from instant_env.localec2.records.records import ImageMapping, SnapshotRecord, VolumeRecord
from instant_env.localec2.state.moto_api import ACCOUNT_ID, EC2ClientError
from instant_env.localec2.state.state import State


def mappings_of(
    volumes: Mapping[str, VolumeRecord], changes: Sequence[dict[str, Any]], root_device: str, state: State
) -> list[ImageMapping]:
    """The mappings of an image of these volumes (by device), the root's first.

    Each attached volume has one, without a snapshot yet, unless ``changes`` leave it out (NoDevice).
    """
    mappings: dict[str, ImageMapping] = {}
    for device, volume in volumes.items():
        deleted_at_end = volume.attachment is None or volume.attachment.delete_on_termination
        mappings[device] = ImageMapping(
            device=device, snapshot_id=None, size_gib=volume.size_gib, volume_type=volume.volume_type,
            performance=volume.performance, delete_on_termination=deleted_at_end, encrypted=volume.encrypted,
        )  # fmt: skip
    for change in changes:
        device = device_of(change)
        if "NoDevice" in change:
            if device == root_device or device not in mappings:
                raise EC2ClientError("InvalidBlockDeviceMapping", f"{device} cannot be left out")
            del mappings[device]
            continue
        ebs = change.get("Ebs") or {}
        if device in volumes and ebs.get("SnapshotId"):
            raise EC2ClientError(
                "InvalidBlockDeviceMapping", f"There is a volume at {device}: its snapshot is made now"
            )
        mappings[device] = changed(mappings.get(device), device, ebs, state)
    if root_device not in mappings:
        raise EC2ClientError("InvalidBlockDeviceMapping", f"There is no volume at {root_device}")
    return [mappings.pop(root_device), *(mappings[device] for device in sorted(mappings))]


def device_of(mapping: dict[str, Any]) -> str:
    """The device's name, which every mapping has."""
    if not mapping.get("DeviceName"):
        raise EC2ClientError("MissingParameter", "The request must contain the parameter deviceName")
    return str(mapping["DeviceName"])


def usable_snapshot(state: State, snapshot_id: str) -> SnapshotRecord:
    """A snapshot from which this account may make volumes and images.

    Those of the AMIs that Amazon publishes are shared by nobody but their launches. Raises EC2ClientError.
    """
    snapshot = state.snapshot(snapshot_id)
    if snapshot.owner_id != ACCOUNT_ID and state.strictness.switches.foreign_snapshots:
        raise EC2ClientError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
    return snapshot


def registered(state: State, ebs: dict[str, Any]) -> dict[str, Any]:
    """The Ebs part of a mapping of RegisterImage, with what EC2 takes for what it does not say.

    nanovms/ops's issue 1304: volumes stayed when their instances ended. API_EbsBlockDevice: "gp2" was the
    only type when the action was made, and is still its default.
    """
    if not state.strictness.switches.register_defaults:
        return ebs
    return {"DeleteOnTermination": False, "VolumeType": "gp2"} | ebs


def changed(base: ImageMapping | None, device: str, ebs: dict[str, Any], state: State) -> ImageMapping:
    """A mapping as the request's Ebs part has it, over what was there before."""
    if ebs.get("SnapshotId"):
        usable_snapshot(state, ebs["SnapshotId"])
    snapshot_id = ebs.get("SnapshotId") or (base.snapshot_id if base else None)
    snapshot = state.snapshot(snapshot_id) if snapshot_id else None
    least = snapshot.size_gib if snapshot else base.size_gib if base else 1
    if not ebs.get("VolumeSize") and snapshot is None and base is None:
        raise EC2ClientError("MissingParameter", "The request must contain the parameter size or snapshotId")
    size = int(ebs.get("VolumeSize") or (base.size_gib if base else least))
    if size < least:
        whose = f"snapshot '{snapshot_id}'" if snapshot_id else "the volume"
        raise EC2ClientError(
            "InvalidBlockDeviceMapping",
            f"Volume of size {size}GB is smaller than {whose}, expect size >= {least}GB",
        )
    volume_type = ebs.get("VolumeType") or (base.volume_type if base else "gp3")
    check_volume_type(volume_type)
    ends = ebs.get("DeleteOnTermination")
    encrypted = ebs.get("Encrypted")
    was_encrypted = snapshot.encrypted if snapshot else base.encrypted if base else False
    if was_encrypted and encrypted is False:
        raise EC2ClientError(
            "InvalidBlockDeviceMapping", f"What is encrypted stays so: Encrypted cannot be false on {device}"
        )
    return ImageMapping(
        device=device, snapshot_id=snapshot_id, size_gib=size, volume_type=volume_type,
        performance=ordered(ebs, volume_type, size, base.performance if base else None),
        delete_on_termination=(base.delete_on_termination if base else True) if ends is None else ends,
        encrypted=bool(encrypted) or was_encrypted,
        **origin(ebs, from_snapshot=snapshot is not None),
    )  # fmt: skip
