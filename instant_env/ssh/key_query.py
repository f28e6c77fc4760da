"""Ask sshd whether it would accept a public key, without its private half (RFC 4252, section 7).

A client may send a public key without a signature, and the server answers SSH_MSG_USERAUTH_PK_OK when a login
with it would be accepted. The connection ends there. OpenSSH 9.8 and later charge that as a failed login (5 s
of 15, see :mod:`instant_env.ssh.pauses`), and whoever then logs in from another address is not concerned.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

import asyncssh

from instant_env.public_key import PublicKey
from instant_env.ssh.login import HandshakeFailed, KeyRefused


@dataclass(frozen=True)
class Acceptance:
    """sshd's word that a key would be let in. ``accepted_ns`` is ``time.monotonic_ns()`` when it came."""

    accepted_ns: int
    host_key_fingerprint: str


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
    """Keeps the connection, for what is known of it when the login ends as it must, without success."""

    connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    def public_key_auth_requested(self) -> None:
        """No further key."""


async def query(sock: socket.socket, username: str, key: PublicKey) -> Acceptance:
    """Ask over ``sock``, which is closed in the end. Raises KeyRefused or HandshakeFailed."""
    half = _PublicHalf(key.for_asyncssh())
    client = _Client()
    options = asyncssh.SSHClientConnectionOptions(
        username=username, client_keys=[half], client_factory=lambda: client, known_hosts=None, config=None,
        agent_path=None, preferred_auth="publickey", gss_host=None, login_timeout=0,
    )  # fmt: skip
    try:
        connection = await asyncssh.connect(sock=sock, options=options)
    except asyncssh.PermissionDenied as error:
        if half.accepted_ns is None:
            raise KeyRefused(str(error)) from error
    except asyncio.CancelledError:
        sock.close()
        raise
    except Exception as error:  # whatever a peer's bytes can make of asyncssh
        sock.close()
        if half.accepted_ns is None:
            raise HandshakeFailed(f"{type(error).__name__}: {error}") from error
    else:
        connection.abort()
        raise HandshakeFailed("sshd lets everybody in, without a key")
    host_key = client.connection.get_server_host_key() if client.connection else None
    return Acceptance(half.accepted_ns, host_key.get_fingerprint() if host_key else "")
