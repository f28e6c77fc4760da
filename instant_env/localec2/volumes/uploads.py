"""Snapshots that are written block by block (the EBS direct APIs), until they are sealed.

The blocks lie in a sparse raw file beside the place of the snapshot, their checksums in a log beside that: a
write that was answered outlives the server, and the upload goes on at the next one. Sealing makes the qcow2.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from instant_env.errors import InstantEnvError
from instant_env.localec2.qemu import disks
from instant_env.localec2.records.records import SnapshotRecord, UploadTerms
from instant_env.localec2.state.client_tokens import TokenMismatchError, same_request
from instant_env.localec2.state.moto_api import ACCOUNT_ID, new_id
from instant_env.localec2.state.named_locks import NamedLocks
from instant_env.localec2.state.state import State, now
from instant_env.localec2.volumes.snapshots import Snapshots

log = logging.getLogger(__name__)

#: Bytes of a block (EBS User Guide, "Concepts for EBS direct APIs").
BLOCK_BYTES = 524_288
#: A line of the log: index of the block, SHA-256 of its bytes.
_ENTRY = struct.Struct("<Q32s")


class DirectError(Exception):
    """A refusal: ``code`` is the API's exception, ``reason`` its Reason where it has one."""

    def __init__(self, status: int, code: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.reason = status, code, reason


def invalid(reason: str, message: str) -> DirectError:
    """A ValidationException."""
    return DirectError(400, "ValidationException", reason, message)


class Uploads:
    """Uploads of one server. Public methods take the locks they need, where they do not say otherwise."""

    def __init__(self, state: State, snapshots: Snapshots) -> None:
        self.state = state
        self.snapshots = snapshots
        self._digests: dict[str, dict[int, bytes]] = {}
        #: Held while a block is written, and while the upload is sealed: no block comes after that. Whoever
        #: holds one may take the state's lock, never the other way round.
        self.locks = NamedLocks()

    def start(
        self, size_gib: int, description: str, tags: dict[str, str], *, encrypted: bool, timeout_min: int,
        token: str | None, digest: str,
    ) -> SnapshotRecord:  # fmt: skip
        """StartSnapshot (the state's lock held): a pending snapshot, or the one made with this token."""
        uploads = {item.upload: item for item in self.state.snapshots.values() if item.upload is not None}
        try:
            if earlier := same_request(uploads, token, digest):
                return uploads[earlier[0]]
        except TokenMismatchError:
            raise DirectError(
                409, "ConflictException", "", "The client token was used with other parameters."
            ) from None
        terms = UploadTerms(client_token=token, request_digest=digest, timeout_min=timeout_min)
        snapshot = SnapshotRecord(
            id=new_id("snap"), tags=tags, volume_id="vol-ffffffff", size_gib=size_gib, encrypted=encrypted,
            description=description, owner_id=ACCOUNT_ID, start_time=now(), state="pending", upload=terms,
        )  # fmt: skip
        blocks, digests = self.state.layout.upload(snapshot.id), self.state.layout.upload_log(snapshot.id)
        try:
            with blocks.open("wb") as stream:
                stream.truncate(size_gib * disks.GIB)
            digests.touch()
            self.state.save(snapshot)
        except BaseException:
            blocks.unlink(missing_ok=True)
            digests.unlink(missing_ok=True)
            raise
        return snapshot

    def put(self, snapshot_id: str, index: int, data: bytes, digest: bytes) -> None:
        """PutSnapshotBlock: the checksum was compared; a block that is there already is overwritten."""
        with self.locks.held(snapshot_id):
            snapshot, _ = self._pending(snapshot_id)
            if not 0 <= index < snapshot.size_gib * disks.GIB // BLOCK_BYTES:
                raise invalid("INVALID_BLOCK", f"Block {index} is not within the volume's size")
            digests = self._digests_of(snapshot_id)
            _write_at(self.state.layout.upload(snapshot_id), index * BLOCK_BYTES, data)
            _append(self.state.layout.upload_log(snapshot_id), _ENTRY.pack(index, digest))
            digests[index] = digest

    def complete(self, snapshot_id: str, count: int, checksum: bytes | None) -> SnapshotRecord:
        """CompleteSnapshot: seal it, when it holds this many blocks and their aggregate is ``checksum``.

        The answer is `pending`: the snapshot is `completed` some time later. Asked again it answers the same.
        """
        with self.locks.held(snapshot_id):
            with self.state.lock:
                sealed = self.state.snapshots.get(snapshot_id)
                if sealed is not None and sealed.upload is not None and sealed.upload.sealed:
                    return sealed
            snapshot, terms = self._pending(snapshot_id)
            digests = self._digests_of(snapshot_id)
            if len(digests) != count:
                raise invalid(
                    "INVALID_PARAMETER_VALUE", f"ChangedBlocksCount is {count}; {len(digests)} were written"
                )
            if checksum is not None and checksum != linear(digests):
                raise invalid("INVALID_PARAMETER_VALUE", "The checksum is not that of the blocks' checksums")
            with self.state.lock, self.state.request():
                snapshot.upload = terms.model_copy(update={"sealed": True})
                self.state.save(snapshot)
            self._digests.pop(snapshot_id, None)
        self._seal(snapshot)
        return snapshot

    def expire(self, at: datetime) -> None:
        """Give up uploads that nobody has gone on with for their time (the state's lock held)."""
        for snapshot_id in [name for name in self._digests if name not in self.state.snapshots]:
            self._digests.pop(snapshot_id, None)  # deleted before it was sealed
        for snapshot in list(self.state.snapshots.values()):
            if snapshot.state == "pending" and snapshot.upload and self._is_late(snapshot, at):
                self._digests.pop(snapshot.id, None)
                self.snapshots.settle(
                    snapshot, f"no block was written for {snapshot.upload.timeout_min} minutes"
                )

    def resume(self) -> None:
        """At start (the state's lock held): uploads go on; those that were being sealed are sealed again."""
        for snapshot in list(self.state.snapshots.values()):
            if snapshot.state == "pending" and snapshot.upload is not None and snapshot.upload.sealed:
                self._seal(snapshot)

    def _seal(self, snapshot: SnapshotRecord) -> None:
        layout = self.state.layout

        def convert() -> None:
            problem = ""
            try:
                if not layout.snapshot(snapshot.id).exists():
                    disks.from_raw(layout.upload(snapshot.id), layout.snapshot(snapshot.id))
            except (InstantEnvError, OSError) as error:
                log.error("%s: %s", snapshot.id, error)
                problem = str(error)
            with self.state.lock:
                self.snapshots.settle(snapshot, problem)

        threading.Thread(target=convert, name=f"seal {snapshot.id}").start()

    def _pending(self, snapshot_id: str) -> tuple[SnapshotRecord, UploadTerms]:
        """The upload and its terms, when blocks may still be written to it."""
        with self.state.lock:
            snapshot = self.state.snapshots.get(snapshot_id)
            if snapshot is None or snapshot.owner_id != ACCOUNT_ID:
                raise DirectError(
                    404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND",
                    f"The snapshot '{snapshot_id}' does not exist.",
                )  # fmt: skip
            if snapshot.upload is not None and snapshot.state == "pending":
                if self._is_late(snapshot, datetime.now(UTC)):
                    raise invalid("WRITE_REQUEST_TIMEOUT", f"The upload of {snapshot_id} has timed out")
                if not snapshot.upload.sealed:
                    return snapshot, snapshot.upload
        raise invalid("INVALID_SNAPSHOT_ID", f"Nothing can be written to {snapshot_id}: it is not pending")

    def _is_late(self, snapshot: SnapshotRecord, at: datetime) -> bool:
        if snapshot.upload is None or snapshot.upload.sealed:
            return False
        try:
            last_write = datetime.fromtimestamp(
                self.state.layout.upload_log(snapshot.id).stat().st_mtime, tz=UTC
            )
        except OSError:
            last_write = snapshot.start_time  # somebody took the file away
        return at - last_write > timedelta(minutes=snapshot.upload.timeout_min)

    def _digests_of(self, snapshot_id: str) -> dict[int, bytes]:
        """Checksums of the blocks that were written; a torn entry is of a write that was not answered."""
        if snapshot_id not in self._digests:
            content = self.state.layout.upload_log(snapshot_id).read_bytes()
            whole = len(content) - len(content) % _ENTRY.size
            if whole != len(content):
                os.truncate(self.state.layout.upload_log(snapshot_id), whole)
            self._digests[snapshot_id] = dict(_ENTRY.iter_unpack(content[:whole]))
        return self._digests[snapshot_id]


def linear(digests: dict[int, bytes]) -> bytes:
    """The aggregate that CompleteSnapshot takes: SHA-256 of the blocks' SHA-256, in their order."""
    return hashlib.sha256(b"".join(digest for _, digest in sorted(digests.items()))).digest()


def _write_at(path: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(descriptor, data, offset) != len(data):
            raise OSError(f"short write to {path}")
    finally:
        os.close(descriptor)


def _append(path: Path, entry: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if os.write(descriptor, entry) != len(entry):
            os.ftruncate(descriptor, end)
            raise OSError(f"short write to {path}")
    finally:
        os.close(descriptor)
