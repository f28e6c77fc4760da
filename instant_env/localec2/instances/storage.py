"""The files of volumes and snapshots: who may touch them when, and when they go."""

from __future__ import annotations

from contextlib import AbstractContextManager

from instant_env.localec2.records.records import VolumeRecord
from instant_env.localec2.state.named_locks import NamedLocks
from instant_env.localec2.state.state import State


class Storage:
    """Files of one server. Methods want the state's lock held unless they say otherwise."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.arriving: set[str] = set()  # snapshots whose file is there before their record
        self.locks = NamedLocks()

    def lock(self, volume_id: str) -> AbstractContextManager[None]:
        """Held while a volume's file is copied: neither a machine nor a deletion may come in between.

        The state's lock need not be held.
        """
        return self.locks.held(volume_id)

    def delete_volume(self, volume: VolumeRecord) -> None:
        """Remove a volume's record, then its bytes, then snapshots that were only kept for it."""
        self.state.forget(volume)
        self.state.layout.volume(volume.id).unlink(missing_ok=True)
        self.collect()

    def collect(self) -> None:
        """Remove the files of deleted snapshots that nothing builds on any more, and of ended uploads."""
        used = self.arriving | set(self.state.snapshots)
        for volume in self.state.volumes.values():
            used |= {volume.snapshot_id or "", *volume.layers}
        for snapshot in self.state.snapshots.values():
            used.update(snapshot.layers)
        for path in self.state.layout.snapshots.glob("*.qcow2"):
            if path.stem not in used:
                path.unlink(missing_ok=True)
        pending = {name for name, snapshot in self.state.snapshots.items() if snapshot.state == "pending"}
        for path in [
            *self.state.layout.snapshots.glob("*.upload"),
            *self.state.layout.snapshots.glob("*.blocks"),
        ]:
            if path.stem not in pending:
                path.unlink(missing_ok=True)
