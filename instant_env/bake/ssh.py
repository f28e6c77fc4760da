"""The way onto a machine we launched: wait until a login works, then a Fabric connection."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress

import fabric
import paramiko

from instant_env.cloud.keys import KeyPair
from instant_env.errors import InstantEnvError

#: How long one connection may stay silent. A guest that was not listening when we came answers late or never
#: (under user-mode networking the TCP accept is not its own), so it is better to come again.
_BANNER_TIMEOUT_S = 3.0

# Paramiko logs the traceback of every connection that a booting machine drops; we report what matters.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class LoginError(InstantEnvError):
    """Nobody let us in within the time."""


def _has_banner(host: str, port: int) -> bool:
    """Whether something that speaks SSH answers. Silence, a refusal or a reset is a no."""
    with suppress(OSError), socket.create_connection((host, port), timeout=_BANNER_TIMEOUT_S) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def wait_for_login(host: str, port: int, user: str, key: KeyPair, *, timeout_s: float) -> fabric.Connection:
    """Come back every 200 ms until public-key authentication succeeds; return the open connection.

    The host key is unknown by nature (made at this boot) and pinned by the connection we keep. Raises
    LoginError with the last reason after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    reason = "no SSH banner"
    while time.monotonic() < deadline:
        if not _has_banner(host, port):
            time.sleep(0.2)
            continue
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
            },
        )
        try:
            connection.open()
            return connection
        except paramiko.AuthenticationException as error:
            # The key may not be there yet. sshd 9.8 and later locks a source out at 15 s of penalties;
            # a refused login costs 5 s of them.
            reason = f"{user}'s key was refused ({error})"
            time.sleep(5)
        except (OSError, EOFError, paramiko.SSHException) as error:
            reason = str(error) or type(error).__name__
            time.sleep(0.2)
        connection.close()
    raise LoginError(f"no login as {user} at {host}:{port} within {timeout_s:.0f} s: {reason}")
