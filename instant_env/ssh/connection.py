"""The way onto a machine we launched: wait until a login works, then a Fabric connection."""

from __future__ import annotations

import logging
import socket
import time

import fabric
import paramiko

from instant_env.cloud.keys import KeyPair
from instant_env.errors import InstantEnvError
from instant_env.public_key import PublicKey
from instant_env.ssh import pauses
from instant_env.ssh.connect_probe import DIRECT
from instant_env.ssh.probe_loop import find

#: A channel opens at once or not at all. Paramiko waits an hour for it.
_CHANNEL_TIMEOUT_S = 60
#: A machine that was reset or switched off does not say so. What we send now and then is refused by one that
#: has booted anew, and not acknowledged by one that is gone (tcp(7), TCP_USER_TIMEOUT).
_KEEPALIVE_S = 15
_UNACKNOWLEDGED_MS = 60_000

# Paramiko logs the traceback of every connection that a booting machine drops; we report what matters.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class LoginError(InstantEnvError):
    """No login succeeded within the time."""


def _wait_for_banner(host: str, port: int, timeout_s: float) -> bool:
    """Whether something that speaks SSH answered in time. Connects anew every few milliseconds, so that
    neither a lost packet nor a guest that was not listening yet costs a retransmission's second."""
    answer = find(host, port, DIRECT, timeout_s=timeout_s)
    if answer is not None:
        answer.sock.close()
    return answer is not None


def wait_for_login(host: str, port: int, user: str, key: KeyPair, *, timeout_s: float) -> fabric.Connection:
    """Try again until public-key authentication succeeds; return the open connection.

    The host key cannot be known yet (it is made at this boot); it is pinned by keeping the connection, and
    :func:`host_key` tells which it is. A machine
    that stops answering breaks the connection within about a minute: a command on it then ends with -1,
    and the next command raises OSError, EOFError or paramiko.SSHException. Raises LoginError with the last
    reason after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    reason = "no SSH banner"
    refusals = 0
    while (left_s := deadline - time.monotonic()) > 0 and _wait_for_banner(host, port, left_s):
        connection = fabric.Connection(
            host,
            user=user,
            port=port,
            connect_timeout=10,
            config=fabric.Config(overrides={"load_ssh_configs": False, "run": {"in_stream": False}}),
            connect_kwargs={
                "pkey": key.for_paramiko(),
                "look_for_keys": False,
                "allow_agent": False,
                "banner_timeout": 30,
                "auth_timeout": 30,
                "channel_timeout": _CHANNEL_TIMEOUT_S,
            },
        )
        try:
            connection.open()
            _notice_silence(connection.transport)
            return connection
        except paramiko.AuthenticationException as error:
            # The key may not be there yet.
            reason = f"{user}'s key was refused ({error})"
            time.sleep(pauses.after_refusal(refusals))
            refusals += 1
        except Exception as error:  # noqa: BLE001 - whatever a peer's bytes make of Paramiko
            reason = str(error) or type(error).__name__
            time.sleep(0.2)
        connection.close()
    raise LoginError(f"no login as {user} at {host}:{port} within {timeout_s:.0f} s: {reason}")


def host_key(connection: fabric.Connection) -> PublicKey:
    """The host key that the server of an open connection showed."""
    key = connection.transport.get_remote_server_key()
    return PublicKey(key.get_name(), key.get_base64())


def _notice_silence(transport: paramiko.Transport) -> None:
    if isinstance(transport.sock, socket.socket):  # not a channel through another host
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    transport.set_keepalive(_KEEPALIVE_S)
