"""Work that is done after the answer: jobs of one thing one after the other, of different things at once."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable

log = logging.getLogger(__name__)

Job = Callable[[str], None]


class Work:
    """Queues by name, first come, first served; a thread for each that is not empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: defaultdict[str, deque[Job]] = defaultdict(deque)

    def add(self, name: str, job: Job) -> None:
        """Run ``job(name)`` after those of this name that were added before."""
        with self._lock:
            queue = self._queues[name]
            queue.append(job)
            if len(queue) == 1:
                threading.Thread(target=self._run, args=(name, queue), name=f"work {name}").start()

    def _run(self, name: str, queue: deque[Job]) -> None:
        while True:
            try:
                queue[0](name)
            except Exception:  # the thread's end: nobody above could handle it
                log.exception("%s: work failed", name)
            with self._lock:
                queue.popleft()
                if not queue:
                    del self._queues[name]
                    return
