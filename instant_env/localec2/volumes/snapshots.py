"""CreateSnapshot and DeleteSnapshot, and the copies that images are made of.

A snapshot's file holds what the volume has over the snapshot it was made from; what lies under it is shared.
It is `pending` while it is copied. Of a running machine it shows the instant at which the copy began, and the
request is answered no earlier: what is written after the answer is not in it, as on EC2.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.hibernation import check_copy
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.mappings import usable_snapshot
from instant_env.localec2.qemu import disks
from instant_env.localec2.qemu.backup import Copy
from instant_env.localec2.qemu.machine import START_TIMEOUT_S, Machine
from instant_env.localec2.records.records import SnapshotRecord, VolumeRecord
from instant_env.localec2.state.moto_api import ACCOUNT_ID, EC2ClientError, new_id
from instant_env.localec2.state.state import State, now
from instant_env.waiting import wait_until

log = logging.getLogger(__name__)

#: A snapshot with more under it is made self-contained: every layer is a file that QEMU opens and reads.
MAX_LAYERS = 6
#: How long a request waits for its copy to begin; QEMU takes a few milliseconds, qemu-img some 50.
BEGIN_TIMEOUT_S = 20.0

Pairs = Sequence[tuple[VolumeRecord, SnapshotRecord]]


class SnapshotError(InstantEnvError):
    """A volume cannot be copied."""


class Snapshots:
    """Snapshots of one server. Public methods want the lock held unless they say otherwise."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self.state = state
        self.lifecycle = lifecycle

    def create(self, volume_id: str, description: str, tags: dict[str, str]) -> SnapshotRecord:
        """CreateSnapshot: returns the pending snapshot; the request is answered once its copy has begun."""
        volume = self.state.volume(volume_id)
        if volume.attachment:
            check_copy(self.state.instances.get(volume.attachment.instance_id))
        snapshot = self.record(volume, description, tags)
        self.state.save(snapshot)
        begun = threading.Event()

        def copy() -> None:
            problem = self.copied([(volume, snapshot)], begun)
            with self.state.lock:
                self.settle(snapshot, problem)

        threading.Thread(target=copy, name=f"copy {snapshot.id}").start()
        self.state.answer_after(begun, BEGIN_TIMEOUT_S)
        return snapshot

    def record(self, volume: VolumeRecord, description: str, tags: dict[str, str]) -> SnapshotRecord:
        """A new pending snapshot of a volume, not saved yet."""
        under = [volume.snapshot_id, *volume.layers] if volume.snapshot_id else []
        return SnapshotRecord(
            id=new_id("snap"), tags=tags, volume_id=volume.id, size_gib=volume.size_gib,
            layers=under if len(under) <= MAX_LAYERS else [], encrypted=volume.encrypted,
            description=description, owner_id=ACCOUNT_ID, start_time=now(), state="pending",
        )  # fmt: skip

    def copy_record(self, source: SnapshotRecord, description: str, tags: dict[str, str]) -> SnapshotRecord:
        """A new pending copy of a snapshot, not saved yet; nobody writes to the source, so it is a layer."""
        return SnapshotRecord(
            id=new_id("snap"), tags=tags, volume_id="vol-ffffffff", size_gib=source.size_gib,
            layers=[source.id, *source.layers], encrypted=source.encrypted, description=description,
            owner_id=ACCOUNT_ID, start_time=now(), state="pending",
        )  # fmt: skip

    def copy(
        self, source_id: str, description: str, tags: dict[str, str], *, encrypted: bool
    ) -> SnapshotRecord:
        """CopySnapshot: a pending snapshot of this account's own, over the source's bytes."""
        source = usable_snapshot(self.state, source_id)
        if source.state != "completed":
            raise EC2ClientError(
                "IncorrectState", f"Snapshot {source_id} is in invalid state - {source.state}"
            )
        snapshot = self.copy_record(source, description, tags)
        snapshot.encrypted = snapshot.encrypted or encrypted
        self.state.save(snapshot)

        def copy() -> None:
            problem = self.layered([snapshot])
            with self.state.lock:
                self.settle(snapshot, problem)

        threading.Thread(target=copy, name=f"copy {snapshot.id}").start()
        return snapshot

    def layered(self, snapshots: Sequence[SnapshotRecord]) -> str:
        """Make the files of copies (lock not held); returns the problem, or ""."""
        layout = self.state.layout
        try:
            for snapshot in snapshots:
                disks.create(
                    layout.snapshot(snapshot.id), snapshot.size_gib, layout.snapshot(snapshot.layers[0])
                )
        except (InstantEnvError, OSError) as error:
            log.error("%s: %s", ", ".join(snapshot.id for snapshot in snapshots), error)
            return str(error)
        return ""

    def copied(self, pairs: Pairs, begun: threading.Event) -> str:
        """Copy volumes of one instance, or one free volume (lock not held); returns the problem, or "".

        ``begun`` is set at the instant that the copies show, and in any case at the end.
        """
        timeout_s = START_TIMEOUT_S + self.lifecycle.stop_timeout_s
        try:
            if not wait_until(lambda: self._copied_now(pairs, begun), timeout_s, 0.02):
                raise SnapshotError(f"the instance of {pairs[0][0].id} is neither running nor stopped")
        except (InstantEnvError, OSError) as error:
            problem = error.message if isinstance(error, InstantEnvError) else str(error)
            log.error("%s: %s", ", ".join(snapshot.id for _, snapshot in pairs), problem)
            return problem
        finally:
            begun.set()
        return ""

    def _copied_now(self, pairs: Pairs, begun: threading.Event) -> bool:
        """Copy the volumes; False when their instance is between two states: its work wants their locks."""
        with ExitStack() as locks:
            for volume, _ in sorted(pairs, key=lambda pair: pair[0].id):
                locks.enter_context(self.lifecycle.storage.lock(volume.id))
            at_rest, machine = self._machine(pairs[0][0])
            if not at_rest:
                return False
            if machine is not None:
                self._copy_live(machine, pairs, begun)
                return True
            begun.set()  # nobody can write: no machine starts while the volumes' locks are held
            for volume, snapshot in pairs:
                self._copy_file(volume, snapshot)
            return True

    def _machine(self, volume: VolumeRecord) -> tuple[bool, Machine | None]:
        """Whether the volume's instance is at rest, and the machine that has the volume then."""
        with self.state.lock:
            if volume.id not in self.state.volumes:
                raise SnapshotError(f"{volume.id} was deleted before its copy began")
            attachment = volume.attachment
            instance = self.state.instances.get(attachment.instance_id) if attachment else None
            if instance is None:
                return True, None
            machine = self.lifecycle.machines.get(instance.id)
            if machine is None:
                return instance.state != "pending", None  # no other instance is about to get one
            return instance.state == "running", machine

    def _copy_file(self, volume: VolumeRecord, snapshot: SnapshotRecord) -> None:
        self.lifecycle.machine_builder.make_disk(volume)
        source, target = self.state.layout.volume(volume.id), self.state.layout.snapshot(snapshot.id)
        if snapshot.layers:
            disks.copy_layer(source, target, self.state.layout.snapshot(snapshot.layers[0]))
        else:
            disks.flatten(source, target)

    def _copy_live(self, machine: Machine, pairs: Pairs, begun: threading.Event) -> None:
        layout = self.state.layout
        parts = []
        try:
            for _, snapshot in pairs:
                backing = layout.snapshot(snapshot.layers[0]) if snapshot.layers else None
                parts.append(disks.create_part(layout.snapshot(snapshot.id), snapshot.size_gib, backing))
            copies = [
                Copy(volume.id, part, incremental=bool(snapshot.layers))
                for (volume, snapshot), part in zip(pairs, parts, strict=True)
            ]
            machine.copy_disks(copies, begun)
            for (_, snapshot), part in zip(pairs, parts, strict=True):
                disks.finish(part, layout.snapshot(snapshot.id))
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    def settle(self, snapshot: SnapshotRecord, problem: str) -> None:
        """The copy is done, or it failed; the snapshot may have been deleted meanwhile."""
        if snapshot.id in self.state.snapshots:
            snapshot.state, snapshot.state_message = ("error", problem) if problem else ("completed", "")
            self.state.save(snapshot)
        self.lifecycle.storage.collect()

    def settle_interrupted(self) -> None:
        """At start: copies that the last server did not finish."""
        for part in [*self.state.layout.snapshots.glob("*.part"), *self.state.layout.volumes.glob("*.part")]:
            part.unlink(missing_ok=True)
        for snapshot in list(self.state.snapshots.values()):
            if snapshot.state == "pending" and snapshot.upload is None:
                whole = self.state.layout.snapshot(snapshot.id).exists()
                self.settle(snapshot, "" if whole else "localec2 ended while the copy was made")

    def delete(self, snapshot_id: str, owner: str = ACCOUNT_ID) -> None:
        """DeleteSnapshot. The bytes stay for as long as a volume or another snapshot builds on them."""
        snapshot = self.state.snapshot(snapshot_id)
        users = [image.id for image in self.state.images.values() if snapshot_id in image.snapshot_ids]
        if users:
            raise EC2ClientError(
                "InvalidSnapshot.InUse",
                f"The snapshot {snapshot_id} is currently in use by {', '.join(users)}",
            )
        if owner == ACCOUNT_ID and self.state.strictness.snapshot_in_use(snapshot_id):
            raise EC2ClientError(  # boto/boto's issue 3019: in one of five cases
                "InvalidSnapshot.InUse",
                f"The snapshot {snapshot_id} is currently in use by an AMI that is being deregistered",
            )
        if snapshot.owner_id != owner:
            raise EC2ClientError("AuthFailure", "Not authorized for snapshot " + snapshot_id)
        self.state.forget(snapshot)
        self.lifecycle.storage.collect()
