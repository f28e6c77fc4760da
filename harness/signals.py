"""Ctrl-C, SIGTERM and SIGHUP, taken once: they stop the work, never the cleaning up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from instant_env import stopping


class StopSignals:
    """While entered, the first signal raises KeyboardInterrupt, or calls ``hook`` when one is set.

    Later signals do nothing: by then machines are being ended, and leaving that half done would cost more
    than it spares. Outside the main thread Python delivers no signals, and this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.hook: Callable[[], None] | None = None
        """Called instead of raising, for code that runs in an event loop."""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in stopping.signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            return
        self.received = signal.Signals(number)
        stopping.leave_terminal(number)
        if self.hook is not None:
            self.hook()
        else:
            raise KeyboardInterrupt
