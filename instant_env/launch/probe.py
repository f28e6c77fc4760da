"""Find the instant at which sshd answers, by fresh non-blocking connects.

One connect that waits would measure the kernel's SYN retransmission (1 s, 2 s, 4 s, ...), not the guest. So
connects are opened at a pace, each one fresh, and the first to bring an ``SSH-2.0-`` line wins; all others
are closed at once. The line is only peeked at, so the winning socket goes to an SSH client as it is.

Two networks, two policies:

* ``DIRECT`` (EC2): a connect succeeds only when the guest accepts it. One every 10 ms, closed after 1 s,
  until the first success; then no more, so sshd sees one connection.
* ``FORWARDED`` (QEMU's user-mode network): every connect succeeds at once, whatever the guest does. It stays
  *silent* while the guest's network is down (the forwarder retransmits the SYN seconds later), and is
  *refused*, that is closed without a byte, once the guest answers but nothing listens. So a silent connection
  is given fresh company at a gentle pace. After the first refusal a connection cannot get lost any more:
  refused ones are replaced quickly, and a silent one (sshd is forking) is left alone for longer. Overlapping
  connections stay few: each that reaches sshd costs a fork in the guest and counts against its MaxStartups.
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
    """How to pace connects. ``accepts_early``: the network accepts before the guest does."""

    accepts_early: bool
    pace_s: float  # a fresh connect this often while nothing has answered
    refused_pace_s: float  # the same, once the guest has refused one: its network is up
    company_s: float  # the same, while a connection opened since then waits for its line: sshd has it
    keep_s: (
        float  # a connect, or a connection of which nobody knows whether it arrived, is given up after this
    )
    banner_s: float  # a connection that the guest surely accepted may take this long to send its line
    max_open: int  # the oldest is given up when there would be more


DIRECT = ProbePolicy(
    accepts_early=False,
    pace_s=0.01,
    refused_pace_s=0.01,
    company_s=0.01,
    keep_s=1.0,
    banner_s=10.0,
    max_open=128,
)
FORWARDED = ProbePolicy(
    accepts_early=True,
    pace_s=0.3,
    refused_pace_s=0.05,
    company_s=1.5,
    keep_s=3.0,
    banner_s=10.0,
    max_open=8,
)


@dataclass
class ProbeStats:
    """What the probe met, also when it found nothing. Instants are ``time.monotonic_ns()``."""

    opened: int = 0
    refused: int = 0
    """Refused by the guest: RST, or closed without a byte."""
    silent: int = 0
    """Given up without an answer, or there was no way to the machine yet."""
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

    def __init__(self, sock: socket.socket, opened_ns: int, previous_ns: int, guest_was_up: bool) -> None:
        self.sock = sock
        self.opened_ns = opened_ns
        self.previous_ns = previous_ns
        self.guest_was_up = guest_was_up
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
        self._forwarder_missing = False  # the host itself refused the newest connect
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
        for connection in [c for c in self._may_expire() if now >= self._expiry_ns(c)]:
            self._give_up(connection)
        if self._wants_more() and now >= self._next_open_ns():
            self._connect(now)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._found.done():
            return
        now = time.monotonic_ns()
        due = [self._expiry_ns(connection) for connection in self._may_expire()]
        if self._wants_more():
            due.append(self._next_open_ns())
        delay_s = max(0.0, (min(due) - now) / _NS)
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _wants_more(self) -> bool:
        """Where an accept means the guest, the first one ends the connecting (and is alone from then on)."""
        return self._policy.accepts_early or not (self._open and self._open[0].accepted_ns)

    def _may_expire(self) -> list[_Connection]:
        """With one lifetime for all, as in DIRECT with its 100 open ones, only the oldest can be due."""
        return self._open if self._policy.accepts_early else self._open[:1]

    def _expiry_ns(self, connection: _Connection) -> int:
        guest_has_it = connection.guest_was_up or not self._policy.accepts_early
        if connection.accepted_ns is not None and guest_has_it:
            return connection.accepted_ns + int(self._policy.banner_s * _NS)
        return connection.opened_ns + int(self._policy.keep_s * _NS)

    def _next_open_ns(self) -> int:
        if not self._opened_any:
            return 0
        if self._forwarder_missing:
            pace_s = self._policy.refused_pace_s
        elif self._stats.first_refused_ns is None:
            pace_s = self._policy.pace_s
        elif any(connection.guest_was_up for connection in self._open):
            pace_s = self._policy.company_s
        else:
            pace_s = self._policy.refused_pace_s
        return self._last_open_ns + int(pace_s * _NS)

    # One connection's life.

    def _connect(self, now: int) -> None:
        if len(self._open) >= self._policy.max_open:
            self._give_up(self._open[0])
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        connection = _Connection(
            sock, now, previous_ns=self._last_open_ns, guest_was_up=self._stats.first_refused_ns is not None
        )
        self._last_open_ns = now
        self._opened_any = True
        self._stats.opened += 1
        self._open.append(connection)
        code = sock.connect_ex(self._target)
        self._forwarder_missing = False
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
        if self._policy.accepts_early:
            # Refused by the host: the forwarder is not there yet, and that says nothing about the guest.
            self._forwarder_missing = True
            self._stats.silent += 1
            self._drop(connection)
        elif code == errno.ECONNREFUSED:
            self._refused(connection)
        else:
            self._stats.silent += 1
            self._drop(connection)

    def _on_accept(self, connection: _Connection) -> None:
        connection.accepted_ns = time.monotonic_ns()
        if not self._policy.accepts_early:
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
        self._found.set_result(
            Found(connection.sock, line, accepted_ns, now, self._resolution_ns(connection))
        )
        self._stop()

    def _resolution_ns(self, winner: _Connection) -> int:
        """The gap between the winner's connect and the one before it: the answer began in between.

        Where a connect may get lost and be retransmitted by the network, and no refusal has shown that the
        guest was up, the loss itself may have cost up to the time to the next fresh connect.
        """
        gap = winner.opened_ns - winner.previous_ns
        if self._policy.accepts_early and not winner.guest_was_up:
            later = [c.opened_ns - c.previous_ns for c in self._open if c.opened_ns > winner.opened_ns]
            gap = max(gap, int(self._policy.pace_s * _NS), *later)
        return gap

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
