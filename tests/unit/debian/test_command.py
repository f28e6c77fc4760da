"""Commands: what failed is said, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.processes import alive

from instant_env.debian import command
from instant_env.debian.command import BuildError
from instant_env.errors import MissingToolError


@pytest.fixture
def runner(tmp_path: Path) -> command.Runner:
    return command.Runner(tmp_path / "logs" / "build.log")


def test_output_goes_to_the_log_and_to_the_caller(runner: command.Runner) -> None:
    lines: list[str] = []
    runner.run(["sh", "-c", "cat; echo err >&2"], stdin="in\n", on_line=lines.append)
    assert lines == ["in", "err"]
    assert "$ sh -c 'cat; echo err >&2'\nin\nerr\n# exit 0 after" in runner.log.read_text()


def test_a_failure_says_its_last_lines_and_where_the_rest_is(runner: command.Runner) -> None:
    with pytest.raises(BuildError) as caught:
        runner.run(["sh", "-c", "seq 1 9; exit 3"])
    assert caught.value.message == "sh failed (3): 6 / 7 / 8 / 9"
    assert str(runner.log) in caught.value.hint


def test_a_program_that_does_not_read_is_judged_by_its_exit_code(runner: command.Runner) -> None:
    runner.run(["true"], stdin="x" * 1000)
    with pytest.raises(BuildError, match=r"false failed \(1\): it said nothing"):
        runner.run(["false"], stdin="x" * 1000)


def test_an_interrupt_ends_the_whole_group(runner: command.Runner) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(["sh", "-c", "sleep 100 & echo $!; echo $$; wait"], on_line=interrupt)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


def test_an_interrupt_while_a_program_starts_ends_it(
    runner: command.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program runs already, and Popen has not returned: the moment in which Ctrl-C would lose it."""
    pid = tmp_path / "pid"
    popen = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        while not pid.exists() or not pid.read_text().endswith("\n"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run(["sh", "-c", f"echo $$ >{pid}; exec sleep 100"])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not alive(int(pid.read_text()))


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingToolError) as caught:
        command.require({"sh": "dash", "no-such-mkfs": "dosfstools", "no-such-cp": "mtools"})
    assert caught.value.message == "not installed: no-such-cp, no-such-mkfs"
    assert caught.value.hint == "run: apt-get install dosfstools mtools"


def test_sbin_is_searched_whatever_path_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    assert command.search_path().split(os.pathsep) == ["/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"]
