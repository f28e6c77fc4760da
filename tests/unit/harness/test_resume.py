"""Runs that were interrupted, and runs that had no money left: what was measured stays, the rest is made up
for."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, free_port, register_image
from test_bench import assert_nothing_left, bake, run

from harness.figures import bench_progress
from harness.plan import planning, prices
from harness.plan.prices import Prices
from harness.results_file import read_rows
from harness.run.runner import BenchStopped, carry_out, dry_run
from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.cloud.prices import Price
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError


def resumed(cloud: Cloud, csv_path: Path) -> Any:
    before = planning.metadata_of(csv_path)
    return carry_out(
        cloud.settings,
        lambda cloud: planning.of_interrupted(cloud, before, csv_path),
        progress=lambda _: None,
        open_cloud=lambda *_: cloud,
    )


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, parallel: int) -> None:
    port = free_port()
    with cloud_in_process(tmp_path, port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        with SshHost().serving(port):
            seen: list[str] = []

            def stop_after_two(line: str) -> None:
                seen.append(line)
                if len([one for one in seen if "t4" in one]) == 2:
                    os.kill(os.getpid(), signal.SIGINT)

            with pytest.raises(BenchStopped) as caught:
                run(cloud, lines=_Lines(stop_after_two), iterations=3, parallel=parallel)
        assert_nothing_left(cloud)
        (csv_path,) = (tmp_path / "results").glob("*.csv")
        assert f"--resume {csv_path}" in caught.value.hint
        first = read_rows(csv_path)
        done = {row.attempt for row in first if row.outcome == "ok"}
        assert len(done) == 2
        before = json.loads(csv_path.with_suffix(".json").read_text())
        assert before["status"] == "stopped"

        with SshHost().serving(port):
            result = resumed(cloud, csv_path)
        assert_nothing_left(cloud)
    rows = read_rows(csv_path)
    assert rows[: len(first)] == first, "what was measured stays"
    assert tuple(rows) == result.rows
    assert result.failures == 0, "an attempt that was made again counts by its last row"
    assert sorted(row.attempt for row in rows if row.outcome == "ok") == [1, 2, 3, 4, 5, 6]
    about = json.loads(csv_path.with_suffix(".json").read_text())
    assert (about["status"], about["seed"], about["order"]) == ("finished", 7, before["order"])
    for row in rows:
        assert row.label == about["order"][row.attempt - 1], "the order that was drawn at first"
    assert [session["run_id"] for session in about["sessions"]] == list(
        dict.fromkeys(row.run_id for row in rows)
    )
    assert all("revision" in session["git"] for session in about["sessions"])
    taken = [session["attempts_done"] for session in about["sessions"]]
    assert about["attempts_done"] == sum(taken) == len(rows)
    assert about["spent_usd"] == pytest.approx(sum(row.cost_usd or 0.0 for row in rows))


def test_what_a_crash_tore_is_made_again(tmp_path: Path) -> None:
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        csv_path = run(cloud, iterations=1).csv_path
        whole = csv_path.read_bytes()
        csv_path.write_bytes(whole[:-40])
        assert len(read_rows(csv_path)) == 1
        assert len(resumed(cloud, csv_path).rows) == 2
    lines = csv_path.read_bytes().splitlines(keepends=True)
    assert lines[:2] == whole.splitlines(keepends=True)[:2]
    assert len(lines) == 3


def test_a_run_goes_on_whose_base_was_deprecated_meanwhile(tmp_path: Path) -> None:
    """A listing leaves out deprecated AMIs of others unless it is asked for them (API_DescribeImages)."""

    def leave_out(params: dict[str, Any], **_: Any) -> None:
        if not {"Owners", "ImageIds", "IncludeDeprecated"} & params.keys():
            params["Filters"] = [{"Name": "image-id", "Values": ["ami-0"]}]

    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        csv_path = run(cloud, iterations=1).csv_path
        csv_path.write_bytes(csv_path.read_bytes()[:-40])
        cloud.ec2.meta.events.register("provide-client-params.ec2.DescribeImages", leave_out)
        assert len(resumed(cloud, csv_path).rows) == 2
    assert json.loads(csv_path.with_suffix(".json").read_text())["images"], "and its metadata name it"


class _Lines(list[str]):
    """A list that tells somebody of each line."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell = tell

    def append(self, line: str) -> None:
        self._tell(line)


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        csv_path = run(cloud, iterations=1).csv_path
        path = csv_path.with_suffix(".json")
        about = json.loads(path.read_text())
        for change, words in (
            ({"region": "eu-west-1"}, "ran in local eu-west-1"),
            ({"host": {**about["host"], "cpu": "another"}}, "another host"),
            ({"prepared": [{**one, "image_id": "ami-0"} for one in about["prepared"]]}, "ami-0 is gone"),
            ({"experiment": None}, "does not say how to go on"),
        ):
            path.write_text(json.dumps({**about, **change}))
            with pytest.raises(UsageError, match=words):
                resumed(cloud, csv_path)
        assert len(resumed_rows(cloud, csv_path, path, about)) == 2
        with pytest.raises(UsageError, match="cannot read"):
            planning.metadata_of(tmp_path / "none.csv")


