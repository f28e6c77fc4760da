"""Disk pressure: guests are paused before the disk is full, and go on when there is space again.

A guest writes more than its image holds, and its volume grows on the host's disk. When that is full, QEMU's
NVMe device (7.2; it has no `werror`) fails the guest's writes, and its file systems lose what they were told
to keep. So the last of the space is reserved for the server's records. While no more than that is free,
machines are paused and lose nothing, as on an EBS volume that has stalled; their status check is `impaired`.
QEMU drains a guest's queues before it pauses it, which with a full page cache behind a slow disk can write
more than a small reserve.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.qemu.machine import Machine
from instant_env.localec2.qemu.qmp import QmpError

log = logging.getLogger(__name__)

#: Why a machine is paused (`Machine.freeze`).
REASON = "disk pressure"
#: The reserve: at most this, and of a small file system this share. A guest that writes 1 GB/s fills
#: 50 MB between two looks.
MOST_BYTES = 256 << 20
SHARE = 8
#: Seconds between two measurements: near the reserve, and far from it.
NEAR_S, FAR_S = 0.05, 1.0
FAR = 8


def free_bytes(directory: Path) -> tuple[int, int]:
    """(free, all) bytes of the file system of this directory."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


class DiskGuard:
    """Watches the free space for the machines of one server."""

    def __init__(
        self, lifecycle: Lifecycle, directory: Path,
        measure: Callable[[Path], tuple[int, int]] = free_bytes,
    ) -> None:  # fmt: skip
        self._lifecycle = lifecycle
        self._directory = directory
        self._measure = measure
        self.short = False

    def watch(self, ending: threading.Event) -> None:
        """Measure until the event is set."""
        wait_s = 0.0
        while not ending.wait(wait_s):
            wait_s = self.look()

    def look(self) -> float:
        """Pause machines or resume them, by the free space; returns the seconds to the next measurement."""
        free, total = self._measure(self._directory)
        reserve = min(MOST_BYTES, total // SHARE)
        if free < reserve:
            if not self.short:
                log.error("%d MiB are left below %s: machines are paused", free >> 20, self._directory)
            self.short = True
            for machine in self._running():
                if not machine.standing_still:
                    with suppress(QmpError):  # it ends just now
                        machine.freeze(REASON)
        elif self.short and free > reserve + reserve // 4:  # not to and fro
            log.info("there is space again: machines are resumed")
            self.short = False
            for machine in self._running():
                with suppress(QmpError):
                    machine.thaw(REASON)
        return FAR_S if free > FAR * reserve else NEAR_S

    def _running(self) -> list[Machine]:
        state = self._lifecycle.state
        with state.lock:
            return [
                machine
                for instance_id, machine in self._lifecycle.machines.items()
                if machine.started and state.instances[instance_id].state in ("running", "stopping")
            ]
