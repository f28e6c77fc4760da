"""What one request makes is there whole or not at all, whatever ends the server in between.

RunInstances writes a record per instance and volume. Before each new one its name is appended to the
request's journal, which is removed when the request is done: a journal found at start names records of a
request that nobody was answered. Requests run one at a time, so there is one journal.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from instant_env.errors import InstantEnvError
from instant_env.localec2.records.records import Record
from instant_env.localec2.records.store import RecordStore

log = logging.getLogger(__name__)


class StorageError(InstantEnvError):
    """A record cannot be written: the disk is full, or worse."""


class Request:
    """The records that one request has made so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self.new_records: list[Record] = []

    def note(self, record: Record) -> None:
        """This record is made next. Raises OSError."""
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        line = f"{record.kind} {record.key}\n".encode()
        if os.write(self._descriptor, line) != len(line):
            raise OSError(f"short write to {self._path}")
        self.new_records.append(record)

    def end(self) -> None:
        """The request is done; what it made stays."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)


def undo_unanswered(path: Path, store: RecordStore) -> None:
    """At start, before records are read: remove what an interrupted request had made."""
    try:
        content = path.read_text()
    except FileNotFoundError:
        return
    whole = content[: content.rfind("\n") + 1]  # a torn line's record was not written
    for line in whole.splitlines():
        kind, _, key = line.partition(" ")
        log.warning("a request was not answered: %s %s is undone", kind, key)
        store.remove(kind, key)
    path.unlink(missing_ok=True)
