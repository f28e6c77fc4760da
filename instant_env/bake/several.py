"""Several bakes side by side, each in a process of its own.

A process each, because Ctrl-C then ends every bake the way it ends one alone, by an exception in its main
thread that unwinds whatever it was at, and because one that dies takes no other along. Events come back by
a pipe: what a bake says, and how it ended.
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

from instant_env import stopping
from instant_env.bake.bake import BakeResult
from instant_env.bake.request import Request
from instant_env.errors import InstantEnvError
from instant_env.progress import Progress
from instant_env.settings import Settings
from instant_env.stopping import STOPPED_CODES, interrupts

#: Bakes one request. Module-level functions only: it is named to another process.
Work = Callable[[Settings, Request, Progress], BakeResult]
#: Hears what a bake says: its request, and the line.
Hear = Callable[[Request, str], None]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How one bake ended: with a result, or with an error and the exit code that stands for it."""

    request: Request
    result: BakeResult | None = None
    error: str = ""
    hint: str = ""
    exit_code: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        asked = {"recipe": self.request.recipe, "arch": self.request.arch.value}
        if self.result is not None:
            return {**asked, "ok": True, **self.result.as_dict()}
        told = {"error": self.error, "hint": self.hint, "exit_code": self.exit_code}
        return {**asked, "ok": False, **told, "seconds": round(self.seconds, 1)}


def exit_code(ended: Sequence[Ended]) -> int:
    """0 when all is well; the code that all failures share, else 1; 128+n when signal n stopped any."""
    codes = {one.exit_code for one in ended if one.exit_code}
    if stopped := codes & STOPPED_CODES:
        return min(stopped)
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _outcome(work: Work, settings: Settings, request: Request, progress: Progress) -> Ended:
    started = time.monotonic()

    def failed(error: str, hint: str, code: int) -> Ended:
        return Ended(request, None, error, hint, code, time.monotonic() - started)

    try:
        with interrupts(quiet=True):
            # Blocked since before this process began, so that no instant of it is without our handlers.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            result = work(settings, request, progress)
        return Ended(request, result, seconds=time.monotonic() - started)
    except InstantEnvError as error:
        return failed(error.message, error.hint, error.exit_code)
    except (ClientError, BotoCoreError) as error:
        return failed(f"EC2: {error}", "", 4)
    except KeyboardInterrupt as error:
        return failed("interrupted", "", stopping.exit_code(stopping.signal_number(error)))


def _child(work: Work, settings: Settings, request: Request, pipe: Connection) -> None:
    """The other process. When nobody hears it any more it ends as by Ctrl-C: what it made goes."""
    deserted = False

    def progress(text: str) -> None:
        nonlocal deserted
        try:
            pipe.send(text)
        except OSError:
            if not deserted:
                deserted = True
                os.kill(os.getpid(), signal.SIGTERM)

    ended = _outcome(work, settings, request, progress)
    if not deserted:
        pipe.send(ended)


class _Bake:
    """One of them, as its parent sees it."""

    def __init__(self, work: Work, settings: Settings, request: Request) -> None:
        self.request = request
        self._started = time.monotonic()
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would share boto3's sockets and rich's threads
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process: SpawnProcess = context.Process(target=_child, args=(work, settings, request, theirs))
        self._process.start()
        theirs.close()

    def interrupt(self, number: int) -> None:
        """Pass on the signal that came to us; one that heard of it already does nothing more."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def next(self) -> str | Ended:
        """What it says next; call it when there is something to read."""
        try:
            event: str | Ended = self.pipe.recv()
        except EOFError:  # it died without a word: killed, or out of memory
            self._process.join()
            seconds = time.monotonic() - self._started
            error = f"its process ended with {self._process.exitcode}"
            return Ended(self.request, None, error, "run: invoke clean", 1, seconds)
        if isinstance(event, Ended):
            self._process.join()
        return event


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """For a process to be born into, and to be known to us before we can be interrupted: other threads of
    ours do not block them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with stopping.signals_deferred():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def bake_all(
    work: Work, settings: Settings, requests: Sequence[Request], *, parallel: int = 0, hear: Hear,
    ended: Callable[[Ended], None],
) -> list[Ended]:  # fmt: skip
    """Bake all of them, ``parallel`` at a time (0: all); how each ended, in the order they were asked for.

    One that fails does not stop the others. An interrupt reaches all; then this waits until each has cleaned
    up, and those that were not begun are not.
    """
    waiting = list(requests)
    running: dict[Connection, _Bake] = {}
    outcomes: dict[str, Ended] = {}
    number: int = signal.SIGINT
    try:
        while waiting or running:
            while waiting and (not parallel or len(running) < parallel):
                with _signals_blocked():
                    bake = _Bake(work, settings, waiting[0])
                    running[bake.pipe] = bake
                    del waiting[0]
            _hear_some(running, outcomes, hear, ended)
    except KeyboardInterrupt as error:
        number = stopping.signal_number(error)
        for bake in running.values():
            bake.interrupt(number)
        while running:
            _hear_some(running, outcomes, hear, ended)
    for request in waiting:
        code = stopping.exit_code(number)
        outcomes[request.run_id] = Ended(request, None, "interrupted before it began", "", code)
    return [outcomes[request.run_id] for request in requests]


def _hear_some(
    running: dict[Connection, _Bake], outcomes: dict[str, Ended], hear: Hear, told: Callable[[Ended], None]
) -> None:
    """Wait until some of them say something, and pass it on. What is read half is lost, and all after it."""
    ready = wait(list(running))
    for bake in [bake for pipe, bake in running.items() if pipe in ready]:
        with stopping.signals_deferred():
            event = bake.next()
            if isinstance(event, Ended):
                outcomes[bake.request.run_id] = event
                del running[bake.pipe]
                told(event)
            else:
                hear(bake.request, event)
