"""A machine that goes away, or stops answering, in the middle of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import fabric
import pytest
from support import ssh_server

from instant_env.bake.execute import StepError, put_bytes, run_as_root, step_log
from instant_env.cloud.keys import KeyPair
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
