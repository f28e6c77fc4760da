"""Find the instant at which sshd answers, by fresh non-blocking connects.

One connect that waits would measure the kernel's SYN retransmission (1 s, 2 s, 4 s, ...), not the guest. So
connects are opened at a pace, each one fresh, and the first to bring an ``SSH-2.0-`` line wins; all others
are closed at once. The line is only peeked at, so the winning socket goes to an SSH client as it is.

A connect succeeds only when the guest accepts it: on EC2, and in localec2, whose network opens a port while
the guest itself listens (it asks every 10 ms, so it may be that much late). So there is one every 10 ms,
closed after 1 s, until the first success; then no more, so sshd sees one connection.

Nothing here knows of asyncio, and only the standard library is imported: the process that probes for many
machines (:mod:`instant_env.ssh.probe_client`) starts in a moment.
"""

from __future__ import annotations

import contextlib
import errno
import select
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

_NS = 1_000_000_000

#: RFC 4253, section 4.2: other lines may come before the version line; nobody needs more bytes than this.
MAX_PREAMBLE = 8192

#: How soon a connection with half a line is looked at again. A peek leaves the bytes where they are, so the
#: socket stays readable and a plain wait would spin.
_HALF_LINE_NS = 2_000_000


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
    """Counts of a probe, also of one without an answer. Instants are ``time.monotonic_ns()``."""

    opened: int = 0
    refused: int = 0
    """Refused by the guest: RST, or closed without a byte."""
    silent: int = 0
    """Given up without an answer."""
    garbage: int = 0
    """Answered, but not with an SSH line."""
    first_refused_ns: int | None = None
    """The guest's network was up at the latest by then."""
    worst_late_ns: int = 0
    """The most by which a connect came later than its pace."""

    def add(self, more: ProbeStats) -> None:
        """Add those of a later probe of the same machine."""
        self.opened += more.opened
        self.refused += more.refused
        self.silent += more.silent
        self.garbage += more.garbage
        self.first_refused_ns = self.first_refused_ns or more.first_refused_ns
        self.worst_late_ns = max(self.worst_late_ns, more.worst_late_ns)


@dataclass(frozen=True)
class SshAnswer:
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


