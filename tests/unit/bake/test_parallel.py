"""Bakes side by side: real processes, a bake that pretends. How one ends is no other's business."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection as PipeEnd
from pathlib import Path
from typing import Any

import pytest
from support.terminal import Terminal

from instant_env.arch import Arch
from instant_env.bake import parallel
from instant_env.bake.bake import BakeResult
from instant_env.bake.request import Options, Request, requests
from instant_env.cloud.images import BakedImage
from instant_env.errors import UsageError
from instant_env.progress import Progress
from instant_env.settings import ROOT, Settings
from instant_env.stopping import interrupts


def pretend(settings: Settings, request: Request, progress: Progress) -> BakeResult:
    """Does what its recipe is called; leaves a file for as long as something of it exists in the cloud."""
    made = settings.state_dir / request.recipe
    made.touch()
    try:
        progress(f"log: {request.log_path(settings)}")
        progress("step 1/2 strip: 0.1 s")
        if request.recipe == "fails":
            raise UsageError("no such luck", hint="another time")
        if request.recipe == "odd":
            raise OSError(errno.ENOSPC, "No space left on device", "/full")
        if request.recipe == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        while request.recipe == "hangs":
            progress("still here")
            time.sleep(0.05)
    finally:
        if request.recipe == "hangs":
            time.sleep(0.3)  # a machine takes its time to end
            progress("cleaned up")
        made.unlink()
    image = BakedImage(
        id="ami-1", name="n", state="available", recipe=request.recipe, arch=request.arch, base="b",
        base_ami="ami-0", plan_hash="f" * 64, login_user="u", created=datetime.now(UTC), size_gib=1,
        snapshot_ids=(),
    )  # fmt: skip
    return BakeResult(image, False, None, None, 0.1)


class Heard:
    """What the front door would show."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.ended: list[str] = []
        self.hanging = threading.Event()

    def on_line(self, request: Request, text: str) -> None:
        self.lines.append((request.recipe, text))
        if text == "still here":
            self.hanging.set()

    def on_outcome(self, outcome: parallel.BakeOutcome) -> None:
        self.ended.append(outcome.request.recipe)


def wanted(*recipes: str) -> list[Request]:
    return requests(",".join(recipes), "x86_64", Options())


def test_one_that_fails_and_one_that_dies_do_not_stop_the_others(tmp_path: Path) -> None:
    heard = Heard()
    ended = parallel.bake_all(
        pretend, Settings(state_dir=tmp_path), wanted("fails", "dies", "works", "odd"), on_line=heard.on_line,
        on_outcome=heard.on_outcome,
    )  # fmt: skip
    failed, died, worked, odd = ended
    assert (odd.error, odd.exit_code) == ("/full: No space left on device", 1)
    assert (failed.error, failed.hint, failed.exit_code) == ("no such luck", "another time", 2)
    assert (died.error, died.exit_code) == (f"its process ended with -{signal.SIGKILL:d}", 1)
    assert worked.result is not None
    assert worked.as_dict()["ok"]
    assert worked.as_dict()["ami"] == "ami-1"
    assert sorted(heard.ended) == ["dies", "fails", "odd", "works"]
    assert ("works", "step 1/2 strip: 0.1 s") in heard.lines
    assert parallel.exit_code(ended) == 1
    assert parallel.exit_code([failed, worked]) == 2
    assert parallel.exit_code([worked]) == 0


