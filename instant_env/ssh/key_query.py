"""Ask sshd whether it would accept a public key, without its private half (RFC 4252, section 7).

A client may send a public key without a signature, and the server answers SSH_MSG_USERAUTH_PK_OK when a login
with it would be accepted. The connection ends there. OpenSSH 9.8 and later charge that as a failed login (5 s
of 15, see :mod:`instant_env.ssh.pauses`), to the asking address only; a login from another one has no delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass

import asyncssh

from instant_env.public_key import PublicKey
from instant_env.ssh.host_keys import HostKeys, shown, trusted_by
from instant_env.ssh.login import HandshakeFailed, KeyRefused, handshake_error


@dataclass(frozen=True)
class Acceptance:
    """sshd's answer that it would accept a key. ``accepted_ns`` is ``time.monotonic_ns()`` when it came."""

    accepted_ns: int
    host_key: PublicKey | None

    @property
    def host_key_fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen prints it; empty where the server showed no key."""
        return self.host_key.fingerprint if self.host_key else ""


class _PublicHalf(asyncssh.SSHKeyPair):
    """A key pair that has no private half. asyncssh asks it to sign once PK_OK came, and not before."""

    _key_type = "query"

    def __init__(self, key: asyncssh.SSHKey) -> None:
        super().__init__(
            key.algorithm, key.algorithm, key.sig_algorithms, key.sig_algorithms, key.public_data, None
        )
        self.accepted_ns: int | None = None

    def sign(self, data: bytes) -> bytes:
        del data
        self.accepted_ns = time.monotonic_ns()
        raise ValueError("the private key is not here")


class _Client(asyncssh.SSHClient):
    """Holds the question until it may be put, and keeps the connection, for what is known of it when the
    login ends as it must, without success."""

    connection: asyncssh.SSHClientConnection | None = None

    def __init__(self) -> None:
        self.half: _PublicHalf | None = None
        self.asked = False
        self.exchanged = asyncio.Event()
        self.may_ask = asyncio.Event()

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    async def public_key_auth_requested(self) -> _PublicHalf | None:
        """The one key, once; asyncssh comes here when keys are exchanged and sshd has heard the username."""
        self.exchanged.set()
        await self.may_ask.wait()
        if self.asked:
            return None
        self.asked = True
        return self.half


class PreparedQuery:
    """A connection whose key exchange is done before the machine knows the key, or anybody does. The question
    is put by :meth:`ask`, once, and costs one round trip.

    sshd waits two minutes for it (sshd_config(5), LoginGraceTime), and counts the connection among those
    that may be open without a login (MaxStartups).
    """

    def __init__(self, sock: socket.socket, username: str, host_keys: HostKeys | None = None) -> None:
        """Begin the key exchange on ``sock``, which belongs to the query from now on; in an event loop."""
        self._sock = sock
        self._client = _Client()
        options = asyncssh.SSHClientConnectionOptions(
            username=username, client_factory=lambda: self._client, known_hosts=trusted_by(host_keys),
            client_keys=None, config=None, agent_path=None, preferred_auth="publickey", gss_host=None,
            login_timeout=0,
        )  # fmt: skip
        self._talk = asyncio.create_task(_connect(sock, options))

    @property
    def asked(self) -> bool:
        """Whether the question may have reached sshd: then another one costs the address 5 s more."""
        return self._client.asked

    @property
    def alive(self) -> bool:
        """Whether the connection is there, as far as is known."""
        return not self._talk.done()

    async def exchange(self) -> None:
        """Wait until keys are exchanged and the host key was checked. Raises HandshakeFailed and
        HostKeyMismatch."""
        exchanged = asyncio.create_task(self._client.exchanged.wait())
        try:
            await asyncio.wait({exchanged, self._talk}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            exchanged.cancel()
        if not self._client.exchanged.is_set():
            await self._answer(None)  # the connection is over, and this says how

    async def ask(self, key: PublicKey) -> Acceptance:
        """Put the question, and wait for sshd's yes; the connection is closed in the end, also when this is
        cancelled. Raises KeyRefused, HandshakeFailed or HostKeyMismatch."""
        half = self._client.half = _PublicHalf(key.for_asyncssh())
        self._client.may_ask.set()
        return await self._answer(half)

    async def _answer(self, half: _PublicHalf | None) -> Acceptance:
        try:
            connection = await self._talk
        except asyncssh.PermissionDenied as error:
            if half is None or half.accepted_ns is None:
                raise KeyRefused(str(error)) from error
        except Exception as error:  # whatever a peer's bytes can make of asyncssh
            self._sock.close()
            if half is None or half.accepted_ns is None:
                raise handshake_error(error) from error
        else:
            connection.abort()
            raise HandshakeFailed("sshd lets everybody in, without a key")
        finally:
            self.close()
        return Acceptance(half.accepted_ns, shown(self._client.connection))

    def close(self) -> None:
        """Drop the connection, with or without the question."""
        self._talk.cancel()
        self._talk.add_done_callback(_forget)
        if self._client.connection is not None:
            self._client.connection.abort()
        else:
            self._sock.close()


async def _connect(
    sock: socket.socket, options: asyncssh.SSHClientConnectionOptions
) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(sock=sock, options=options)


def _forget(talk: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
    """Take the task's error: nobody waits for it any more."""
    with contextlib.suppress(asyncio.CancelledError):
        talk.exception()


async def query(
    sock: socket.socket, username: str, key: PublicKey, host_keys: HostKeys | None = None
) -> Acceptance:
    """Ask over ``sock``, which is closed in the end. With ``host_keys`` the server must show one of them.

    Raises KeyRefused, HandshakeFailed or HostKeyMismatch.
    """
    return await PreparedQuery(sock, username, host_keys).ask(key)
