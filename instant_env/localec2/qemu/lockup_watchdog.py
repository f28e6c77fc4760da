"""Guests that lock up while they boot are reset.

QEMU's emulation brings it about. Linux rewrites its own code while it runs (static keys): for a moment there
is a breakpoint in the place. QEMU 7.2 locks a page of code when a block translated from it is put in place,
not while it translates (accel/tcg/translate-all.c), so a processor that comes by in that moment can make a
block of the breakpoint that outlives it. From then on every processor that comes there traps, finds no
breakpoint in the memory, goes back, and traps again. It was seen in the act at memcg_kmem_enabled_key in
kmem_cache_alloc: both processors at one address, which held a nop, for as long as they were let.

Linux itself finds out after 20 to 50 s, says so on the console, and says it again as long as it lasts. EC2
has no such thing, so neither should those who wait for a machine here; the time that was lost stays in what
they measure, and the server's log tells of it.

A boot of three machines on two processors takes minutes, and one has locked up after 140 s, its sshd already
listening. So a machine is watched beyond its boot, too; then it takes more than one report, because a reset
costs what a running machine has not written, and a guest that stood still for a while reports once.
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
#: A boot's time, and until Linux says so: one report is enough.
BOOT_S = 180.0
#: From then on, until a machine is so old, it takes three: Linux leaves 20 s or more between them.
WATCHED_S, _REPORTS = 3600.0, 3
_PAUSE_S, _LATER_PAUSE_S = 1.0, 10.0

log = logging.getLogger(__name__)


def reset_when_locked_up(
    instance_id: str, console: Path, ended: threading.Event, reset: Callable[[], None],
    *, boot_s: float = BOOT_S, watched_s: float = WATCHED_S,
    pause_s: float = _PAUSE_S, later_pause_s: float = _LATER_PAUSE_S,
) -> None:  # fmt: skip
    """Follow the console of a machine for ``watched_s`` from its start, or until it has ``ended``; reset it
    once."""
    began = time.monotonic()
    while (age_s := time.monotonic() - began) < watched_s:
        is_booting = age_s < boot_s
        if ended.wait(pause_s if is_booting else later_pause_s):
            return
        with contextlib.suppress(OSError):  # it is not there yet, or not any more
            if console.read_bytes().count(WORDS) >= (1 if is_booting else _REPORTS):
                log.warning("%s: its kernel locked up, emulated as it is: reset", instance_id)
                reset()
                return
