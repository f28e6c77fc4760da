"""Bakes that run in parallel, each in a process of its own.

In a process of its own, Ctrl-C ends a bake as it ends a single one, by an exception in the main thread that
unwinds the stack, and a bake that crashes does not end the others. A pipe carries its events back: lines of
progress, and the outcome.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from instant_env import stopping
from instant_env.bake.bake import BakeResult
from instant_env.bake.request import Request
from instant_env.errors import described
from instant_env.progress import Progress
from instant_env.settings import Settings
from instant_env.stopping import STOPPED_CODES, interrupts

#: Bakes one request. Module-level functions only: it is named to another process.
Work = Callable[[Settings, Request, Progress], BakeResult]
#: Takes a line of progress of one bake.
OnLine = Callable[[Request, str], None]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class BakeOutcome:
    """The outcome of one bake: a result, or an error with its exit code."""

    request: Request
    result: BakeResult | None = None
    error: str = ""
    hint: str = ""
    exit_code: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        request = {"recipe": self.request.recipe, "arch": self.request.arch.value}
        if self.result is not None:
            return {**request, "ok": True, **self.result.as_dict()}
        failure = {"error": self.error, "hint": self.hint, "exit_code": self.exit_code}
        return {**request, "ok": False, **failure, "seconds": round(self.seconds, 1)}


def exit_code(outcomes: Sequence[BakeOutcome]) -> int:
    """0 when all is well; the code that all failures share, else 1; 128+n when signal n stopped any."""
    codes = {outcome.exit_code for outcome in outcomes if outcome.exit_code}
    if stopped := codes & STOPPED_CODES:
        return min(stopped)
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _outcome(work: Work, settings: Settings, request: Request, progress: Progress) -> BakeOutcome:
    started = time.monotonic()

    def failed(error: str, hint: str, code: int) -> BakeOutcome:
        return BakeOutcome(request, None, error, hint, code, time.monotonic() - started)

    try:
        with interrupts(quiet=True):
            # Blocked since before this process began, so that no instant of it is without our handlers.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            result = work(settings, request, progress)
        return BakeOutcome(request, result, seconds=time.monotonic() - started)
    except (ClientError, BotoCoreError, ResponseParserError) as error:
        return failed(f"EC2: {error}", "", 4)
    except KeyboardInterrupt as error:
        return failed("interrupted", "", stopping.exit_code(stopping.signal_number(error)))
    except Exception as error:
        if (known := described(error)) is None:
            raise  # a fault of ours: its traceback is worth more than a line
        return failed(known.message, known.hint, known.exit_code)


def _child(work: Work, settings: Settings, request: Request, pipe: Connection) -> None:
    """The body of the other process. When its parent is gone it cleans up and ends, as after Ctrl-C."""
    is_orphan = False

    def progress(text: str) -> None:
        nonlocal is_orphan
        try:
            pipe.send(text)
        except OSError:
            if not is_orphan:
                is_orphan = True
                os.kill(os.getpid(), signal.SIGTERM)

    outcome = _outcome(work, settings, request, progress)
    if not is_orphan:
        pipe.send(outcome)


class _Bake:
    """One bake, seen from the parent process."""

    def __init__(self, work: Work, settings: Settings, request: Request) -> None:
        self.request = request
        self._started = time.monotonic()
        # A fork would share boto3's sockets and rich's threads.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process: SpawnProcess = context.Process(target=_child, args=(work, settings, request, theirs))
        self._process.start()
        theirs.close()

    def interrupt(self, number: int) -> None:
        """Pass a signal on; a bake that had it already does nothing more."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def next(self) -> str | BakeOutcome:
        """Its next event: a line, or the outcome. Blocks when there is nothing to read."""
        try:
            event: str | BakeOutcome = self.pipe.recv()
        except EOFError:  # it ended without an outcome: killed, or out of memory
            self._process.join()
            seconds = time.monotonic() - self._started
            error = f"its process ended with {self._process.exitcode}"
            return BakeOutcome(self.request, None, error, "run: invoke clean", 1, seconds)
        if isinstance(event, BakeOutcome):
            self._process.join()
        return event


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Around the start of a process, which inherits the mask, until the parent has recorded it.

    Other threads of the parent do not block them, so its own handlers are deferred as well.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with stopping.signals_deferred():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bake_all(
    work: Work, settings: Settings, requests: Sequence[Request], *, parallel: int = 0, on_line: OnLine,
    on_outcome: Callable[[BakeOutcome], None],
) -> list[BakeOutcome]:  # fmt: skip
    """Bake all requests, ``parallel`` at a time (0: all). Returns the outcomes in the same order.

    A failure does not stop the others. An interrupt is passed on to all that run; this returns when each has
    cleaned up, and no other is started.
    """
    waiting = list(requests)
    running: dict[Connection, _Bake] = {}
    outcomes: dict[str, BakeOutcome] = {}
    number: int = signal.SIGINT
    try:
        while waiting or running:
            while waiting and (not parallel or len(running) < parallel):
                with _signals_blocked():
                    bake = _Bake(work, settings, waiting[0])
                    running[bake.pipe] = bake
                    del waiting[0]
            _drain(running, outcomes, on_line, on_outcome)
    except KeyboardInterrupt as error:
        number = stopping.signal_number(error)
        for bake in running.values():
            bake.interrupt(number)
        while running:
            _drain(running, outcomes, on_line, on_outcome)
    for request in waiting:
        code = stopping.exit_code(number)
        outcomes[request.run_id] = BakeOutcome(request, None, "interrupted before it began", "", code)
    return [outcomes[request.run_id] for request in requests]


def _drain(
    running: dict[Connection, _Bake], outcomes: dict[str, BakeOutcome], on_line: OnLine,
    on_outcome: Callable[[BakeOutcome], None],
) -> None:  # fmt: skip
    """Wait for events and pass them on. A read is not interrupted: half an event would lose all after it."""
    ready = wait(list(running))
    for bake in [bake for pipe, bake in running.items() if pipe in ready]:
        with stopping.signals_deferred():
            event = bake.next()
            if isinstance(event, BakeOutcome):
                outcomes[bake.request.run_id] = event
                del running[bake.pipe]
                on_outcome(event)
            else:
                on_line(bake.request, event)
