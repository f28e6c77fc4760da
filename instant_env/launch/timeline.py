"""The timeline of one launch: t0..t4 in milliseconds from t0, each with its resolution.

All instants are ``time.monotonic_ns()``; the wall clock is read once, at t0, as the anchor. Nothing is ever
computed from wall-clock differences, so a step of NTP in the middle of a run changes no figure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

_NS_PER_MS = 1_000_000


class Outcome(StrEnum):
    """How an attempt ended. Everything but ``ok`` is a failure, and a failure is a row like any other."""

    OK = "ok"
    LAUNCH_ERROR = "launch_error"  # the API refused the launch, or the machine ended by itself
    CAPACITY = "capacity"  # EC2 had no machine to give
    TIMEOUT = "timeout"  # no login in time, and nothing more specific is known (right-censored)
    SSH_REFUSED = "ssh_refused"  # in time the guest's network came up, but nothing listened on the port
    AUTH_FAILED = "auth_failed"  # sshd answered and refused our key until the time was up
    NOT_RESUMED = "not_resumed"  # a login, but the machine booted where it should have resumed
    # Cut off from outside: Ctrl-C, SIGTERM, a reclaimed spot machine, or EC2 not knowing yet what was made.
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"  # the caller withdrew


class MarkName(StrEnum):
    """The host's marks, in the order in which they normally happen."""

    T1 = "t1"  # RunInstances returned an instance id
    T2 = "t2"  # DescribeInstances first said `running`
    T3_TCP = "t3_tcp"  # a TCP connect succeeded
    T3 = "t3"  # sshd's `SSH-2.0-` line was read
    T4 = "t4"  # public-key authentication succeeded


@dataclass(frozen=True)
class Mark:
    """An instant, in ms from t0. The event happened at most ``resolution_ms`` before it was seen."""

    ms: float
    resolution_ms: float


@dataclass
class Timeline:
    """The marks of one launch. Make it with :meth:`start` at the instant the request is received."""

    t0_ns: int
    t0_utc: datetime
    marks: dict[MarkName, Mark] = field(default_factory=dict)

    @classmethod
    def start(cls) -> Timeline:
        return cls(t0_ns=time.monotonic_ns(), t0_utc=datetime.now(UTC))

    def ms(self, at_ns: int) -> float:
        """Milliseconds from t0 to a ``time.monotonic_ns()`` instant, to the microsecond."""
        return round((at_ns - self.t0_ns) / _NS_PER_MS, 3)

    def mark(self, name: MarkName, at_ns: int, resolution_ns: int = 0) -> None:
        """Set a mark. The first call counts: t3 stays the first version line, whatever had to be retried."""
        self.marks.setdefault(name, Mark(self.ms(at_ns), round(resolution_ns / _NS_PER_MS, 3)))

    def between(self, first: MarkName, second: MarkName) -> float | None:
        """Milliseconds from one mark to another, None unless both are there."""
        if first in self.marks and second in self.marks:
            return round(self.marks[second].ms - self.marks[first].ms, 3)
        return None
