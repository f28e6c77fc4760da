"""Guests that lock up while they boot are reset.

Emulation brings it about: with two processors emulated on a busy host, Debian's kernel 6.1 under QEMU 7.2
was seen to do nothing but answer timer interrupts, each slower than the next one's coming, for as long as it
was let. Linux itself finds out after some 26 s, and says so on the console. EC2 has no such thing, so neither
should those who wait for a machine here; the time that was lost stays in what they measure, and the server's
log tells of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

#: What kernel/watchdog.c prints.
WORDS = b"watchdog: BUG: soft lockup"
#: A boot's time. Later a reset would cost what a running machine has not written yet.
BOOT_S = 60.0
_PAUSE_S = 1.0

log = logging.getLogger(__name__)


def reset_when_locked_up(
    instance_id: str, console: Path, ended: threading.Event, reset: Callable[[], None],
    *, boot_s: float = BOOT_S, pause_s: float = _PAUSE_S,
) -> None:  # fmt: skip
    """Follow the console of a machine that starts, until it has booted or ``ended``; reset it once."""
    deadline = time.monotonic() + boot_s
    while time.monotonic() < deadline and not ended.wait(pause_s):
        with contextlib.suppress(OSError):  # it is not there yet, or not any more
            if WORDS in console.read_bytes():
                log.warning("%s: its kernel locked up as it booted, emulated as it is: reset", instance_id)
                reset()
                return