def resumed_rows(cloud: Cloud, csv_path: Path, path: Path, about: dict[str, Any]) -> Any:
    """Nothing is left to do, and nothing is done."""
    path.write_text(json.dumps(about))
    return resumed(cloud, csv_path).rows


def test_a_limit_on_money_stops_the_run_before_it_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = Prices({("m7i.large", Market.ON_DEMAND): Price(36.0, "test")})  # a cent a second
    monkeypatch.setattr(prices, "find", lambda *_: dear)
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        # An attempt is billed for a minute: $0.60; with a time-out of 10 s it may cost $0.70.
        result = run(cloud, iterations=3, timeout_s=10.0, max_usd=2.0)
        # One after the other, what is in flight is paid when the next one is judged.
        assert len(run(cloud, iterations=1, timeout_s=10.0, max_usd=1.35).rows) == 2
        assert run(cloud, iterations=1, max_usd=0.0).rows == ()
        assert_nothing_left(cloud)
    assert len(result.rows) == 3
    assert [row.cost_usd for row in result.rows] == [0.6] * 3
    assert result.spent_usd == pytest.approx(1.8)
    assert result.left_out == 3
    about = json.loads(result.metadata_path.read_text())
    assert about["status"] == "over_budget"
    assert about["spent_usd"] == pytest.approx(1.8)


def test_a_dry_run_tells_the_plan_and_launches_nothing(tmp_path: Path) -> None:
    faults = Ec2Faults()
    with cloud_in_process(tmp_path, 22, faults) as cloud:
        ami = bake(cloud, "minimal", register_image(cloud))

        def planner(cloud: Cloud) -> planning.Plan:
            return planning.of_race(
                cloud, name="x", ami="latest", techniques=None, arch=Arch.X86_64, instance_type=None,
                iterations=4, seed=5, timeout_s=60.0, parallel=1,
            )  # fmt: skip

        lines = dry_run(cloud.settings, planner, lambda _: None, lambda *_: cloud)
    assert faults.run_bodies == []
    assert f"     4 × minimal-ami: x86_64 m7i.large on-demand {ami} us-east-1a" in lines
    assert any("8 attempts in blocks of 2, seed 5" in line for line in lines)
    assert "costs nothing" in lines[-1]


def test_who_watches_sees_medians_money_and_time_left(tmp_path: Path) -> None:
    standings: list[bench_progress.Standing] = []
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, Ec2Faults()) as cloud:
        bake(cloud, "minimal", register_image(cloud))
        run(cloud, iterations=1, watch=standings.append)
    first, last = standings
    assert (len(first.rows), first.to_do, len(last.rows)) == (1, 2, 2)
    assert first.left_s > 0 == last.left_s
    out = io.StringIO()
    Console(file=out, width=80).print(bench_progress.render(last))
    assert "2/2 attempts · about 0:00 left" in out.getvalue()
    (minimal,) = [line for line in out.getvalue().splitlines() if line.startswith("minimal-ami")]
    assert len(minimal.split()) == 4, "n, median and the ratio to cold"
