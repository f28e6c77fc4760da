"""Find the instant at which sshd answers, by fresh non-blocking connects.

One connect that waits would measure the kernel's SYN retransmission (1 s, 2 s, 4 s, ...), not the guest. So
connects are opened at a pace, each one fresh, and the first to bring an ``SSH-2.0-`` line wins; all others
are closed at once. The line is only peeked at, so the winning socket goes to an SSH client as it is.

A connect succeeds only when the guest accepts it: on EC2, and in localec2, whose network opens a port while
the guest itself listens (it asks every 10 ms, so it may be that much late). So there is one every 10 ms,
closed after 1 s, until the first success; then no more, so sshd sees one connection.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import time
from dataclasses import dataclass

_NS = 1_000_000_000

#: RFC 4253, section 4.2: other lines may come before the version line; nobody needs more bytes than this.
_MAX_PREAMBLE = 8192

#: How soon a connection with half a line is looked at again. A peek leaves the bytes where they are, so the
#: socket stays readable and a plain wait would spin.
_HALF_LINE_S = 0.002


@dataclass(frozen=True)
class ProbePolicy:
    """How to pace connects."""

    pace_s: float  # a fresh connect this often while nothing has answered
    keep_s: float  # a connect is given up after this
    banner_s: float  # a connection that the guest accepted may take this long to send its line
    max_open: int  # the oldest is given up when there would be more


DIRECT = ProbePolicy(pace_s=0.01, keep_s=1.0, banner_s=10.0, max_open=128)


@dataclass
class ProbeStats:
    """What the probe met, also when it found nothing. Instants are ``time.monotonic_ns()``."""

    opened: int = 0
    refused: int = 0
    """Refused by the guest: RST, or closed without a byte."""
    silent: int = 0
    """Given up without an answer."""
    garbage: int = 0
    """Answered, but not with an SSH line."""
    first_refused_ns: int | None = None
    """The guest's network was up at the latest by then."""


@dataclass(frozen=True)
class Found:
    """The connection that brought the line. ``sock`` is non-blocking and nothing has been read from it.

    ``resolution_ns`` bounds how much earlier an ideal prober, connecting all the time, would have had it.
    """

    sock: socket.socket
    line: str
    accepted_ns: int
    banner_ns: int
    resolution_ns: int


class _Connection:
    """One connect. ``accepted_ns`` is set once it succeeded."""

    def __init__(self, sock: socket.socket, opened_ns: int, previous_ns: int) -> None:
        self.sock = sock
        self.opened_ns = opened_ns
        self.previous_ns = previous_ns
        self.accepted_ns: int | None = None
        self.spoke = False


