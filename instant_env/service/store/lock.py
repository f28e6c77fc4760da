"""One service on a store: a lock beside it that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Self

from instant_env.service.store.protocol import StoreError


class ServiceLock:
    """Held until :meth:`release`, or the end of the process. The file stays: removing it would let two
    processes lock two files of the same name."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def take(cls, store: Path, url: str) -> Self:
        """Raises StoreError that names the service that has it."""
        path = store.with_name(store.name + ".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{holder(path)} has the store {store}",
                    hint="use that one, end it, or give this one a store of its own",
                ) from None
            lock = cls(descriptor, path)
            lock.say(url)
        except BaseException:
            os.close(descriptor)
            raise
        return lock

    def say(self, url: str) -> None:
        """What the next one is told: for a service that learns its port after it has taken the lock."""
        content = json.dumps({"pid": os.getpid(), "url": url}).encode() + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder(path: Path) -> str:
    """``the service at URL (process PID)``, as far as the lock's file says it."""
    try:
        content = json.loads(path.read_bytes())
        url, pid = str(content["url"]), int(content["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another service"  # it has just taken the lock, and not written yet
    return f"the service at {url} (process {pid})" if url else f"a service (process {pid})"
