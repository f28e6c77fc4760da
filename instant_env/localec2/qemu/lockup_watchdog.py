"""Guests that lock up while they boot are reset.

QEMU's emulation brings it about. Linux rewrites its own code while it runs (static keys): for a moment there
is a breakpoint in the place. QEMU 7.2 locks a page of code when a block translated from it is put in place,
not while it translates (accel/tcg/translate-all.c), so a processor that comes by in that moment can make a
block of the breakpoint that outlives it. From then on every processor that comes there traps, finds no
breakpoint in the memory, goes back, and traps again. It was seen in the act at memcg_kmem_enabled_key in
kmem_cache_alloc: both processors at one address, which held a nop, for as long as they were let.

Linux itself finds out after 20 to 50 s, and says so on the console. EC2 has no such thing, so neither should
those who wait for a machine here; the time that was lost stays in what they measure, and the server's log
tells of it.
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
#: A boot's time, and until Linux says so. Later a reset would cost what a running machine has not written.
BOOT_S = 180.0
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