class Prober:
    """Probe one address until it answers. Use :func:`probe`."""

    def __init__(
        self, address: str, port: int, policy: ProbePolicy, stats: ProbeStats, not_before_ns: int
    ) -> None:
        self._target = (address, port)
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._policy = policy
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Future[Found] = self._loop.create_future()
        self._open: list[_Connection] = []  # oldest first
        self._last_open_ns = not_before_ns
        self._opened_any = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> Found:
        """Probe until found. Cancel it to stop; whatever happens, no other socket stays open."""
        try:
            self._tick()
            return await self._found
        except asyncio.CancelledError:
            if self._found.done() and not self._found.cancelled():
                self._found.result().sock.close()
            raise
        finally:
            self._stop()

    # Time: one timer opens what is due and gives up what is stale.

    def _tick(self) -> None:
        now = time.monotonic_ns()
        # With one lifetime for all, only the oldest can be due.
        while self._open and now >= self._expiry_ns(self._open[0]):
            self._give_up(self._open[0])
        if self._wants_more() and now >= self._next_open_ns():
            self._connect(now)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._found.done():
            return
        now = time.monotonic_ns()
        due = [self._expiry_ns(self._open[0])] if self._open else []
        if self._wants_more():
            due.append(self._next_open_ns())
        delay_s = max(0.0, (min(due) - now) / _NS)
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _wants_more(self) -> bool:
        """The first one that is accepted ends the connecting (and is alone from then on)."""
        return not (self._open and self._open[0].accepted_ns)

    def _expiry_ns(self, connection: _Connection) -> int:
        if connection.accepted_ns is not None:
            return connection.accepted_ns + int(self._policy.banner_s * _NS)
        return connection.opened_ns + int(self._policy.keep_s * _NS)

    def _next_open_ns(self) -> int:
        return self._last_open_ns + int(self._policy.pace_s * _NS) if self._opened_any else 0

    # One connection's life.

    def _connect(self, now: int) -> None:
        if len(self._open) >= self._policy.max_open:
            self._give_up(self._open[0])
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        connection = _Connection(sock, now, previous_ns=self._last_open_ns)
        self._last_open_ns = now
        self._opened_any = True
        self._stats.opened += 1
        self._open.append(connection)
        code = sock.connect_ex(self._target)
        if code == 0:
            self._on_accept(connection)
        elif code == errno.EINPROGRESS:
            self._loop.add_writer(sock, self._on_connected, connection)
        else:
            self._on_connect_error(connection, code)

    def _on_connected(self, connection: _Connection) -> None:
        self._loop.remove_writer(connection.sock)
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            self._on_accept(connection)
        else:
            self._on_connect_error(connection, code)
        self._schedule()

    def _on_connect_error(self, connection: _Connection, code: int) -> None:
        if code == errno.ECONNREFUSED:
            self._refused(connection)
        else:
            self._stats.silent += 1
            self._drop(connection)

    def _on_accept(self, connection: _Connection) -> None:
        connection.accepted_ns = time.monotonic_ns()
        for other in [c for c in self._open if c is not connection]:
            self._drop(other)
        self._loop.add_reader(connection.sock, self._on_readable, connection)

    def _on_readable(self, connection: _Connection) -> None:
        now = time.monotonic_ns()
        try:
            data = connection.sock.recv(_MAX_PREAMBLE, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        line = _ssh_line(data)
        if line is not None:
            self._win(connection, line, now)
        elif not data:
            self._refused(connection)
            self._schedule()
        elif len(data) >= _MAX_PREAMBLE or _peer_closed(connection.sock):
            connection.spoke = True
            self._give_up(connection)
            self._schedule()
        else:
            connection.spoke = True
            self._loop.remove_reader(connection.sock)
            self._loop.call_later(_HALF_LINE_S, self._look_again, connection)

    def _look_again(self, connection: _Connection) -> None:
        if connection in self._open:
            self._loop.add_reader(connection.sock, self._on_readable, connection)

    def _refused(self, connection: _Connection) -> None:
        now = time.monotonic_ns()
        self._stats.refused += 1
        if self._stats.first_refused_ns is None:
            self._stats.first_refused_ns = now
        self._drop(connection)

    def _give_up(self, connection: _Connection) -> None:
        if connection.spoke:
            self._stats.garbage += 1
        else:
            self._stats.silent += 1
        self._drop(connection)

    def _win(self, connection: _Connection, line: str, now: int) -> None:
        if self._found.done():  # cancelled in this very turn of the loop
            return
        self._loop.remove_reader(connection.sock)
        self._open.remove(connection)
        accepted_ns = connection.accepted_ns or now
        # The answer began between the winner's connect and the one before it.
        resolution_ns = connection.opened_ns - connection.previous_ns
        self._found.set_result(Found(connection.sock, line, accepted_ns, now, resolution_ns))
        self._stop()

    def _drop(self, connection: _Connection) -> None:
        self._loop.remove_writer(connection.sock)
        self._loop.remove_reader(connection.sock)
        connection.sock.close()
        self._open.remove(connection)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._open):
            self._drop(connection)


def _ssh_line(data: bytes) -> str | None:
    """The version line in what the server has sent so far, None while it is not complete."""
    for line in data.split(b"\n")[:-1]:
        if line.startswith(b"SSH-2.0-"):
            return line.rstrip(b"\r").decode("ascii", "replace")
    return None


def _peer_closed(sock: socket.socket) -> bool:
    """Whether the peer has closed, though bytes of it are still unread.

    poll(2) tells that on Linux alone; elsewhere such a connection is given up when its time is over.
    """
    flag: int = getattr(select, "POLLRDHUP", 0)
    poller = select.poll()
    poller.register(sock, flag)
    return bool(flag and any(events & flag for _, events in poller.poll(0)))


async def probe(
    address: str, port: int, policy: ProbePolicy, stats: ProbeStats, *, not_before_ns: int
) -> Found:
    """Wait until sshd at ``address`` sends its version line; the caller owns the socket that is returned.

    ``not_before_ns`` is the latest instant at which the machine surely did not answer (its launch): the
    resolution of an answer to the very first connect reaches back to it. It never times out by itself:
    cancel it.
    """
    return await Prober(address, port, policy, stats, not_before_ns).run()
