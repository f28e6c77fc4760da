"""A machine that hangs while a benchmark runs is a row, and the run goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hangs import MOST_TRIES, HangError, Hangs, console_end

import init
from instant_env.localec2.records.layout import Layout
from instant_env.settings import load


def test_another_machine_is_tried_and_the_hang_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    hangs, tries = Hangs(), iter([HangError("i-1", 400, "last words"), None])

    def attempt() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "figures"

    assert hangs.measured("floor", attempt) == "figures"
    assert hangs.rows == [
        {"what": "floor", "try": 1, "instance": "i-1", "after_s": 400, "console": "last words"}
    ]
    assert "floor: i-1 hangs: nothing for 400 s, try 1 of 3" in capsys.readouterr().err


def test_what_always_hangs_is_left_out() -> None:
    def attempt() -> str:
        raise HangError("i-1", 1, "")

    hangs = Hangs()
    assert hangs.measured("floor", attempt) is None
    assert [row["try"] for row in hangs.rows] == list(range(1, MOST_TRIES + 1))


def test_other_errors_are_the_benchmarks_own() -> None:
    with pytest.raises(ZeroDivisionError):
        Hangs().measured("floor", lambda: 1 / 0)


def test_figures_of_blocks_that_lack_a_launch() -> None:
    def figures(t4_ms: float) -> init.Figures:
        return {"t4_ms": t4_ms, "processor_ms": 10.0}

    blocks = [
        {"floor": figures(100), "custom-init": figures(110)},
        {"custom-init": figures(500)},
        {"floor": figures(100), "custom-init": figures(130), "cold": figures(900)},
    ]
    result = init.compared(blocks)
    assert {name: result[name]["n"] for name in ("floor", "custom-init", "cold")} == {
        "floor": 2, "custom-init": 3, "cold": 1,
    }  # fmt: skip
    assert result["t4_ms_to_floor"]["median_of_blocks"] == 1.2
    assert "t4_ms_to_floor" not in init.compared([{"custom-init": figures(1)}])


class SilentCloud:
    """EC2 with machines that are running and never answer."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def run_instances(self, **_: Any) -> Any:
        return {"Instances": [{"InstanceId": "i-1"}]}

    def terminate_instances(self, InstanceIds: list[str]) -> None:
        self.ended += InstanceIds

    def describe_instances(self, **_: Any) -> Any:
        state = "terminated" if self.ended else "running"
        return {"Reservations": [{"Instances": [{"State": {"Name": state}, "PublicIpAddress": "127.0.0.1"}]}]}


def test_a_launch_that_hangs_says_what_was_on_its_console(tmp_path: Path) -> None:
    settings = load({"state_dir": str(tmp_path)})
    console = Layout(settings.local_dir.resolve()).instance("i-1") / "console.log"
    console.parent.mkdir(parents=True, exist_ok=True)
    console.write_text("".join(f"line {number}\n" for number in range(9)))
    cloud: Any = SilentCloud()
    nothing: Any = None
    bench = init.Bench(settings, nothing, cloud, nothing, "key", "sg-1", limit_s=0.2)

    async def follow(_: init.Machine) -> init.Figures:
        await asyncio.Event().wait()
        raise AssertionError("it waits for good")

    with pytest.raises(HangError) as caught:
        asyncio.run(bench.launch("ami-1", follow))
    assert caught.value.console.splitlines() == [f"line {number}" for number in range(4, 9)]
    assert cloud.ended == ["i-1"]
    assert console_end(tmp_path / "none") == ""
