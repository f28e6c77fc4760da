"""What asks a command to stop and clean up: Ctrl-C, SIGTERM, and the end of its terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


def signal_number(error: KeyboardInterrupt) -> int:
    """The signal behind it; Python itself raises KeyboardInterrupt for SIGINT only."""
    return error.number if isinstance(error, Stopped) else signal.SIGINT


def exit_code(number: int) -> int:
    """What a shell reports for a process that this signal ended: 130 for Ctrl-C."""
    return 128 + number


#: Exit codes of commands that were stopped.
STOPPED_CODES = frozenset(exit_code(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def signals() -> list[signal.Signals]:
    """Signals to handle. A process that ignores SIGHUP (nohup) is meant to outlive its terminal."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer these signals to the end of the block, for what must not be interrupted half-way.

    One case is the start of a program: between its start and Popen's return, Ctrl-C would lose the process,
    which then runs on. Python runs signal handlers in the main thread only, so elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    # Ignored signals stay ignored, in programs that are started too. None: a handler that Python did not set.
    numbers = [number for number in signals() if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield
    finally:
        # Ctrl-C's last: it may come right then, and must not keep the others from their handlers.
        for number, handler in reversed(list(zip(numbers, before, strict=True))):
            signal.signal(number, handler)
        for arrived in received:
            signal.raise_signal(arrived)


def leave_terminal(signum: int) -> None:
    """After a hangup nobody reads what goes to the terminal, and writing to it fails: clean up without."""
    if signum != signal.SIGHUP:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        # Not isatty, which says no of a terminal that is gone.
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def interrupts(*, quiet: bool = False) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Stopped once, so that every ``finally`` runs; more of them
    are answered with a word, since cutting a clean-up short is what leaves machines running. ``quiet`` is for
    processes that share a screen with the one that speaks."""
    stopping = False

    def handle(signum: int, _: FrameType | None) -> None:
        nonlocal stopping
        if stopping and quiet:
            return
        if stopping:
            print("still cleaning up; machines would stay behind otherwise", file=sys.stderr, flush=True)
            return
        stopping = True
        leave_terminal(signum)
        if not quiet:
            print(f"\n{signal.Signals(signum).name}: cleaning up", file=sys.stderr, flush=True)
        raise Stopped(signum)

    previous = {number: signal.signal(number, handle) for number in signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
            self._previous = {number: signal.signal(number, self._handle) for number in signals()}
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
        leave_terminal(number)
        if self.hook is not None:
            self.hook()
        else:
            raise KeyboardInterrupt
