"""A server that is there and does not answer: told apart from none, and ended by force."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from instant_env import files
from instant_env.errors import InstantEnvError
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.store import RecordStore
from instant_env.waiting import wait_until

log = logging.getLogger(__name__)

#: From SIGKILL to the end of a process that waits for a disk.
KILL_TIMEOUT_S = 20.0


class HungError(InstantEnvError):
    """A server cannot be ended."""


def has_server(layout: Layout) -> bool:
    """Whether a server process of this directory is alive: it holds the lock to its end."""
    try:
        return files.is_locked(layout.server_lock)
    except FileNotFoundError:
        return False


def server_of(layout: Layout) -> int | None:
    """The process that is the server of this directory; None when there is none, or nobody can say which.

    It must hold the directory's lock, be this user's, and have been started as this directory's server: a
    number in a file may be anybody's by now.
    """
    if not has_server(layout):
        return None
    for directory in Path("/proc").glob("[0-9]*"):
        if _serves(directory, layout):
            return int(directory.name)
    return None


def _serves(process: Path, layout: Layout) -> bool:
    try:
        if process.stat().st_uid != os.getuid():
            return False
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        open_files = {str(link.readlink()) for link in (process / "fd").iterdir()}
    except OSError:
        return False  # it has just ended
    return "instant_env.localec2" in words and str(layout.server_lock) in open_files


def kill(layout: Layout, pid: int) -> None:
    """End a server without asking it, and the machines that it leaves. Raises HungError."""
    log.warning("killing the server %d of %s", pid, layout.state_dir)
    os.kill(pid, signal.SIGKILL)
    if not wait_until(lambda: not has_server(layout), KILL_TIMEOUT_S, 0.05):
        raise HungError(
            f"localec2 (pid {pid}) does not end",
            hint="one that waits for a disk ends when that answers",
        )
    from instant_env.localec2 import restore  # moto comes with it, which takes a second

    restore.end_lost_machines(layout, RecordStore(layout.records))
    layout.endpoint.unlink(missing_ok=True)
    layout.remove_runtime()
