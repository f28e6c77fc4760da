"""QMP, the JSON protocol of a running QEMU (docs/interop/qmp-spec), as a small blocking client.

One thread reads the socket; :meth:`Qmp.execute` may be called from any other. Events go to a callback, in the
reader's thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from instant_env.errors import InstantEnvError

EventHandler = Callable[[str, dict[str, Any]], None]


class QmpError(InstantEnvError):
    """QEMU refused a command, or does not answer any more."""


class Qmp:
    """A connection. Raises QmpError from every method once QEMU is gone."""

    def __init__(
        self,
        path: Path,
        *,
        on_event: EventHandler | None = None,
        timeout_s: float = 10.0,
        has_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect and negotiate, within ``timeout_s``; the socket may appear in the meantime.

        ``has_ended`` says that waiting is in vain. QEMU serves one connection at a time, so a failed one is
        closed.
        """
        self.path = path
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._pending: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._closed = False
        deadline = time.monotonic() + timeout_s
        self._socket = _connect(path, deadline, has_ended)
        self._stream = self._socket.makefile("rb")
        try:
            self._socket.settimeout(max(0.1, deadline - time.monotonic()))
            if b'"QMP"' not in self._stream.readline():
                raise QmpError(f"no QMP greeting on {path}")
            self._socket.settimeout(None)
            threading.Thread(target=self._read, name=f"qmp {path.name}", daemon=True).start()
            self.execute("qmp_capabilities", timeout_s=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            self.close()
            raise QmpError(f"no QMP greeting on {path}: {error}") from error
        except QmpError:
            self.close()
            raise

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> Any:
        """Run one command and return its result."""
        number = next(self._ids)
        future: Future[Any] = Future()
        message: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = arguments
        with self._lock:
            if self._closed:
                raise QmpError(f"QEMU is gone ({command})")
            self._pending[number] = future
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError as error:
                self._pending.pop(number, None)
                raise QmpError(f"QEMU is gone ({command}: {error})") from error
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            with self._lock:
                self._pending.pop(number, None)
            raise QmpError(f"QEMU did not answer {command} within {timeout_s:g} s") from None

    def close(self) -> None:
        """Drop the connection; QEMU runs on."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self) -> None:
        try:
            for line in self._stream:
                message = json.loads(line)
                if "event" in message:
                    if self._on_event is not None:
                        self._on_event(message["event"], message.get("data", {}))
                    continue
                with self._lock:
                    future = self._pending.pop(message.get("id", 0), None)
                if future is None:
                    continue
                if "error" in message:
                    future.set_exception(QmpError(f"QEMU: {message['error'].get('desc', 'error')}"))
                else:
                    future.set_result(message.get("return"))
        except (OSError, ValueError):
            pass  # reset by QEMU's end, or closed by us: both mean that nobody answers any more
        finally:
            with self._lock:
                self._closed = True
                pending, self._pending = list(self._pending.values()), {}
            for future in pending:
                future.set_exception(QmpError("QEMU is gone"))


def _connect(path: Path, deadline: float, has_ended: Callable[[], bool]) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(max(0.1, deadline - time.monotonic()))  # a full backlog would block for ever
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if has_ended() or time.monotonic() >= deadline:
                raise QmpError(f"no QEMU at {path}: {error}") from error
            time.sleep(0.005)