def test_ctrl_c_ends_all_waits_for_their_cleaning_and_begins_no_more(tmp_path: Path) -> None:
    heard = Heard()

    def press() -> None:
        heard.hanging.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with interrupts(quiet=True):
        ended = parallel.bake_all(
            pretend, Settings(state_dir=tmp_path), wanted("hangs", "works"), parallel=1,
            on_line=heard.on_line, on_outcome=heard.on_outcome,
        )  # fmt: skip
    assert [one.error for one in ended] == ["interrupted", "interrupted before it began"]
    assert parallel.exit_code(ended) == 130
    assert heard.lines[-1] == ("hangs", "cleaned up")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle_of_what_a_bake_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is its length and then itself: who is interrupted between them must not take one for the
    other."""
    heard, read = Heard(), PipeEnd._recv  # type: ignore[attr-defined]  # not public, and older than we are

    def recv(self: PipeEnd, size: int) -> Any:
        part = read(self, size)
        if heard.hanging.is_set():
            signal.raise_signal(signal.SIGINT)
        return part

    monkeypatch.setattr(PipeEnd, "_recv", recv)
    with interrupts(quiet=True):
        ended = parallel.bake_all(
            pretend,
            Settings(state_dir=tmp_path),
            wanted("hangs"),
            on_line=heard.on_line,
            on_outcome=heard.on_outcome,
        )
    assert [one.error for one in ended] == ["interrupted"]
    assert heard.lines[-1] == ("hangs", "cleaned up")


SCRIPT = """
import sys, pathlib
sys.path[:0] = [{root!r}, {here!r}, {support!r}]
import test_parallel as t
from instant_env.bake import parallel
from instant_env.cli import bake_progress
from instant_env.cli.verb import Reporter, show
from instant_env.stopping import interrupts
from instant_env.settings import Settings
if __name__ == "__main__":
    settings, asked = Settings(state_dir=pathlib.Path({state!r})), t.wanted("hangs", "fails")
    with interrupts(), Reporter().live() as report:
        shown = bake_progress.Screen(report, settings, asked)
        listen = dict(on_line=shown.on_line, on_outcome=shown.on_outcome)
        ended = parallel.bake_all(t.pretend, settings, asked, **listen)
        show(bake_progress.summary(ended))
    sys.exit(parallel.exit_code(ended))
"""


def script(tmp_path: Path) -> list[str]:
    path = tmp_path / "script.py"
    (tmp_path / "state").mkdir()
    path.write_text(
        SCRIPT.format(
            root=str(ROOT), here=str(Path(__file__).parent), support=str(ROOT / "tests"),
            state=str(tmp_path / "state"),
        )
    )  # fmt: skip
    return [sys.executable, str(path)]


@pytest.mark.slow
def test_a_terminal_has_a_live_line_for_each_and_ctrl_c_cleans_all(tmp_path: Path) -> None:
    with Terminal(script(tmp_path), rows=30, columns=160) as terminal:
        log = r"(?=.*hangs x86_64: log: \S+bake-\S+-hangs-x86_64\.log)"
        failure = r"(?=.*fails x86_64: failed: no such luck \(another time\))"
        terminal.expect(rf"(?s){log}{failure}.*hangs x86_64\S*\s+\d+ s  still here")
        terminal.send("\x03")
        terminal.expect("SIGINT: cleaning up")
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.seen
        table = terminal.seen[terminal.seen.rindex("outcome") :]
        assert "interrupted" in table
        assert "no such luck" in table
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.slow
def test_bakes_whose_parent_is_killed_clean_up_by_themselves(tmp_path: Path) -> None:
    with Terminal(script(tmp_path), rows=30, columns=160) as terminal:
        terminal.expect("still here")
        os.kill(terminal._pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while list((tmp_path / "state").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_lists_make_a_request_for_each_pair_with_its_own_builder_types() -> None:
    found = requests(
        "minimal, custom-init,minimal", "x86_64,aarch64", Options(builder_types=("m7g.large", "t3.small"))
    )
    assert [(one.recipe, one.arch, one.builder_types) for one in found] == [
        ("minimal", Arch.X86_64, ("t3.small",)),
        ("minimal", Arch.ARM64, ("m7g.large",)),
        ("custom-init", Arch.X86_64, ("t3.small",)),
        ("custom-init", Arch.ARM64, ("m7g.large",)),
    ]
    assert len({one.run_id for one in found}) == 4
    with pytest.raises(UsageError, match="no builder type for arm64"):
        requests("minimal", "arm64", Options(builder_types=("t3.small",)))
    with pytest.raises(UsageError, match="no architecture named"):
        requests("minimal", ",", Options())
