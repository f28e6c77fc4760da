"""Worker threads that never hold up the end of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonExecutor(ThreadPoolExecutor):
    """An executor whose threads are daemons and are not joined, neither here nor at exit.

    A call to EC2 that is in flight at Ctrl-C may last a minute. Leaving it is safe: its row was written
    first, and its client token makes a repetition harmless. Of ThreadPoolExecutor, which asyncio insists on
    (``set_default_executor``), only the name is used.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(max_workers=threads)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if self._closed:
            raise RuntimeError("the executor is shut down")
        future: Future[T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; waits for nothing."""
        del wait, cancel_futures
        self._closed = True

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it is the caller's, as in any executor
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, call  # nothing is kept while waiting for the next
