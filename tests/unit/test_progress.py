"""Whatever takes long says so: by a spinner on a terminal, by lines elsewhere; what is short says nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import pytest
from support.patience import until
from support.terminal import Terminal

from instant_env.cli.program import namespace
from instant_env.progress import Doing, Heartbeat
from instant_env.settings import ROOT

#: A verb of its own, made as all verbs are.
VERB = """
import sys, time
from instant_env.cli.verb import reporter, say, verb
from instant_env.progress import Doing
def work():
    'Count sheep, one by one; not goats.'
    {body}
verb(work)()
"""


def command(body: str) -> list[str]:
    return [sys.executable, "-c", VERB.format(body=body)]


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(body), cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_a_verb_that_says_nothing_is_said_to_work() -> None:
    """Whatever it is: the verb's own code has no part in it."""
    result = run("time.sleep(4); say('done')")
    assert re.fullmatch(r" +\d+\.\d s  Count sheep\n", result.stderr)
    assert result.stdout == "done\n"


def test_what_is_short_says_nothing() -> None:
    beats: list[str] = []
    with Heartbeat(lambda line, _: beats.append(line), first_s=60, again_s=60) as heartbeat:
        heartbeat.line(Doing("looking"))
    assert beats == []


@pytest.mark.slow
def test_on_a_terminal_a_spinner_says_what_is_done_and_for_how_long() -> None:
    body = "reporter()(Doing('counting [all] sheep')); sys.stdin.readline(); say('done')"
    with Terminal(command(body), rows=24, columns=80) as terminal:
        terminal.expect(r"counting \[all\] sheep · \d+ s")
        terminal.expect(r"counting \[all\] sheep · ([2-9]|\d\d) s")
        terminal.send("\n")
        terminal.expect("done")
        assert terminal.wait() == 0
        after = terminal.seen[terminal.seen.rindex("done") :]
    assert "sheep" not in after


@pytest.mark.slow
def test_a_person_who_is_asked_sees_no_spinner() -> None:
    body = (
        "from instant_env.cli import tables; reporter()(Doing('looking')); sys.stdin.readline(); "
        "print(tables.confirmed('remove it?'), file=sys.stderr)"
    )
    with Terminal(command(body), rows=24, columns=80) as terminal:
        terminal.expect(r"looking · \d+ s")
        terminal.send("\n")
        terminal.expect(r"remove it\? \[y/N\] ")
        asked = len(terminal.seen)
        with pytest.raises(AssertionError, match="does not come"):
            terminal.expect("looking", timeout_s=2.5)
        assert terminal.seen[asked:] == ""
        terminal.send("y\n")
        terminal.expect("True")


def beats_of(heartbeat_lines: list[tuple[str, float]]) -> list[str]:
    return [line for line, _ in heartbeat_lines]


def test_a_long_wait_is_told_again_and_again() -> None:
    beats: list[tuple[str, float]] = []
    with Heartbeat(lambda line, age_s: beats.append((line, age_s)), first_s=0.05, again_s=0.1) as heartbeat:
        heartbeat.line(Doing("unpacking"))
        until(lambda: len(beats) >= 4)
        heartbeat.line("unpacked")
        until(lambda: "unpacked" in beats_of(beats))
        heartbeat.rest()
        count = len(beats)
        time.sleep(0.3)
        assert len(beats) == count
    ages = [age_s for line, age_s in beats if line == "unpacking"]
    assert ages == sorted(ages)
    assert ages[0] >= 0.05
    assert all(age_s >= 0.1 for line, age_s in beats if line == "unpacked"), "the age is the line's own"
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_every_verb_is_one_that_says_that_it_works() -> None:
    """A verb that is not wrapped would be silent for as long as it takes."""
    for name in namespace.task_names:
        body = namespace[name].body
        assert hasattr(body, "__wrapped__"), name
        assert body.__code__.co_filename.endswith("cli/verb.py"), name


def test_a_server_keeps_nobody_waiting() -> None:
    """`invoke serve` runs until it is stopped."""
    body = "reporter()('serving'); reporter().end_waiting(); reporter()('a client came'); time.sleep(1)"
    lines = run("reporter()._heartbeat._again_s = 0.1; " + body).stderr.splitlines()
    assert [line.partition("  ")[2].strip()[-13:] for line in lines if "came" in line] == ["a client came"]
