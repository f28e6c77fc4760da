"""What asks a command to stop and clean up: Ctrl-C, SIGTERM, and the end of its terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterator


def signals() -> list[signal.Signals]:
    """Those to handle. Who ignores SIGHUP, as nohup has it, wants to outlive the terminal."""
    found = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let them wait until the end of this context, for what must not be left half done.

    Such as the start of a program: between its start and Popen's return, Ctrl-C would lose the process, which
    then runs on. Elsewhere than in the main thread they raise nothing, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # What is ignored is left so, also for the programs that are started; None is not Python's own.
    taken = [number for number in signals() if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in taken]
    try:
        yield
    finally:
        # Ctrl-C's last: it may come right then, and must not keep the others from their handlers.
        for number, handler in reversed(list(zip(taken, before, strict=True))):
            signal.signal(number, handler)
        for arrived in came:
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
