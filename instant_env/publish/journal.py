"""What a publication has done so far, on disk: a killed one goes on where it was.

One file per source AMI and target, held locked while it is worked on. A line is appended after the cloud has
answered, so a block whose line is missing is written once more, which changes nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from instant_env.errors import UsageError

#: In the first line; a file of another version is begun afresh.
_MAGIC = "publication-1"
#: In place of a checksum: the block held nothing but zeros, and was not written.
_ZEROS = "-"


@dataclass
class Volume:
    """One volume of the image: its snapshot at the target, and its blocks (SHA-256; None for zeros)."""

    snapshot_id: str = ""
    starts: int = 0  # snapshots that were started for it: one that is gone is not asked for again
    blocks: dict[int, bytes | None] = field(default_factory=dict)

    @property
    def written(self) -> dict[int, bytes]:
        """The blocks that are in the snapshot, with their checksums."""
        return {index: digest for index, digest in self.blocks.items() if digest is not None}


class Journal:
    """The open journal of one publication: its run id, and the volumes by device name.

    ``resumed``: an earlier run began it, whose id this one has.
    """

    def __init__(self, path: Path, descriptor: int, new_run_id: str) -> None:
        self.path = path
        self._descriptor = descriptor
        self.run_id = new_run_id
        self.volumes: defaultdict[str, Volume] = defaultdict(Volume)
        self.resumed = self._read()
        if not self.resumed:
            os.ftruncate(self._descriptor, 0)
            self._append(f"{_MAGIC} {new_run_id}")

    def _read(self) -> bool:
        content = self.path.read_text(encoding="utf-8", errors="replace")
        whole = content[: content.rfind("\n") + 1]  # a torn line was not answered
        header, *lines = whole.splitlines() or [""]
        if header.split(" ")[0] != _MAGIC:
            return False
        os.ftruncate(self._descriptor, len(whole.encode()))
        self.run_id = header.split(" ")[1]
        for line in lines:
            kind, device, *rest = line.split(" ")
            if kind == "snapshot":
                self.volumes[device] = Volume(rest[0], self.volumes[device].starts + 1)
            else:
                digest = None if rest[1] == _ZEROS else bytes.fromhex(rest[1])
                self.volumes[device].blocks[int(rest[0])] = digest
        return True

    def snapshot(self, device: str, snapshot_id: str) -> None:
        """The volume's blocks go to this snapshot."""
        self.volumes[device] = Volume(snapshot_id, self.volumes[device].starts + 1)
        self._append(f"snapshot {device} {snapshot_id}")

    def block(self, device: str, index: int, digest: bytes | None) -> None:
        """The block is written (or, without a checksum, is nothing but zeros)."""
        self.volumes[device].blocks[index] = digest
        self._append(f"block {device} {index} {_ZEROS if digest is None else digest.hex()}")

    def _append(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())

    def end(self) -> None:
        """The publication is complete."""
        self.path.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, run_id: str) -> Iterator[Journal]:
    """The journal at ``path``: as it was left, or a new one of the run. Raises UsageError when in use."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                "this AMI is being published there right now", hint="wait for the other publish"
            ) from error
        yield Journal(path, descriptor, run_id)
    finally:
        os.close(descriptor)
