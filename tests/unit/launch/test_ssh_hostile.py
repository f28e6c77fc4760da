"""A server that speaks no SSH after its version line: one attempt fails with a word, nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import asyncssh
import pytest

from instant_env.cloud.keys import KeyPair
from instant_env.launch.guest import CLOCK_READINGS, END, GuestReadError, read_guest
from instant_env.public_key import PublicKey
from instant_env.ssh import key_query, login
from instant_env.ssh.connection import LoginError, wait_for_login
from instant_env.ssh.login import HandshakeFailed

EMPTY_PACKET = bytes([0, 0, 0, 12, 11]) + bytes(11)
#: What comes after the connection: each made one of the libraries raise something else than its own errors.
ANSWERS = {
    "a version that is no UTF-8": b"SSH-2.0-\xff\xfe\r\n",
    "a packet without payload": b"SSH-2.0-x\r\n" + EMPTY_PACKET,
    "a packet of length 0": b"SSH-2.0-x\r\n" + bytes(16),
    "a packet of 4 GiB": b"SSH-2.0-x\r\n" + b"\xff" * 16,
    "more padding than packet": b"SSH-2.0-x\r\n" + bytes([0, 0, 0, 12, 255]) + bytes(11),
    "a short KEXINIT": b"SSH-2.0-x\r\n" + bytes([0, 0, 0, 12, 10, 20]) + bytes(10),
    "a KEXINIT whose names are no UTF-8": b"SSH-2.0-x\r\n"
    + bytes([0, 0, 0, 44, 4, 20]) + bytes(16) + bytes([0, 0, 0, 2, 255, 254]) + bytes(21),
    "a disconnect without text": b"SSH-2.0-x\r\n" + bytes([0, 0, 0, 12, 10, 1]) + bytes(10),
}  # fmt: skip


@contextlib.contextmanager
def hostile_server(answer: bytes) -> Iterator[int]:
    """The port of a server that says this to everybody, and reads what comes until it is left."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.sendall(answer)
            conn.settimeout(1)  # a client that waits for more
            while conn.recv(65536):
                pass

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_ssh_fails_one_attempt(name: str) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = PublicKey.parse(key.export_public_key().decode())

    async def attempts(port: int) -> None:
        for attempt in (
            lambda sock: login.authenticate(sock, login.client_options("admin", key)),
            lambda sock: key_query.query(sock, "admin", public),
        ):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            with pytest.raises(HandshakeFailed):
                await asyncio.wait_for(attempt(sock), 30)

    with hostile_server(ANSWERS[name]) as port:
        asyncio.run(attempts(port))


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_ssh_is_tried_again_until_the_time_is_over(name: str) -> None:
    with hostile_server(ANSWERS[name]) as port, pytest.raises(LoginError):
        wait_for_login("127.0.0.1", port, "admin", KeyPair.generate(), timeout_s=0.5)


class Shell:
    """A guest's shell that prints these lines, whatever it is asked; an exception is raised in its place."""

    def __init__(self, lines: list[str | Exception]) -> None:
        self._lines = iter(lines)
        self.stdout = self.stdin = self

    async def readline(self) -> str:
        line = next(self._lines, "")
        if isinstance(line, Exception):
            raise line
        return f"{line}\n" if line else ""

    def write(self, _: str) -> None:
        """Nothing that it is told matters."""

    def write_eof(self) -> None:
        """Nor that there is no more."""

    async def __aenter__(self) -> Shell:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def create_process(self, *_: object, **__: object) -> Shell:
        return self


HEAD: list[str | Exception] = ["1 2 3", "boot-id", "6.1"]
CLOCK: list[str | Exception] = ["12.5"] * CLOCK_READINGS
MARK = '{"version": 2, "pid1": true, "marks": [{"name": "a", "boottime_ms": %s}]}'


@pytest.mark.parametrize(
    "lines",
    [
        [*HEAD, "inf"],
        [*HEAD, "nan"],
        [*HEAD, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")],
        [*HEAD, *CLOCK, MARK % "Infinity", END],
        [*HEAD, *CLOCK, MARK % ("9" * 5000), END],
        [*HEAD, *CLOCK, "[" * 100_000, END],
        [*HEAD, *CLOCK, *["x"] * 2000, END],
    ],
    ids=["infinite", "no number", "no UTF-8", "infinite mark", "huge mark", "nested", "no end"],
)
def test_whatever_a_guest_says_of_itself_is_a_report_or_an_error(lines: list[str | Exception]) -> None:
    connection: Any = Shell(lines)
    with pytest.raises(GuestReadError):
        asyncio.run(read_guest(connection))


def test_the_shell_of_these_tests_can_be_read() -> None:
    connection: Any = Shell([*HEAD, *CLOCK, MARK % "7.5", END])
    assert asyncio.run(read_guest(connection)).marks_ms == {"a": 7.5}
