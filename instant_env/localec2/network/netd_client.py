"""The process that is the network (cmd/netd, in Go), and how it is spoken to.

Commands go to its standard input and are answered on its standard output, one JSON object a line, in order
(cmd/netd/main.go lists them). It ends when its standard input does, so it never outlives this process.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, cast

from instant_env.localec2.network.addresses import NetworkError

log = logging.getLogger(__name__)

#: netd answers within a millisecond; on a machine that is out of memory or of processors, later.
ANSWER_TIMEOUT_S = 20.0
#: From the end of its input to its own end.
EXIT_TIMEOUT_S = 5.0

Answer = dict[str, Any]


class NetdClient:
    """One netd process. Methods may be called from any thread; only :meth:`close` waits."""

    def __init__(
        self, program: Path, arguments: list[str], on_death: Callable[[], None],
        on_event: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """Start it. ``on_death`` is called, in a thread of its own, when it ends before :meth:`close`;
        ``on_event`` with the name of an event and of the interface that it is about.

        Raises NetworkError when it cannot be started.
        """
        try:
            # Its standard error is ours: the server's log.
            self._process = subprocess.Popen(
                [str(program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise NetworkError(f"the network does not start: {error}") from error
        self._input = cast(IO[str], self._process.stdin)  # pipes were asked for
        self._on_death, self._on_event = on_death, on_event
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Future[Answer]]] = deque()
        self._count = 0
        self._closed = False
        threading.Thread(target=self._read, name="netd", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, do: str, **fields: Any) -> Future[Answer]:
        """Give a command; its answer comes later. An answer with an error is NetworkError, and logged."""
        future: Future[Answer] = Future()
        with self._lock:
            self._count += 1
            self._waiting.append((self._count, future))
            try:
                self._input.write(json.dumps({"id": self._count, "do": do, **fields}) + "\n")
                self._input.flush()
            except (OSError, ValueError):
                self._waiting.pop()
                future.set_exception(NetworkError("the network has ended"))
        return future

    def _read(self) -> None:
        for line in cast(IO[str], self._process.stdout):
            answer: Answer = json.loads(line)
            if event := answer.get("event"):
                self._on_event(event, answer["port"])
                continue
            with self._lock:
                number, future = self._waiting.popleft()
            if number != answer["id"]:
                log.critical("netd answers %s instead of %d", answer["id"], number)
                self._process.kill()
            elif problem := answer.get("error"):
                log.error("netd: %s", problem)
                future.set_exception(NetworkError(f"network: {problem}"))
            else:
                future.set_result(answer)
        code = self._process.wait()
        with self._lock:
            waiting, closed = list(self._waiting), self._closed
            self._waiting.clear()
        for _, future in waiting:
            future.set_exception(NetworkError("the network has ended"))
        if not closed:
            log.critical("netd ended with %d", code)
            self._on_death()

    def close(self) -> None:
        """End it and wait for that."""
        with self._lock:
            self._closed = True
            try:
                self._input.close()
            except OSError:
                log.debug("netd was gone already")
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.error("netd does not end, killing it")
            self._process.kill()
            self._process.wait()
