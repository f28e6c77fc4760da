"""What the machine itself knows, read over the authenticated connection after t4, when it perturbs nothing.

The machine's clock is joined to the host's by asking it the time over that connection: the answer was right
at some instant between question and answer, so the error is half the round trip. ``/proc/uptime`` is
CLOCK_BOOTTIME in steps of 10 ms (fs/proc/uptime.c), which is the clock of instant-init's timeline too. The
wall clock of neither side is used. One shell does it all with built-ins: each fork is expensive in an
emulated guest, and the quicker the answer the smaller the error.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from instant_env.errors import InstantEnvError

TIMELINE_PATH = "/run/instant-init/timeline.json"
#: 1 is what images baked before had: the marks alone.
TIMELINE_VERSIONS = (1, 2)

#: /proc/uptime cuts off, it does not round: on average it is half a step behind.
_UPTIME_STEP_MS = 10.0

#: Readings of the clock, of which the quickest counts: the first one pays for cold caches.
CLOCK_READINGS = 5

END = "--instant-env-end--"
#: instant-init writes one line.
_TIMELINE_LINES_MAX = 1000
# The root's disk is found by its number; a partition lies below its disk in the kernel's tree, with a file
# `partition`. The timeline comes last: PID 1 learns of the login from sshd's log, a moment after we do.
_SCRIPT = f"""
while read -r x x d x m x; do [ "$m" = / ] && s=/sys/dev/block/$d; done </proc/self/mountinfo
[ ! -e "$s/partition" ] || s=$s/..
x=; [ ! -r "$s/stat" ] || read -r x <"$s/stat"; echo "$x"
read -r x </proc/sys/kernel/random/boot_id; echo "$x"
read -r x </proc/sys/kernel/osrelease; echo "$x"
n={CLOCK_READINGS}
while [ $n -gt 0 ]; do read -r x; read -r x y </proc/uptime; echo "$x"; n=$((n-1)); done
if [ -r {TIMELINE_PATH} ]; then while read -r x || [ -n "$x" ]; do echo "$x"; done <{TIMELINE_PATH}; fi
echo {END}
"""


class GuestReadError(InstantEnvError):
    """The login succeeded, but the machine's report cannot be read."""


@dataclass(frozen=True)
class GuestReport:
    """The machine's own account.

    ``marks_ms`` are milliseconds on CLOCK_BOOTTIME, that is from kernel start; empty on machines without our
    init. ``boot_at_ns`` is that clock's zero as the host's ``time.monotonic_ns()``, right within
    ``clock_error_ms``.
    """

    boot_id: str
    kernel: str
    boot_at_ns: int
    clock_error_ms: float
    pid1: bool = False
    marks_ms: Mapping[str, float] = field(default_factory=dict)
    root_reads: tuple[int, int] | None = None
    """Requests and bytes that this boot has read from the root's disk by the time of the question."""


def parse_timeline(text: str) -> tuple[bool, dict[str, float]]:
    """Whether instant-init was PID 1, and its marks in ms. Empty text is a machine without it.

    Raises GuestReadError for a file of another version or shape.
    """
    if not text.strip():
        return False, {}
    try:
        loaded: Any = json.loads(text)
        if loaded["version"] not in TIMELINE_VERSIONS:
            raise GuestReadError(f"{TIMELINE_PATH} has version {loaded['version']}, not known here")
        marks = {str(mark["name"]): float(mark["boottime_ms"]) for mark in loaded["marks"]}
        if not all(map(math.isfinite, marks.values())):
            raise ValueError("a mark is not a finite number")
        return bool(loaded["pid1"]), marks
    except GuestReadError:
        raise
    except Exception as error:  # JSON can be nested too deeply, a number too long, and so on
        raise GuestReadError(f"{TIMELINE_PATH} is not a timeline: {error!r}") from error


def parse_disk_statistics(line: str) -> tuple[int, int] | None:
    """Read requests and bytes from the ``stat`` of a block device (Documentation/block/stat.rst).

    None for an empty line: a root without a disk of its own. Raises GuestReadError.
    """
    fields = line.split()
    if not fields:
        return None
    try:
        return int(fields[0]), int(fields[2]) * 512
    except (ValueError, IndexError):
        raise GuestReadError(f"disk statistics: {line!r}") from None


async def _line(process: asyncssh.SSHClientProcess[str]) -> str:
    line = await process.stdout.readline()
    if not line:
        raise GuestReadError("the shell ended early")
    return line.rstrip("\r\n")


async def read_guest(connection: asyncssh.SSHClientConnection) -> GuestReport:
    """Read the report. Raises GuestReadError; it has no time-out of its own."""
    try:
        async with connection.create_process(_SCRIPT, encoding="utf-8") as process:
            statistics = await _line(process)
            boot_id, kernel = await _line(process), await _line(process)
            boot_at_ns, error_ms = await _read_clock(process)
            timeline = []
            while (line := await _line(process)) != END:
                timeline.append(line)
                if len(timeline) > _TIMELINE_LINES_MAX:
                    raise GuestReadError(f"{TIMELINE_PATH} has more than {_TIMELINE_LINES_MAX} lines")
            process.stdin.write_eof()
    except GuestReadError:
        raise
    except Exception as error:  # whatever a guest's bytes make of asyncssh
        raise GuestReadError(f"{type(error).__name__}: {error}") from error
    pid1, marks = parse_timeline("\n".join(timeline))
    reads = parse_disk_statistics(statistics)
    return GuestReport(boot_id, kernel, boot_at_ns, error_ms, pid1, marks, reads)


async def _read_clock(process: asyncssh.SSHClientProcess[str]) -> tuple[int, float]:
    """The zero of the guest's clock as host nanoseconds, and the bound of its error in ms."""
    best: tuple[int, int] | None = None  # (round trip, boot instant), both ns
    for _ in range(CLOCK_READINGS):
        before_ns = time.monotonic_ns()
        process.stdin.write("\n")
        text = await _line(process)
        after_ns = time.monotonic_ns()
        try:
            uptime_ns = int((float(text) * 1000 + _UPTIME_STEP_MS / 2) * 1e6)
        except (ValueError, OverflowError):  # int() of an infinite number
            raise GuestReadError(f"/proc/uptime says {text!r}") from None
        reading = (after_ns - before_ns, (before_ns + after_ns) // 2 - uptime_ns)
        best = min(best, reading) if best else reading
    assert best is not None  # noqa: S101 - the loop ran
    return best[1], round(best[0] / 2e6 + _UPTIME_STEP_MS / 2, 3)
