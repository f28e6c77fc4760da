"""What asks a command to stop and clean up: Ctrl-C, SIGTERM, and the end of its terminal."""

from __future__ import annotations

import os
import signal
import stat


def signals() -> list[signal.Signals]:
    """Those to handle. Who ignores SIGHUP, as nohup has it, wants to outlive the terminal."""
    found = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


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