class Probe:
    """One address that is probed; made by :meth:`instant_env.ssh.probe_loop.Probes.start`.

    ``next_ns`` is when :meth:`tick` is due. ``stats`` may be read at any time.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        target: tuple[str, int],
        policy: ProbePolicy,
        not_before_ns: int,
        on_found: Callable[[SshAnswer], None],
    ) -> None:
        self.stats = ProbeStats()
        self._selector = selector
        self._target = target
        self._family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self._pace_ns = int(policy.pace_s * _NS)
        self._keep_ns = int(policy.keep_s * _NS)
        self._banner_ns = int(policy.banner_s * _NS)
        self._max_open = policy.max_open
        self._on_found = on_found
        self._open: list[_Connection] = []  # oldest first
        self._last_open_ns = not_before_ns
        self._connect_due_ns = self.next_ns = time.monotonic_ns()
        self._look_due_ns: int | None = None

    # Time: open what is due, give up what is stale.

    def tick(self) -> None:
        now = time.monotonic_ns()
        # With one lifetime for all, only the oldest can be due.
        while self._open and now >= self._expiry_ns(self._open[0]):
            self._give_up(self._open[0])
        if self._look_due_ns is not None and now >= self._look_due_ns:
            self._await_line(self._open[0])
        if self._wants_more() and now >= self._connect_due_ns:
            self._connect(now)
        self._schedule()

    def _schedule(self) -> None:
        due = [self._expiry_ns(self._open[0])] if self._open else []
        if self._look_due_ns is not None:
            due.append(self._look_due_ns)
        if self._wants_more():
            due.append(self._connect_due_ns)
        self.next_ns = min(due)

    def _wants_more(self) -> bool:
        """The first one that is accepted ends the connecting (and is alone from then on)."""
        return not (self._open and self._open[0].accepted_ns)

    def _expiry_ns(self, connection: _Connection) -> int:
        if connection.accepted_ns is not None:
            return connection.accepted_ns + self._banner_ns
        return connection.opened_ns + self._keep_ns

    # One connection's life.

    def _connect(self, now: int) -> None:
        late_ns = max(0, now - self._connect_due_ns)
        self.stats.worst_late_ns = max(self.stats.worst_late_ns, late_ns)
        # A late connect does not put off the next one, and none is made up for.
        self._connect_due_ns += self._pace_ns * (1 + late_ns // self._pace_ns)
        if len(self._open) >= self._max_open:
            self._give_up(self._open[0])
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        connection = _Connection(sock, now, previous_ns=self._last_open_ns)
        self._last_open_ns = now
        self.stats.opened += 1
        self._open.append(connection)
        code = sock.connect_ex(self._target)
        if code in (0, errno.EINPROGRESS):
            self._selector.register(sock, selectors.EVENT_WRITE, partial(self._on_connected, connection))
        else:
            self._on_connect_error(connection, code)

    def _on_connected(self, connection: _Connection) -> None:
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            self._on_accept(connection)
        else:
            self._on_connect_error(connection, code)
        self._schedule()

    def _on_connect_error(self, connection: _Connection, code: int) -> None:
        # ECONNRESET: accepted, and dropped before we looked.
        if code in (errno.ECONNREFUSED, errno.ECONNRESET):
            self._on_refused(connection)
        else:
            self.stats.silent += 1
            self._drop(connection)

    def _on_accept(self, connection: _Connection) -> None:
        connection.accepted_ns = time.monotonic_ns()
        for other in [c for c in self._open if c is not connection]:
            self._drop(other)
        self._selector.unregister(connection.sock)
        self._await_line(connection)

    def _await_line(self, connection: _Connection) -> None:
        self._look_due_ns = None
        self._selector.register(connection.sock, selectors.EVENT_READ, partial(self._on_readable, connection))

    def _on_readable(self, connection: _Connection) -> None:
        now = time.monotonic_ns()
        try:
            data = connection.sock.recv(MAX_PREAMBLE, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        line = ssh_line(data)
        if line is not None:
            self._win(connection, line, now)
            return
        if not data:
            self._on_refused(connection)
        elif len(data) >= MAX_PREAMBLE or _peer_closed(connection.sock):
            connection.spoke = True
            self._give_up(connection)
        else:
            connection.spoke = True
            self._selector.unregister(connection.sock)
            self._look_due_ns = now + _HALF_LINE_NS
        self._schedule()

    def _on_refused(self, connection: _Connection) -> None:
        self.stats.refused += 1
        if self.stats.first_refused_ns is None:
            self.stats.first_refused_ns = time.monotonic_ns()
        self._drop(connection)

    def _give_up(self, connection: _Connection) -> None:
        if connection.spoke:
            self.stats.garbage += 1
        else:
            self.stats.silent += 1
        self._drop(connection)

    def _win(self, connection: _Connection, line: str, now: int) -> None:
        self._selector.unregister(connection.sock)
        self._open.remove(connection)
        accepted_ns = connection.accepted_ns or now
        # The answer began between the winner's connect and the one before it.
        resolution_ns = connection.opened_ns - connection.previous_ns
        self._on_found(SshAnswer(connection.sock, line, accepted_ns, now, resolution_ns))

    def _drop(self, connection: _Connection) -> None:
        with contextlib.suppress(KeyError):  # of half a line, or one that failed at once
            self._selector.unregister(connection.sock)
        connection.sock.close()
        self._open.remove(connection)
        if connection.accepted_ns is not None:
            self._look_due_ns = None
            self._connect_due_ns = max(self._connect_due_ns, time.monotonic_ns())

    def close(self) -> None:
        for connection in list(self._open):
            self._drop(connection)


def ssh_line(data: bytes) -> str | None:
    """The version line in what the server has sent so far, None while it is not complete."""
    for line in data.split(b"\n")[:-1]:
        if line.startswith(b"SSH-2.0-"):
            return line.rstrip(b"\r").decode("ascii", "replace")
    return None


def _peer_closed(sock: socket.socket) -> bool:
    """Whether the peer has closed, though bytes of it are still unread.

    poll(2) reports that on Linux alone; elsewhere such a connection is given up when its time is over.
    """
    flag: int = getattr(select, "POLLRDHUP", 0)
    poller = select.poll()
    poller.register(sock, flag)
    return bool(flag and any(events & flag for _, events in poller.poll(0)))
