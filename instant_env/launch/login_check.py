"""The proof that a key is let in (t4), by the private key or, where only the public one is known, without.

A check takes the version line that :class:`instant_env.launch.launch.Launch` waits for, and asks again while
sshd does not know the key yet, with the pauses of :mod:`instant_env.ssh.pauses`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod

import asyncssh

from instant_env.launch.guest import GuestReadError, GuestReport, read_guest
from instant_env.launch.launch import Launch
from instant_env.launch.timeline import MarkName
from instant_env.public_key import PublicKey
from instant_env.ssh import key_query, pauses
from instant_env.ssh.connect_probe import SshAnswer
from instant_env.ssh.host_keys import HostKeys
from instant_env.ssh.login import HandshakeFailed, KeyRefused, authenticate, client_options

#: Reading the machine's own account may take this long; it is off the clock and never fails a launch.
_GUEST_READ_S = 60.0


class LoginCheck(ABC):
    """One proof for one launch. The fields are set as it goes on."""

    def __init__(self) -> None:
        self.keys_refused = 0
        self.host_key: PublicKey | None = None
        """What the server showed; checked where the check was given the machine's keys."""
        self.trouble = ""
        """Why the newest connection ended before sshd had decided."""

    @property
    def host_key_fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen prints it; empty before a server showed its key."""
        return self.host_key.fingerprint if self.host_key else ""

    @abstractmethod
    async def _prove(self, sock: socket.socket) -> int:
        """Ask over ``sock``; the instant of sshd's yes. Raises KeyRefused, HandshakeFailed, or
        HostKeyMismatch, which is not repeated."""

    def close(self) -> None:  # noqa: B027 - only a login leaves something open
        """Close what the proof has left open."""

    async def run(self, launch: Launch) -> None:
        """Ask until sshd accepts the key, and mark t4; the deadline is the caller's."""
        previous: SshAnswer | None = None
        not_before_ns: int | None = None
        while True:
            answer = await launch.version_line(not_before_ns=not_before_ns)
            try:
                accepted_ns = await self._prove(answer.sock)
            except KeyRefused:
                pause_s = pauses.after_refusal(self.keys_refused)
                self.keys_refused += 1
            except HandshakeFailed as error:
                self.trouble = str(error)
                pause_s = pauses.HANDSHAKE_S
            else:
                # Without a retry an ideal prober would have been ahead by t3's resolution; with one, sshd may
                # have been willing since just after it last was not.
                resolution_ns = answer.banner_ns - previous.banner_ns if previous else answer.resolution_ns
                launch.timeline.mark(MarkName.T4, accepted_ns, resolution_ns)
                return
            previous = answer
            await asyncio.sleep(pause_s)
            not_before_ns = time.monotonic_ns()


class PrivateKeyLogin(LoginCheck):
    """A login. ``connection`` stays open after it, for :meth:`report` and the caller's own questions."""

    def __init__(self, username: str, key: asyncssh.SSHKey, host_keys: HostKeys | None = None) -> None:
        """``host_keys``: the machine's, where they are known."""
        super().__init__()
        self._options = client_options(username, key, host_keys)
        self.connection: asyncssh.SSHClientConnection | None = None

    async def _prove(self, sock: socket.socket) -> int:
        login = await authenticate(sock, self._options)
        self.connection = login.connection
        self.host_key = login.host_key
        return login.authenticated_ns

    async def run_command(self, command: str, *, timeout_s: float) -> str:
        """What a command of ours prints. Raises asyncssh.Error, OSError and TimeoutError."""
        result = await self._open().run(command, timeout=timeout_s, check=True)
        return str(result.stdout)

    async def report(self) -> GuestReport:
        """The machine's own account of its boot. Raises GuestReadError, also when it takes too long."""
        try:
            async with asyncio.timeout(_GUEST_READ_S):
                return await read_guest(self._open())
        except TimeoutError:
            raise GuestReadError(f"no report within {_GUEST_READ_S:.0f} s") from None

    def take(self) -> asyncssh.SSHClientConnection:
        """The open connection, which is the caller's from now on."""
        connection, self.connection = self._open(), None
        return connection

    def close(self) -> None:
        if self.connection is not None:
            self.connection.abort()

    def _open(self) -> asyncssh.SSHClientConnection:
        if self.connection is None:
            raise RuntimeError("run() comes first")
        return self.connection


class PublicKeyQuery(LoginCheck):
    """The question whether a login would be accepted, for those who hold only the public key.

    Newer sshds charge each question to the asking address, see :mod:`instant_env.ssh.key_query`.
    """

    def __init__(self, username: str, key: PublicKey, host_keys: HostKeys | None = None) -> None:
        """``host_keys``: the machine's, where they are known."""
        super().__init__()
        self._username = username
        self._key = key
        self._host_keys = host_keys

    async def _prove(self, sock: socket.socket) -> int:
        acceptance = await key_query.query(sock, self._username, self._key, self._host_keys)
        self.host_key = acceptance.host_key
        return acceptance.accepted_ns
