"""Copies of a running machine's disks, as they were at one instant: QEMU's backup jobs.

What the guest overwrites meanwhile is copied out first (blockdev-backup), so the copy is what the disk held
when the job began, however long it takes: crash-consistent, like a snapshot on EC2. Several disks begin in
one transaction, so they show the same instant. The machine outlives its jobs: a guest that powers off stays
paused until they are done.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instant_env.errors import InstantEnvError
from instant_env.localec2.qemu.disks import COPY_TIMEOUT_S
from instant_env.localec2.qemu.qmp import Qmp, QmpError

log = logging.getLogger(__name__)


class BackupError(InstantEnvError):
    """A running machine's disk was not copied."""


@dataclass(frozen=True)
class Copy:
    """One disk to copy."""

    node: str  # of the machine's block device
    target: Path  # an empty qcow2 of the same size, over the same file as the disk when `incremental`
    incremental: bool


@dataclass
class _Job:
    done: threading.Event = field(default_factory=threading.Event)
    problem: str = ""


class Backups:
    """The backup jobs of one machine."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        # Not the condition's: events arrive in QMP's reader, which a command under that lock waits for.
        self._lock = threading.Lock()
        self._running = 0
        self._idle = threading.Condition()

    def event(self, name: str, data: dict[str, Any]) -> None:
        """An event of QMP."""
        if name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            with self._lock:
                job = self._jobs.get(str(data.get("device")))
            if job is not None:
                cancelled = "it was cancelled" if name == "BLOCK_JOB_CANCELLED" else ""
                job.problem = str(data.get("error", cancelled))
                job.done.set()

    def ended(self) -> None:
        """The machine is gone, and its jobs with it."""
        with self._lock:
            for job in self._jobs.values():
                if not job.done.is_set():
                    job.problem = "the machine ended"
                    job.done.set()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no job runs; False when some still do."""
        with self._idle:
            return self._idle.wait_for(lambda: self._running == 0, timeout_s)

    def run(self, qmp: Qmp, copies: Sequence[Copy], begun: threading.Event) -> None:
        """Copy disks; ``begun`` is set at the instant that the copies show.

        Raises BackupError when one of the copies failed; then none is of use.
        """
        try:
            with self._idle:
                self._running += 1
            # A guest that powers off would take its disks along.
            qmp.execute("set-action", {"shutdown": "pause"})
            self._run(qmp, copies, begun)
        except QmpError as error:
            raise BackupError(error.message) from error
        finally:
            with self._idle, contextlib.suppress(QmpError):  # it has ended
                self._running -= 1
                self._idle.notify_all()
                if self._running == 0:
                    qmp.execute("set-action", {"shutdown": "poweroff"})
                    if qmp.execute("query-status")["status"] == "shutdown":
                        qmp.execute("quit")  # the guest powered off meanwhile

    def _run(self, qmp: Qmp, copies: Sequence[Copy], begun: threading.Event) -> None:
        nodes: list[str] = []
        jobs: dict[str, _Job] = {}
        try:
            actions = []
            for copy in copies:
                job_id, target = f"backup-{copy.target.stem}", f"to-{copy.target.stem}"
                # A node's name ends at 31 characters; an id of EC2 has 22.
                qmp.execute("blockdev-add", _target(target, copy.target))
                nodes.append(target)
                jobs[job_id] = _Job()
                data = {
                    "job-id": job_id, "device": copy.node, "target": target,
                    "sync": "top" if copy.incremental else "full",
                }  # fmt: skip
                actions.append({"type": "blockdev-backup", "data": data})
            with self._lock:
                self._jobs |= jobs
            qmp.execute("transaction", {"actions": actions}, timeout_s=60)
            begun.set()
            for job_id, job in jobs.items():
                if not job.done.wait(COPY_TIMEOUT_S):
                    raise BackupError(f"{job_id} took longer than {COPY_TIMEOUT_S:g} s")
            if problems := [job.problem for job in jobs.values() if job.problem]:
                raise BackupError(f"the disk was not copied: {problems[0]}")
        finally:
            with self._lock:
                for job_id in jobs:
                    self._jobs.pop(job_id, None)
            with contextlib.suppress(QmpError):  # it has ended, which closed them
                for job_id, job in jobs.items():
                    if not job.done.is_set():
                        qmp.execute("block-job-cancel", {"device": job_id, "force": True})
                for node in nodes:
                    qmp.execute("blockdev-del", {"node-name": node}, timeout_s=60)


def _target(node: str, path: Path) -> dict[str, Any]:
    return {
        "driver": "qcow2", "node-name": node, "discard": "unmap", "detect-zeroes": "unmap",
        "cache": {"direct": False, "no-flush": True},
        "file": {"driver": "file", "filename": str(path), "discard": "unmap"},
    }  # fmt: skip
