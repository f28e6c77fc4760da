"""A machine that goes away, or stops answering, in the middle of a step."""

from __future__ import annotations

import errno
import io
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import asyncssh
import fabric
import paramiko
import pytest
from support import ssh_server
from support.patience import until

from instant_env.bake import execute
from instant_env.bake.execute import StepError, put_bytes, run_as_root, run_steps, step_log
from instant_env.bake.plan import Upload
from instant_env.cloud.keys import KeyPair
from instant_env.progress import quiet
from instant_env.ssh import connection as ssh


class Stuck(ssh_server.TakesAnyKey):
    """Takes requests for a session and never answers."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    async def session_requested(self) -> bool:
        await self.connection.wait_closed()
        return False


async def serve(process: asyncssh.SSHServerProcess[str]) -> None:
    """``reset`` takes the connection along."""
    if "reset" in (process.command or ""):
        process.channel.get_connection().abort()
    process.exit(0)


@contextmanager
def logged_in(**server: Any) -> Iterator[fabric.Connection]:
    with (
        ssh_server.listening(**server) as port,
        ssh.wait_for_login("127.0.0.1", port, "admin", KeyPair.generate(), timeout_s=30) as connection,
    ):
        yield connection


def test_a_connection_that_breaks_is_called_that(tmp_path: Path) -> None:
    with (
        logged_in(server_factory=ssh_server.TakesAnyKey, process_factory=serve) as connection,
        step_log(tmp_path / "log", None) as log,
    ):
        assert run_as_root(connection, ["true"], log) == ""
        with pytest.raises(StepError, match=r"connection to the machine broke during reset$"):
            run_as_root(connection, ["reset"], log)
        with pytest.raises(StepError, match="uploading a failed"):
            put_bytes(connection, b"a", "a")


class KeepsCount(ssh_server.TakesAnyKey):
    """Takes any key, and remembers which were offered."""

    offered: ClassVar[list[str]] = []

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.offered.append(key.export_public_key().decode().split()[1])
        return True


def test_the_callers_agent_and_configuration_have_no_part_in_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent with many keys uses up a server's patience, and a line of ~/.ssh/config leads elsewhere."""
    directory = tmp_path / ".ssh"
    directory.mkdir(mode=0o700)
    (directory / "config").write_text(
        "Match exec /bin/false\n  Port 2\nHost *\n  Port 1\n  ProxyCommand /bin/false\n"
    )
    for number in range(8):
        path = directory / f"id_{number}"
        path.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        path.chmod(0o600)
    (directory / "id_ed25519").write_bytes((directory / "id_0").read_bytes())
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        until(socket.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        monkeypatch.setenv("HOME", str(tmp_path))
        subprocess.run(["ssh-add", "-q", *(directory / f"id_{number}" for number in range(8))], check=True)
        key = KeyPair.generate()
        KeepsCount.offered.clear()
        with (
            ssh_server.listening(server_factory=KeepsCount, process_factory=talk) as port,
            ssh.wait_for_login("127.0.0.1", port, "admin", key, timeout_s=30),
        ):
            assert set(KeepsCount.offered) == {key.public_openssh.split()[1]}
    finally:
        agent.terminate()
        agent.wait()


class Full(io.StringIO):
    """A terminal, or a disk, that takes nothing any more."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, _: str) -> int:
        raise self._error


async def talk(process: asyncssh.SSHServerProcess[str]) -> None:
    process.stdout.write("a line\n")
    process.exit(0)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            UnicodeEncodeError("ascii", "\u00f6", 0, 1, "ordinal not in range(128)"),
            "'ascii' codec can't encode",
        ),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_whatever_its_output_meets_is_a_failed_step(tmp_path: Path, error: Exception, words: str) -> None:
    """It is raised in a thread of Invoke's, which wraps it in an error of its own."""
    with (
        logged_in(server_factory=ssh_server.TakesAnyKey, process_factory=talk) as connection,
        step_log(tmp_path / "log", Full(error)) as log,
        pytest.raises(StepError, match=f"^true was given up: .*{words}") as caught,
    ):
        run_as_root(connection, ["true"], log)
    assert str(tmp_path / "log") in caught.value.hint


@pytest.mark.parametrize("error", [struct.error("unpack requires 4 bytes"), IndexError("out of range")])
def test_whatever_a_peer_makes_of_paramiko_is_a_failed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with (
        logged_in(server_factory=ssh_server.TakesAnyKey, process_factory=talk) as connection,
        step_log(tmp_path / "log", None) as log,
    ):
        monkeypatch.setattr(paramiko.Transport, "open_session", fail)
        with pytest.raises(StepError, match=f"^true was given up: {error}$"):
            run_as_root(connection, ["true"], log)
        with pytest.raises(StepError, match=f"^uploading a failed: {error}$"):
            put_bytes(connection, b"a", "a")


def test_a_file_that_has_gone_is_a_failed_step(tmp_path: Path) -> None:
    gone = Upload("gone", tmp_path / "gone", "0" * 64, "/etc/gone", "0644")
    with (
        logged_in(server_factory=ssh_server.TakesAnyKey, process_factory=talk) as connection,
        step_log(tmp_path / "log", None) as log,
        pytest.raises(StepError, match=f"^cannot read {gone.source}: No such file or directory$"),
    ):
        run_steps(connection, [gone], log, quiet)


@pytest.mark.parametrize(
    ("size", "staged"), [(10, "run/instant-bake/.upload"), (11, "var/tmp/instant-bake.upload")]
)
def test_an_upload_that_a_builders_memory_cannot_hold_goes_by_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, staged: str
) -> None:
    monkeypatch.setattr(execute, "_MOST_IN_MEMORY", 10)
    source, root, commands = tmp_path / "file", tmp_path / "root", list[str]()
    source.write_bytes(b"x" * size)
    for directory in ("run/instant-bake", "var/tmp"):
        (root / directory).mkdir(parents=True)

    async def record(process: asyncssh.SSHServerProcess[str]) -> None:
        commands.append(process.command or "")
        process.exit(0)

    with (
        logged_in(
            server_factory=ssh_server.TakesAnyKey, process_factory=record,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(root).encode()),
        ) as connection,
        step_log(tmp_path / "log", None) as log,
    ):  # fmt: skip
        run_steps(connection, [Upload("big", source, "0" * 64, "/usr/bin/big", "0755")], log, quiet)
    assert (root / staged).read_bytes() == source.read_bytes()
    assert commands == [
        f"sudo -n install -o root -g root -m 0755 /{staged} /usr/bin/big", f"sudo -n rm -f /{staged}"
    ]  # fmt: skip


def test_a_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_CHANNEL_TIMEOUT_S", 0.2)
    with (
        logged_in(server_factory=Stuck) as connection,
        step_log(tmp_path / "log", None) as log,
        pytest.raises(StepError, match="Timeout opening channel"),
    ):
        run_as_root(connection, ["true"], log)
