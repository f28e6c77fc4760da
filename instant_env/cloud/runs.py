"""Whether a run still lives, so that what a killed one left need not wait for its expiry.

A run holds a lock on a file of its name below the state directory for as long as it may make or use anything.
The kernel frees the lock with the process, however it ends. Runs of other machines (or of another state
directory) have no file here: nothing is known of them, and their expiry tag decides.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from instant_env.files import is_locked
from instant_env.settings import Settings

#: What :func:`instant_env.cloud.tags.new_run_id` makes. A tag is anybody's text, and this becomes a path.
_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
#: Everything a run makes has expired long before.
_KEPT_S = 30 * 24 * 3600.0


def _path(settings: Settings, run_id: str) -> Path:
    return settings.state_dir / "runs" / run_id


@contextmanager
def alive(settings: Settings, run_id: str) -> Iterator[None]:
    """While this context is open the run lives. Enter it before the first thing is made under the run's name.

    The file stays when the context ends: from then on it says that the run is over. Where the state directory
    cannot be written, `clean` goes by the expiry tags alone.
    """
    path = _path(settings, run_id)
    descriptor = -1
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(OSError):
        _forget_old(path.parent)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def is_over(settings: Settings, run_id: str) -> bool:
    """Whether the run was one of this state directory and its process has ended.

    Ask only of a run something of which was seen: the lock is older than all that is made under it.
    """
    if not _RUN_ID.fullmatch(run_id):
        return False
    try:
        return not is_locked(_path(settings, run_id))
    except OSError:
        return False


def _forget_old(directory: Path) -> None:
    for path in directory.iterdir():
        if _RUN_ID.fullmatch(path.name) and time.time() - path.stat().st_mtime > _KEPT_S:
            path.unlink(missing_ok=True)
