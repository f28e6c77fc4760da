"""Files that are written whole or not at all, and locks on files.

What is written goes beside its place first and is renamed over it, so that a reader sees the old content or
the new, never a mixture. Nothing is fsynced: after a power cut the new name may hold an empty file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The mode of files that others may read; the umask takes from it, as from any that `open` makes.
_PUBLIC = 0o666


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path`` for the block to write to; it is renamed when the block ends without an
    error, and removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``content``. The file is its owner's alone unless ``mode`` says otherwise."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by a JSON document that others may read; its directory is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode(), _PUBLIC)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the exclusive flock(2) on a lock file; ``waiting`` is called when another process has it.

    The file stays: removing it would let a third process lock a new file while a second still waits for the
    old one. The kernel drops the lock when its holder dies.
    """
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds an exclusive flock(2) on a file. Raises OSError when it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Shared: two processes that look at the same moment must not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
