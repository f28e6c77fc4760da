"""The store in a file of SQLite: for a service of one process."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event

from instant_env.files import replacing
from instant_env.service.store import migrate, schema
from instant_env.service.store.lock import ServiceLock
from instant_env.service.store.protocol import StoreError
from instant_env.service.store.sql import SqlStore

#: How long a writer waits for another process's.
BUSY_TIMEOUT_S = 30.0
#: Connections that are kept; more threads open more, which are closed after use.
_POOL_SIZE = 16

_HINTS = {
    "full": "make room on its disk; nothing that was promised is lost",
    "disk I/O error": "look at the disk, its quota and the kernel's log",
    "readonly": "the service must be allowed to write the file and its directory",
    "unable to open": "the service must be allowed to write the file and its directory",
    "locked": "another process writes to the store: end it",
    "not a database": "restore a back-up (docs/service.md, Operations), or move the file away",
    "malformed": "restore a back-up (docs/service.md, Operations)",
}


class Turns:
    """A lock that threads get in the order in which they came. With a plain one, the thread that has just let
    it go is the first to take it again: of twelve threads one waited 17 s, and the median 0.2 s."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._is_taken:
                self._is_taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()  # its predecessor lets it go, and the lock stays taken
        except BaseException:  # Ctrl-C in the main thread: nobody would let the next one in
            self._leave(turn)
            raise

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

    def _leave(self, turn: threading.Lock) -> None:
        with self._mutex:
            is_waiting = turn in self._waiting
            if is_waiting:
                self._waiting.remove(turn)
        if not is_waiting:
            self.__exit__()


class SqliteStore(SqlStore):
    """One file, and beside it the write-ahead log while it is open."""

    def __init__(self, engine: Engine, path: Path, lock: ServiceLock | None) -> None:
        super().__init__(engine, str(path))
        self.path = path
        self.lock = lock
        self._turn = Turns()
        self._immediate = engine.execution_options(sqlite_begin="IMMEDIATE")

    @classmethod
    def open(cls, path: Path | str, *, url: str | None = None) -> Self:
        """The store in this file, which is made or upgraded if needed.

        With ``url`` it is this service's alone until it is closed (``lock.say`` corrects the URL). Raises
        StoreError: another service has it, it is of a newer version, it is something else, or its disk fails.
        """
        path = Path(path)
        _make_private(path)
        lock = ServiceLock.take(path, url) if url is not None else None
        store = cls(_engine(path), path, lock)
        try:
            store._bring_up_to_date()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        super().close()
        if self.lock:
            self.lock.release()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Threads wait for each other here, in order and without SQLite's pauses; processes by its lock."""
        with self._failures(), self._turn, self._immediate.begin() as connection:
            yield connection

    def hint_for(self, problem: str) -> str:
        hints = (hint for words, hint in _HINTS.items() if words in problem)
        return next(hints, super().hint_for(problem))

    def _bring_up_to_date(self) -> None:
        with self.reading() as connection:
            revision = migrate.revision_of(connection, self.name)
        if revision == schema.REVISION:
            return
        if revision is not None:
            migrate.check_known(revision, self.name)
            back_up(self.path, self.path.with_name(f"{self.path.name}.{revision}.bak"))
        with self.writing() as connection:
            # Another process may have done it in between.
            if migrate.revision_of(connection, self.name) != schema.REVISION:
                migrate.upgrade(connection)


def back_up(path_from: Path, path_to: Path) -> None:
    """A consistent copy of a store, also of one that is in use. It replaces ``path_to`` as a whole, and is
    its owner's alone. Raises StoreError."""
    if not path_from.is_file():
        raise StoreError(f"there is no store {path_from}", hint="name the service's database file")
    try:
        with replacing(path_to) as temporary:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            source = f"{path_from.absolute().as_uri()}?mode=ro"
            with (
                closing(sqlite3.connect(source, uri=True, timeout=BUSY_TIMEOUT_S)) as origin,
                closing(sqlite3.connect(temporary)) as copy,
            ):
                origin.backup(copy)
                # Of a log beside it, which a copy of the file alone would lack, the copy has no need.
                copy.execute("PRAGMA journal_mode=DELETE")
            _flush(temporary)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"the store {path_from} cannot be copied to {path_to}: {error}", hint="look at the disk"
        ) from error


def restore(copy: Path, path: Path) -> Path | None:
    """Put a copy in the place of a store that no service uses; returns where the old one is kept, if there
    was one.

    Raises StoreError: a service has the store, or the copy is none that this program can open.
    """
    if not copy.is_file():
        raise StoreError(f"there is no store {copy}", hint="name a file that a back-up wrote")
    _make_private(path)
    lock = ServiceLock.take(path, "")
    try:
        # The copy is looked at and upgraded beside the store, so that the store is replaced by what opens.
        with replacing(path) as temporary:
            back_up(copy, temporary)
            try:
                SqliteStore.open(temporary).close()
            except StoreError as error:
                raise StoreError(f"{copy} cannot be restored: {error}", hint=error.hint) from error
            for leftover in path.parent.glob(f"{temporary.name}.*.bak"):
                leftover.unlink()
            aside = None
            if path.stat().st_size:
                aside = path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.old")
                back_up(path, aside)
            # A log of the old file would be played into the new one.
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        return aside
    finally:
        lock.release()


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=_POOL_SIZE,
        max_overflow=-1,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: Any, _record: object) -> None:
    # No BEGIN of sqlite3's own, which it leaves out before SELECT: :func:`_begin` says it.
    connection.isolation_level = None
    # Commits are on the disk (a claim that a power cut undoes is a machine that two get).
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """IMMEDIATE for writers: a transaction that read first and then wants to write, while another wrote, is
    refused by SQLite at once, whatever the time-out."""
    kind = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")


def _make_private(path: Path) -> None:
    """The file and what is missing of its directory, for their owner only, whatever the umask."""
    try:
        if not path.parent.is_dir():
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.parent.chmod(0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # SQLite gives it to the log as well
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(
            f"the store {path} cannot be made: {error.strerror}",
            hint="name a file in a directory that the service may write",
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
