"""A machine of a pool, ready to be handed out: an open login, and a command on it that waits for a key.

Connecting, authenticating and starting a command cost an emulated guest most of a second; a line to a command
that waits costs a round trip. So each warm machine has one connection of ours parked on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import asyncssh

from instant_env.cloud.handover import by_instance_connect
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud
from instant_env.launch.hand_over import (
    MAX_BYTES,
    Contaminated,
    HandOverAnswer,
    HandOverRequest,
    ParkBroken,
    read_answer,
    read_ready,
)
from instant_env.launch.standing_query import Door, StandingQuery
from instant_env.public_key import PublicKey
from instant_env.ssh.dial import dial
from instant_env.ssh.host_keys import HostKeys
from instant_env.ssh.key_query import PreparedQuery
from instant_env.ssh.login import authenticate, client_options

#: The one command; recipes/minimal/login-user.sh.j2 lets the login user be root without a password.
COMMAND = "/usr/sbin/instant-init hand-over"
#: The init and sudo are programs that a machine under load may have to read from its disk.
_READY_S = 30.0
#: A machine that was switched off says nothing. What is not answered for this long ends the connection.
_KEEPALIVE_S = 15
_KEEPALIVES = 3


class Parked:
    """One waiting command. Made by :func:`park`, or by :meth:`on` over a login that is open already."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        process: asyncssh.SSHClientProcess[str],
        host_key: PublicKey | None,
    ) -> None:
        self.host_key = host_key
        """What the machine's sshd showed to this connection."""
        self.written = False
        """Whether a request may have reached the machine: then it is nobody's but that lessee's."""
        self._connection = connection
        self._process = process
        self.standing: StandingQuery | None = None
        """What :meth:`stand_by` began."""
        self.closed = asyncio.create_task(connection.wait_closed())
        """Ends when the connection is gone, for whatever reason; never with an error."""

    @classmethod
    async def on(
        cls, connection: asyncssh.SSHClientConnection, username: str, host_key: PublicKey | None
    ) -> Parked:
        """Start the command on an open login, which belongs to the result, and wait until it is ready.

        Raises AlreadyHandedOut, Refused and ParkBroken; then the connection is closed.
        """
        command = COMMAND if username == "root" else f"sudo -n {COMMAND}"
        try:
            connection.set_keepalive(_KEEPALIVE_S, _KEEPALIVES)
            async with asyncio.timeout(_READY_S):
                process = await connection.create_process(command, encoding="utf-8", errors="replace")
                line = await process.stdout.readline()
            if not line:
                words = await _last_words(process)
                raise ParkBroken(f"{command} ended before it was ready: {words}")
            read_ready(line)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            connection.abort()
            raise ParkBroken(f"{command} does not start: {type(error).__name__}: {error}") from error
        except BaseException:
            connection.abort()
            raise
        return cls(connection, process, host_key)

    @property
    def alive(self) -> bool:
        """Whether connection and command are there, as far as is known: a machine that vanished is noticed
        within three keep-alives."""
        return not self._connection.is_closed() and self._process.exit_status is None and not self.written

    def stand_by(self, door: Door) -> None:
        """Keep a second connection ready, for the question that proves the delivery."""
        self.standing = StandingQuery(door)

    def take_query(self) -> PreparedQuery | None:
        """What :meth:`stand_by` keeps ready, if it is."""
        return self.standing.take() if self.standing else None

    async def hand_over(
        self,
        request: HandOverRequest,
        *,
        timeout_s: float = 10.0,
        on_write: Callable[[], None] | None = None,
    ) -> HandOverAnswer:
        """Make the machine the lessee's. ``on_write`` is called right before the line is sent.

        Raises ParkBroken when nothing was sent, AlreadyHandedOut and Refused when the machine said no and has
        not changed, and Contaminated when it may have: by its answer, or because none came within
        ``timeout_s``. A cancellation after the write leaves ``written`` set, and the machine is contaminated.
        """
        if not self.alive:
            raise ParkBroken("the parked connection is gone, or was used")
        if on_write is not None:
            on_write()
        self.written = True
        try:
            self._process.stdin.write(request.as_line())
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise Contaminated(f"no answer to the hand-over: {type(error).__name__}: {error}") from error
        if not line:
            words = await _last_words(self._process)
            raise Contaminated(f"the hand-over's command ended without an answer: {words}")
        return read_answer(line)

    def close(self) -> None:
        """Drop the connections. The command then ends, and the machine stays as it is."""
        if self.standing is not None:
            self.standing.close()
        self._connection.abort()


async def park(
    cloud: Cloud,
    instance_id: str,
    address: str,
    username: str,
    host_keys: HostKeys | None,
    *,
    timeout_s: float = 30.0,
) -> Parked:
    """Log in by a key of EC2 Instance Connect that is made for it, and park.

    ``host_keys`` are the machine's; None takes whatever answers, for a fill that reads the console later.
    Raises HostKeyMismatch, KeyRefused, HandshakeFailed, the errors of :meth:`Parked.on`, and botocore's.
    """
    pair = KeyPair.generate()
    options = client_options(username, pair.for_asyncssh(), host_keys)
    deadline = time.monotonic() + timeout_s
    await asyncio.to_thread(by_instance_connect, cloud, instance_id, username, pair.public_key)
    answer = await dial(address, cloud.ssh_port, timeout_s=timeout_s)
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 1.0)):
            login = await authenticate(answer.sock, options)
    except TimeoutError:
        raise ParkBroken(f"{address}: no login within {timeout_s:.0f} s") from None
    return await Parked.on(login.connection, username, login.host_key)


async def _last_words(process: asyncssh.SSHClientProcess[str]) -> str:
    """What a command that ended wrote to its standard error, shortened, and its status."""
    words = ""
    with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
        async with asyncio.timeout(1):
            words = " ".join((await process.stderr.read(MAX_BYTES)).split())
    return f"status {process.exit_status}: {words[-300:]}"
