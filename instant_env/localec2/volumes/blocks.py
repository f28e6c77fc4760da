"""The blocks of completed snapshots, as the EBS direct APIs read them.

Which blocks there are says ``qemu-img map``. Their bytes are read from a raw copy without a name, made at
the first read of a snapshot and closed when nobody has read for a while: layers and compressed clusters are
QEMU's business, and a read per block is then one ``pread``.
"""

from __future__ import annotations

import base64
import hmac
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from instant_env.localec2.qemu import disks
from instant_env.localec2.records.records import SnapshotRecord
from instant_env.localec2.state.moto_api import ACCOUNT_ID
from instant_env.localec2.state.named_locks import NamedLocks
from instant_env.localec2.state.state import State
from instant_env.localec2.volumes.uploads import BLOCK_BYTES, DirectError, invalid

#: How long block tokens are good for: API_ListSnapshotBlocks only says that there is an end.
TOKEN_LIFETIME_S = 7 * 24 * 3600
#: Raw copies are closed when nobody has read from them for this long.
IDLE_S = 60.0
_EXPIRY = struct.Struct(">Q")


@dataclass
class _Raw:
    descriptor: int
    readers: int = 0
    used_at: float = 0.0


class Blocks:
    """Reading of one server's snapshots. Methods take the state's lock themselves."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._raws: dict[str, _Raw] = {}
        self._lock = threading.Lock()
        self.opening = NamedLocks()

    def snapshot(self, snapshot_id: str) -> SnapshotRecord:
        """A snapshot whose blocks may be read. Raises DirectError."""
        with self.state.lock:
            snapshot = self.state.snapshots.get(snapshot_id)
        if snapshot is None:
            raise DirectError(
                404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND",
                f"The snapshot '{snapshot_id}' does not exist.",
            )  # fmt: skip
        if snapshot.owner_id != ACCOUNT_ID:  # the EBS direct APIs do not read public snapshots either
            raise DirectError(
                403, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT",
                f"The snapshot '{snapshot_id}' is another account's.",
            )  # fmt: skip
        if snapshot.state != "completed":
            raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot '{snapshot_id}' is {snapshot.state}.")
        return snapshot

    def indexes(self, snapshot: SnapshotRecord) -> list[int]:
        """The blocks that hold something, in order."""
        indexes: dict[int, None] = {}
        for start, length in disks.extents(self.state.layout.snapshot(snapshot.id)):
            indexes.update(dict.fromkeys(range(start // BLOCK_BYTES, -(-(start + length) // BLOCK_BYTES))))
        return list(indexes)

    def changed(self, first: SnapshotRecord, second: SnapshotRecord) -> dict[int, tuple[bool, bool]]:
        """Blocks whose bytes differ, in order: whether the first has one, and the second."""
        related = first.volume_id == second.volume_id != "vol-ffffffff"
        if not (related or first.id in second.layers or second.id in first.layers):
            raise invalid("UNRELATED_SNAPSHOTS", f"{first.id} and {second.id} are of different volumes")
        mine, other = set(self.indexes(first)), set(self.indexes(second))
        with self._raw(first) as before, self._raw(second) as after:
            return {
                index: (index in mine, index in other)
                for index in sorted(mine | other)
                if _read(before, index) != _read(after, index)
            }

    def read(self, snapshot: SnapshotRecord, index: int) -> bytes:
        """The bytes of one block."""
        with self._raw(snapshot) as descriptor:
            return _read(descriptor, index)

    @contextmanager
    def _raw(self, snapshot: SnapshotRecord) -> Iterator[int]:
        with self.opening.held(snapshot.id):
            with self._lock:
                raw = self._raws.get(snapshot.id)
            if raw is None:
                scratch = self.state.layout.snapshots / f"{snapshot.id}.raw.part"
                raw = _Raw(disks.open_raw(self.state.layout.snapshot(snapshot.id), scratch))
            with self._lock:
                self._raws[snapshot.id] = raw
                raw.readers += 1
        try:
            yield raw.descriptor
        finally:
            with self._lock:
                raw.readers -= 1
                raw.used_at = time.monotonic()

    def close_idle(self, idle_s: float = IDLE_S) -> None:
        """Give back the room of raw copies that nobody reads."""
        with self._lock:
            for snapshot_id, raw in list(self._raws.items()):
                if raw.readers == 0 and time.monotonic() - raw.used_at >= idle_s:
                    del self._raws[snapshot_id]
                    os.close(raw.descriptor)

    # Block tokens: not stored; the server's secret says whether one is its own

    def token(self, snapshot_id: str, index: int, expiry: int) -> str:
        """The token of a block, good until ``expiry`` (seconds since 1970)."""
        text = f"block {snapshot_id} {index} {expiry}".encode()
        proof = hmac.digest(self.state.server.secret_access_key.encode(), text, "sha256")
        return base64.b64encode(_EXPIRY.pack(expiry) + proof).decode()

    def check_token(self, token: str, snapshot_id: str, index: int) -> None:
        """Raises DirectError unless the token is this block's, and still good."""
        try:
            (expiry,) = _EXPIRY.unpack_from(base64.b64decode(token, validate=True))
        except (ValueError, struct.error):
            expiry = 0
        is_valid = hmac.compare_digest(token.encode(), self.token(snapshot_id, index, expiry).encode())
        if not is_valid or expiry <= time.time():
            raise invalid("INVALID_BLOCK_TOKEN", f"The block token is not that of block {index}, or expired")


def _read(descriptor: int, index: int) -> bytes:
    """A block; behind the end of the disk there are zeros."""
    data = os.pread(descriptor, BLOCK_BYTES, index * BLOCK_BYTES)
    return data + bytes(BLOCK_BYTES - len(data))
