"""Log in over the probe's socket, and mark the instant of authentication.

asyncssh takes the socket as it is: the version line is still unread in it. Nothing of the user's own SSH
set-up takes part (no configuration file, no agent, no other keys): every host exchanges the same bytes.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

import asyncssh

from instant_env.errors import InstantEnvError
from instant_env.public_key import PublicKey
from instant_env.ssh.host_keys import HostKeys, mismatch, shown, trusted_by


class KeyRefused(InstantEnvError):
    """sshd answered, and does not accept the key (yet)."""


class HandshakeFailed(InstantEnvError):
    """The connection ended before authentication was decided: sshd restarts, or drops at MaxStartups."""


@dataclass(frozen=True)
class Login:
    """An authenticated connection. ``authenticated_ns`` is ``time.monotonic_ns()`` at sshd's yes."""

    connection: asyncssh.SSHClientConnection
    authenticated_ns: int
    host_key: PublicKey | None
    """What the server showed: checked where the machine's keys are known, and recorded where they are not."""

    @property
    def host_key_fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen prints it; empty where the server showed no key."""
        return self.host_key.fingerprint if self.host_key else ""


class _Client(asyncssh.SSHClient):
    authenticated_ns: int | None = None

    def auth_completed(self) -> None:
        self.authenticated_ns = time.monotonic_ns()


def client_options(
    username: str, key: asyncssh.SSHKey, host_keys: HostKeys | None = None
) -> asyncssh.SSHClientConnectionOptions:
    """Options for :func:`authenticate`, made ahead so that loading keys is not on the clock.

    ``host_keys`` are the machine's. With None they are not checked: the machine did not exist a moment ago,
    and there is nothing to compare with.
    """
    return asyncssh.SSHClientConnectionOptions(
        username=username,
        client_keys=[key],
        client_factory=_Client,
        known_hosts=trusted_by(host_keys),
        config=None,
        agent_path=None,
        preferred_auth="publickey",
        gss_host=None,
        login_timeout=0,  # the attempt has a deadline of its own
    )


def handshake_error(error: Exception) -> InstantEnvError:
    """What an exception of asyncssh means that is no PermissionDenied: HostKeyMismatch or HandshakeFailed."""
    return mismatch(error) or HandshakeFailed(f"{type(error).__name__}: {error}")


async def authenticate(sock: socket.socket, options: asyncssh.SSHClientConnectionOptions) -> Login:
    """Run the SSH handshake and public-key authentication on ``sock``, which belongs to asyncssh from now on.

    Raises KeyRefused, HandshakeFailed, or HostKeyMismatch where the options know the machine's host keys;
    cancelling it closes the connection.
    """
    try:
        connection = await asyncssh.connect(sock=sock, options=options)
    except asyncssh.PermissionDenied as error:
        raise KeyRefused(str(error)) from error
    except asyncio.CancelledError:
        sock.close()
        raise
    except Exception as error:  # whatever a peer's bytes can make of asyncssh
        sock.close()
        raise handshake_error(error) from error
    client = connection.get_owner()
    assert isinstance(client, _Client)  # noqa: S101 - what client_factory made
    return Login(connection, client.authenticated_ns or time.monotonic_ns(), shown(connection))
