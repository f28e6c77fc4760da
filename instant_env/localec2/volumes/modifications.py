"""ModifyVolume: a volume grows, or is of another type, while it is in use.

The record is changed first, and its file follows; whoever opens the file makes it as large as the record
says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.volume_types import check_volume_type, described, ordered
from instant_env.localec2.qemu import command_line, disks
from instant_env.localec2.records.records import VolumeModification, VolumeRecord
from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.state import State, now
from instant_env.localec2.volumes.volumes import MAX_SIZE_GIB

log = logging.getLogger(__name__)


class Modifications:
    """Changes of volumes. Methods want the lock held."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self.state = state
        self.lifecycle = lifecycle

    def check(self, volume_id: str, order: Mapping[str, Any]) -> tuple[VolumeRecord, dict[str, Any]]:
        """The volume, and what a request changes of it. Raises EC2ClientError."""
        volume = self.state.volume(volume_id)
        size = volume.size_gib if order.get("Size") is None else int(order["Size"])
        if size < volume.size_gib:
            raise EC2ClientError("InvalidParameterValue", "New size cannot be smaller than existing size")
        if size > MAX_SIZE_GIB:
            raise EC2ClientError(
                "InvalidParameterValue", f"Volume of {size}GiB is larger than {MAX_SIZE_GIB}GiB."
            )
        volume_type = order.get("VolumeType") or volume.volume_type
        check_volume_type(volume_type)
        performance = ordered(order, volume_type, size, volume.performance)
        if volume.modification is not None and volume.modification.end_time is None:
            raise EC2ClientError(
                "IncorrectModificationState",
                f"Cannot modify volume {volume_id} in modification state MODIFYING",
            )
        return volume, {"size_gib": size, "volume_type": volume_type, "performance": performance}

    def modify(self, volume: VolumeRecord, changes: Mapping[str, Any]) -> None:
        """Make the changes that :meth:`check` gave."""
        volume.modification = VolumeModification(
            size_gib=volume.size_gib, volume_type=volume.volume_type, performance=volume.performance,
            start_time=now(),
        )  # fmt: skip
        for name, value in changes.items():
            setattr(volume, name, value)
        self.state.save(volume)
        self._follow(volume)

    def resume(self) -> None:
        """At start: let the files follow of volumes that the last server was changing."""
        for volume in self.state.volumes.values():
            if volume.modification is not None and volume.modification.end_time is None:
                self._follow(volume)

    def _follow(self, volume: VolumeRecord) -> None:
        self.lifecycle.work(volume.id, lambda _: self._grow(volume))

    def _grow(self, volume: VolumeRecord) -> None:
        """Make the file as large as the record says (lock not held)."""
        try:
            with self.lifecycle.storage.lock(volume.id):
                with self.state.lock:
                    place = volume.attachment
                    machine = self.lifecycle.machines.get(place.instance_id) if place else None
                path = self.state.layout.volume(volume.id)
                if machine is not None:
                    machine.grow(command_line.Disk(volume.id, path), volume.size_gib)
                elif path.exists():
                    disks.grow(path, volume.size_gib)
        except InstantEnvError as error:
            log.warning("%s has its new size at its machine's next start: %s", volume.id, error)
        with self.state.lock:
            if volume.id in self.state.volumes and volume.modification is not None:
                volume.modification = volume.modification.model_copy(update={"end_time": now()})
                self.state.save(volume)

    def select(self, volume_ids: list[str]) -> list[VolumeRecord]:
        """Volumes that were modified: these, or all. Raises EC2ClientError."""
        for volume_id in volume_ids:
            if self.state.volume(volume_id).modification is None:
                raise EC2ClientError(
                    "InvalidVolumeModification.NotFound",
                    f"Modification for volume '{volume_id}' does not exist.",
                )
        ids = volume_ids or list(self.state.volumes)
        return [item for name in ids if (item := self.state.volumes[name]).modification is not None]

    @staticmethod
    def describe(volume: VolumeRecord) -> dict[str, Any]:
        """A volume's last modification as EC2's VolumeModification; nothing when it had none."""
        before = volume.modification
        if before is None:
            return {}
        target = {"Size": volume.size_gib, "VolumeType": volume.volume_type}
        original = {"Size": before.size_gib, "VolumeType": before.volume_type}
        target |= described(volume.volume_type, volume.performance)
        original |= described(before.volume_type, before.performance)
        answer: dict[str, Any] = {
            "VolumeId": volume.id, "StartTime": before.start_time.replace(tzinfo=None),
            "ModificationState": "completed" if before.end_time else "modifying",
            "Progress": 100 if before.end_time else 0,
            "OriginalMultiAttachEnabled": False, "TargetMultiAttachEnabled": False,
        }  # fmt: skip
        if before.end_time:
            answer["EndTime"] = before.end_time.replace(tzinfo=None)
        answer |= {f"Target{name}": value for name, value in target.items()}
        return answer | {f"Original{name}": value for name, value in original.items()}
