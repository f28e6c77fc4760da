"""A machine's sshd on loopback, with the far end of a hand-over played by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from instant_env.cloud.keys import KeyPair
from instant_env.launch.standing_query import Door
from instant_env.ssh.host_keys import HostKeys
from support import ssh_server

READY = '{"version":1,"ready":true}'
OK = '{"ok":true,"ended_sessions":2}'


@dataclass
class HandedGuest:
    """Takes ``ours`` at first, and after a hand-over that it answers with OK the lessee's key alone."""

    ready: str = READY
    """What a started command says; empty ends it at once, with a word on standard error."""
    answer: str = OK
    """What it says to a request; empty ends it without an answer."""
    silent: bool = False
    """No answer at all, and the command goes on."""
    port: int = 0
    ours: KeyPair = field(default_factory=KeyPair.generate)
    host_key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    commands: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    """The keys that clients have offered, in order."""
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    known: str = ""
    drops: int = 0
    """How many connections it is yet to drop before keys are exchanged."""

    @property
    def host_keys(self) -> HostKeys:
        keys = HostKeys.parse(self.host_key.export_public_key().decode())
        assert keys is not None
        return keys

    @property
    def door(self) -> Door:
        return Door("127.0.0.1", self.port, "admin", self.host_keys)

    async def _command(self, process: asyncssh.SSHServerProcess[str]) -> None:
        self.commands.append(process.command or "")
        if not self.ready:
            process.stderr.write("sudo: a password is required\n")
            process.exit(1)
            return
        process.stdout.write(f"{self.ready}\n")
        if not (line := await process.stdin.readline()):
            process.exit(0)
            return
        self.requests.append(json.loads(line))
        if self.silent:
            await process.stdin.read()
        elif self.answer:
            if self.answer == OK:
                self.known = self.requests[-1]["public_key"]
            process.stdout.write(f"{self.answer}\n")
        process.exit(0)

    @contextmanager
    def serving(self) -> Iterator[HandedGuest]:
        self.known = self.known or self.ours.public_key.bare
        options: Any = {"server_factory": lambda: _Server(self), "process_factory": self._command}
        with ssh_server.listening(host_keys=[self.host_key], **options) as self.port:
            yield self


class _Server(asyncssh.SSHServer):
    def __init__(self, guest: HandedGuest) -> None:
        self._guest = guest

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._guest.connections.append(conn)
        if self._guest.drops:
            self._guest.drops -= 1
            conn.abort()

    def begin_auth(self, username: str) -> bool:
        return username == "admin"

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        del username
        self._guest.questions.append(offered := key.export_public_key().decode().strip())
        return offered.split()[:2] == self._guest.known.split()[:2]


async def eventually(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
