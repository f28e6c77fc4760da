"""A terminal that goes away stops a command like Ctrl-C does, and what it prints then hurts nobody."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instant_env import stopping

PROGRAM = """
import sys, time
from pathlib import Path
from instant_env import stopping
try:
    with stopping.interrupts():
        print("begun", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    for _ in range(3):
        print("cleaning", flush=True)
        print("cleaning", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text("cleaned up")
"""


def hears_hangups() -> None:
    """Undo what nohup may have set for the process that runs the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ignores_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_hangup_cleans_up_without_a_terminal(tmp_path: Path) -> None:
    done = tmp_path / "done"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", PROGRAM, str(done)],
        stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=hears_hangups,
    )  # fmt: skip
    os.close(theirs)
    assert b"begun" in os.read(ours, 100)
    os.close(ours)  # the kernel sends SIGHUP to the session's leader
    try:
        process.wait(30)
    finally:
        process.kill()
    assert done.read_text() == "cleaned up"


@pytest.mark.parametrize("ignored", [True, False])
def test_a_process_under_nohup_ignores_a_hangup(tmp_path: Path, ignored: bool) -> None:
    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(done)], stdout=subprocess.PIPE,
        preexec_fn=ignores_hangups if ignored else hears_hangups,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGHUP)
    if ignored:
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
    process.wait(30)
    assert done.read_text() == "cleaned up"


def test_a_deferred_signal_is_handled_afterwards() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    reached = []

    def work() -> None:
        with stopping.signals_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            reached.append("end")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert reached == ["end"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
