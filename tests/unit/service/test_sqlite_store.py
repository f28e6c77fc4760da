"""What only the SQLite store has: its file, its lock, its migrations, its copies."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support.service.claimers import forks
from support.service.records import NOW, WIDE, cold, ready_machine, request, token, warm

from instant_env.service.records import Lease, MachineState
from instant_env.service.store import lock, migrate, schema, sqlite
from instant_env.service.store.lock import ServiceLock
from instant_env.service.store.protocol import StoreError
from instant_env.service.store.sqlite import SqliteStore, Turns, back_up, restore
from instant_env.waiting import wait_until

ME = token("me")


@contextmanager
def opened(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore.open(path)
    try:
        yield store
    finally:
        store.close()


def admit(store: SqliteStore) -> Lease:
    return store.admit(ME, request(), (warm(), cold()), limits=WIDE, idempotency=None, now=NOW).lease


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def one_line(error: StoreError) -> str:
    """The error as the command line prints it."""
    line = f"{error.message} ({error.hint})"
    assert error.hint
    assert "\n" not in line
    return line


# the file


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277], ids=oct)
def test_the_file_and_its_directory_are_its_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with opened(tmp_path / "service" / "store.db") as store:
            admit(store)
            files = {path.name: mode(path) for path in (tmp_path / "service").iterdir()}
    finally:
        os.umask(before)
    assert files == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert mode(tmp_path / "service") == 0o700


def test_a_directory_that_was_there_keeps_its_mode_and_a_file_does_not(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o755)
    path = directory / "store.db"
    path.touch()
    path.chmod(0o644)
    with opened(path):
        assert (mode(directory), mode(path)) == (0o755, 0o600)


def test_commits_are_on_the_disk_and_readers_wait_for_no_writer(tmp_path: Path) -> None:
    with opened(tmp_path / "store.db") as store:
        with store.reading() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        with store.writing(), ThreadPoolExecutor(1) as other:
            assert other.submit(store.machines).result(timeout=60) == []
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_any_thread_may_use_it(tmp_path: Path) -> None:
    with opened(tmp_path / "a b?c%20#.db") as store, ThreadPoolExecutor(40) as pool:
        leases = list(pool.map(lambda _: admit(store), range(40)))
        assert {lease.id for lease in pool.map(lambda lease: store.lease(lease.id), leases) if lease} == {
            lease.id for lease in leases
        }
    assert (tmp_path / "a b?c%20#.db").is_file()


def test_writers_of_a_process_take_turns(tmp_path: Path) -> None:
    turns = Turns()
    order: list[int] = []

    def write(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    with turns:
        for count, thread in enumerate(threads, 1):
            thread.start()
            assert wait_until(lambda count=count: len(turns._waiting) == count, 30, 0.001)  # type: ignore[misc]
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == list(range(20))
    with turns:  # it is free again
        order.append(20)


def test_a_writer_that_is_interrupted_while_it_waits_keeps_nobody_waiting() -> None:
    turns = Turns()
    main = threading.get_ident()

    def interrupt_the_one_that_waits() -> None:
        assert wait_until(lambda: len(turns._waiting) == 1, 60, 0.001)
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, _interrupt)
    thread = threading.Thread(target=interrupt_the_one_that_waits)
    try:
        with turns:
            thread.start()
            with pytest.raises(KeyboardInterrupt), turns:
                pytest.fail("the lock was taken")
        with turns:
            pass
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# what is no store


@pytest.mark.parametrize("content", [b"not a database, and longer than the header of one" * 50, b"\0" * 9000])
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(StoreError) as refusal:
        SqliteStore.open(path)
    assert str(path) in one_line(refusal.value)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE leases (name TEXT)")
    with pytest.raises(StoreError, match="not those of a store"):
        SqliteStore.open(path)


def test_a_place_where_no_file_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "store.db", tmp_path):
        with pytest.raises(StoreError, match="cannot be made") as refusal:
            SqliteStore.open(path)
        one_line(refusal.value)


def test_another_writer_that_does_not_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "store.db"
    with opened(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked") as refusal:
                store.add_token(ME)
            assert "another process writes" in one_line(refusal.value)
            assert store.tokens() == []
            other.execute("ROLLBACK")
        store.add_token(ME)
        assert store.tokens() == [ME]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """A limit of the process on the size of files stands in for the disk: the kernel refuses the write."""
    context = forks()
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_fill_the_disk, args=(tmp_path / "store.db", there))
    child.start()
    there.close()
    answered, line, hint, after = here.recv()
    child.join()
    assert child.exitcode == 0
    assert str(tmp_path / "store.db") in line
    assert "\n" not in line + hint
    assert "disk" in hint
    assert len(answered) > 3
    with opened(tmp_path / "store.db") as store:
        assert {lease.id for lease in store.live_leases()} == {*answered, after}
        for lease_id in answered:
            assert [event.sequence for event in store.events(lease_id)] == [1]


def _fill_the_disk(path: Path, pipe: Connection) -> None:
    store = SqliteStore.open(path)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200_000, most))
    answered = []
    try:
        while True:
            answered.append(admit(store).id)
    except StoreError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        pipe.send((answered, error.message, error.hint, admit(store).id))
    store.close()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """SQLite opens a file read-only when it may not write it; as root nothing forbids that, so it is told."""
    with opened(tmp_path / "store.db") as store:
        with store.writing() as connection:
            connection.exec_driver_sql("PRAGMA query_only=ON")
        with pytest.raises(StoreError, match="readonly") as refusal:
            store.add_token(ME)
        assert "must be allowed to write" in one_line(refusal.value)


# migrations


def test_migrations_make_the_tables_of_the_schema(tmp_path: Path) -> None:
    with opened(tmp_path / "store.db") as store, store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
        assert migrate.revision_of(connection, store.name) == schema.REVISION


def test_the_newest_migration_is_the_schemas(tmp_path: Path) -> None:
    assert ScriptDirectory(migrate.SCRIPTS).get_heads() == [schema.REVISION]
    # The comparison above sees a difference.
    with opened(tmp_path / "store.db") as store:
        with store.writing() as connection:
            connection.exec_driver_sql("DROP INDEX machines_by_lease")
            connection.exec_driver_sql("ALTER TABLE tokens ADD COLUMN more TEXT")
        with store.reading() as connection:
            context = MigrationContext.configure(connection)
            kinds = {difference[0] for difference in compare_metadata(context, schema.metadata)}
    assert kinds == {"add_index", "remove_column"}


def test_a_store_of_a_newer_version_is_refused_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with opened(path) as store, store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer version \(revision 9999") as refusal:
        SqliteStore.open(path)
    assert str(path) in one_line(refusal.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store.db"]


@contextmanager
def newer_program(tmp_path: Path, statement: str) -> Iterator[None]:
    """As if this program had one more migration, which runs a statement."""
    scripts = tmp_path / "50% newer" / "migrations"
    shutil.copytree(migrate.SCRIPTS, scripts)
    script = f"""
        from alembic import op

        revision = "0002"
        down_revision = "{schema.REVISION}"

        def upgrade() -> None:
            op.execute("ALTER TABLE tokens ADD COLUMN more TEXT NOT NULL DEFAULT 'new'")
            op.execute({statement!r})
        """
    (scripts / "versions" / "v0002_more.py").write_text(textwrap.dedent(script))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "SCRIPTS", scripts)
        patch.setattr(schema, "REVISION", "0002")
        yield


def test_an_older_store_is_upgraded_after_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    copy = path.with_name(f"store.db.{schema.REVISION}.bak")
    with opened(path) as store:
        lease = admit(store)
    statement = "UPDATE leases SET detail = 'upgraded'"
    with newer_program(tmp_path, statement), opened(path) as store:
        assert store.lease(lease.id) == replace(lease, detail="upgraded")
        with store.reading() as connection:
            assert migrate.revision_of(connection, "it") == "0002"
            assert connection.exec_driver_sql("SELECT more FROM tokens").all() == []
    assert mode(copy) == 0o600
    with opened(copy) as old:
        assert old.lease(lease.id) == lease
    with pytest.raises(StoreError, match="newer"):
        SqliteStore.open(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with opened(path) as store:
        lease = admit(store)
    with newer_program(tmp_path, "SELECT * FROM nowhere"), pytest.raises(StoreError, match="nowhere"):
        SqliteStore.open(path)
    with opened(path) as store:
        assert store.lease(lease.id) == lease


def test_two_processes_that_make_one_store_make_it_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: SqliteStore.open(tmp_path / "store.db"), range(4)))
    stores[0].add_machine(ready_machine())
    for store in stores:
        assert len(store.machines()) == 1
        store.close()


# one service


def test_the_second_service_on_a_store_is_told_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    first = SqliteStore.open(path, url="http://127.0.0.1:0")
    assert first.lock
    first.lock.say("http://127.0.0.1:8022")
    with pytest.raises(StoreError) as refusal:
        SqliteStore.open(path, url="http://127.0.0.1:9000")
    assert f"the service at http://127.0.0.1:8022 (process {os.getpid()}) has the store {path}" in one_line(
        refusal.value
    )
    assert mode(path.with_name("store.db.lock")) == 0o600
    # Tools that only look need no lock.
    with opened(path) as looker:
        assert looker.tokens() == []
    first.close()
    SqliteStore.open(path, url="http://127.0.0.1:9000").close()


def test_a_store_that_cannot_be_opened_is_not_locked(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("this is no database, and a long enough text for SQLite to see that " * 20)
    for _ in range(2):
        with pytest.raises(StoreError, match="not a database"):
            SqliteStore.open(path, url="http://127.0.0.1:8022")


def test_the_lock_is_free_after_a_kill_and_whatever_its_file_says(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    program = (
        "import pathlib, sys, time\n"
        "from instant_env.service.store.lock import ServiceLock\n"
        "lock = ServiceLock.take(pathlib.Path(sys.argv[1]), 'http://127.0.0.1:8022')\n"
        "print('taken', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, store], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "taken\n"
            with pytest.raises(StoreError, match=rf"process {child.pid}\)"):
                ServiceLock.take(store, "http://127.0.0.1:9000")
        finally:
            child.kill()
            child.wait()
    assert str(child.pid) in lock.holder(tmp_path / "store.db.lock")
    ServiceLock.take(store, "http://127.0.0.1:9000").release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_lock_whose_file_says_nothing_still_holds(tmp_path: Path, content: bytes) -> None:
    held = ServiceLock.take(tmp_path / "store.db", "http://127.0.0.1:8022")
    held.path.write_bytes(content)
    with pytest.raises(StoreError, match="another service has the store"):
        ServiceLock.take(tmp_path / "store.db", "http://127.0.0.1:9000")
    held.release()


# copies


def test_a_copy_of_a_store_in_use_is_one_moment_of_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    with opened(path) as store, ThreadPoolExecutor(1) as writer:
        store.add_machine(ready_machine())
        before = admit(store)
        running = writer.submit(lambda: [admit(store).id for _ in range(100)])
        back_up(path, copy)
        after = running.result()
    assert mode(copy) == 0o600
    assert {file.name for file in tmp_path.iterdir()} == {"store.db", "copy.db"}
    with opened(copy) as old:
        ids = {lease.id for lease in old.live_leases()}
        assert old.machine(before.machine_id) is not None
    assert before.id in ids
    # Those that it has are the first ones, without a gap.
    assert ids - {before.id} == set(after[: len(ids) - 1])


def test_a_copy_replaces_an_older_one_or_nothing(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    copy.write_text("yesterday's")
    with pytest.raises(StoreError, match="no store"):
        back_up(path, copy)
    path.write_text("this is no database, and a long enough text for SQLite to see that " * 20)
    with pytest.raises(StoreError, match="cannot be copied"):
        back_up(path, copy)
    assert copy.read_text() == "yesterday's"
    assert {file.name for file in tmp_path.iterdir()} == {"store.db", "copy.db"}
    with pytest.raises(StoreError, match="cannot be copied"):
        back_up(path, tmp_path / "nowhere" / "copy.db")


def test_a_restored_store_is_the_copy_and_the_old_one_is_kept(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    with opened(path) as store:
        first = admit(store)
        back_up(path, copy)
        second = admit(store)
        # As after a kill: the log has what the file has not.
        shutil.copy(path.with_name("store.db-wal"), tmp_path / "wal")
    shutil.move(tmp_path / "wal", path.with_name("store.db-wal"))
    aside = restore(copy, path)
    assert mode(path) == 0o600
    with opened(path) as store:
        assert [lease.id for lease in store.live_leases()] == [first.id]
    assert aside
    with opened(aside) as old:
        assert [lease.id for lease in old.live_leases()] == [first.id, second.id]
    assert re.fullmatch(r"store\.db\.\d{8}T\d{6}Z\.old", aside.name)


def test_a_lost_store_is_restored(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    with opened(path) as store:
        lease = admit(store)
        back_up(path, copy)
    path.unlink()
    assert restore(copy, tmp_path / "new" / "store.db") is None
    with opened(tmp_path / "new" / "store.db") as store:
        assert store.lease(lease.id) == lease
    assert mode(tmp_path / "new") == 0o700


def test_what_is_no_copy_is_not_restored(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    with opened(path) as store:
        lease = admit(store)
    copy.write_text("this is no database, and a long enough text for SQLite to see that " * 20)
    with pytest.raises(StoreError, match=r"copy\.db"):
        restore(copy, path)
    with pytest.raises(StoreError, match="no store"):
        restore(tmp_path / "none.db", path)
    with opened(copy.with_name("newer.db")) as newer, newer.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer version"):
        restore(copy.with_name("newer.db"), path)
    with opened(path) as store:
        assert store.lease(lease.id) == lease


def test_a_store_in_use_by_a_service_is_not_replaced(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    store = SqliteStore.open(path, url="http://127.0.0.1:8022")
    back_up(path, copy)
    with pytest.raises(StoreError, match=re.escape("http://127.0.0.1:8022")):
        restore(copy, path)
    store.add_machine(ready_machine(state=MachineState.FILLING))
    store.close()
    restore(copy, path)
