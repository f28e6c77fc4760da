"""Records on disk.

One JSON file per record, ``records/<kind>/<name>.json``, written to a temporary file and renamed, so that a
record is there whole or not at all, whatever kills the server. Mode 0600: user data is in them.

Nothing is fsynced: a record is written with the server's lock held, and a disk that is busy with an image's
gigabytes may keep an fsync waiting for a minute, in which no request would be answered. What that gives up is
the last seconds before a power failure, which ended the machines too; a record left empty by one counts as
never made.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from instant_env import files
from instant_env.errors import InstantEnvError
from instant_env.localec2.records.records import Record

log = logging.getLogger(__name__)


class RecordError(InstantEnvError):
    """A record on disk cannot be read."""


R = TypeVar("R", bound=Record)
_SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RecordStore:
    """Reads and writes records below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, kind: str, key: str) -> Path:
        if not _SAFE_KEY.fullmatch(key):
            raise RecordError(f"{key!r} cannot name a {kind} record")
        return self.root / kind / f"{key}.json"

    def save(self, record: Record) -> None:
        """Write the record; when this returns, it outlives the server."""
        path = self._path(record.kind, record.key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomically(path, record.model_dump_json(indent=1).encode())

    def delete(self, record_class: type[Record], key: str) -> None:
        """Remove the record, if it is there."""
        self.remove(record_class.kind, key)

    def remove(self, kind: str, key: str) -> None:
        """The same by the kind's name."""
        self._path(kind, key).unlink(missing_ok=True)

    def exists(self, record: Record) -> bool:
        """Whether it was written before."""
        return self._path(record.kind, record.key).exists()

    def revert(self, record: R) -> R:
        """Give a record that could not be written the values that the disk has. Raises OSError."""
        content = self._path(record.kind, record.key).read_bytes()
        stored = type(record).model_validate_json(content)
        for name in type(record).model_fields:
            setattr(record, name, getattr(stored, name))
        return record

    def load_all(self, record_class: type[R]) -> list[R]:
        """All records of one kind. Raises RecordError for one that is damaged: guessing would lose data."""
        records = []
        for path in sorted((self.root / record_class.kind).glob("*.json")):
            try:
                content = path.read_bytes()
                if not content:
                    log.warning("%s is empty, as a power failure leaves a file: removed", path)
                    path.unlink()
                    continue
                records.append(record_class.model_validate_json(content))
            except (OSError, ValidationError) as error:
                first_line = str(error).splitlines()[0]
                raise RecordError(
                    f"cannot read {path}: {first_line}", hint="move the file away and start again"
                ) from error
        return records
