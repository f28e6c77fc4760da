"""Every technique that needs something ahead, for real: a run of the harness with tiny machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.init_guest import HIBERNATION
from support.tiny_cloud import INSTANCE_TYPES, TinyCloud

from harness.plan import prices
from harness.plan.experiment import Cell, Experiment, Options
from harness.plan.planning import Plan
from harness.results_file import Row
from harness.run.runner import BenchResult, Run
from instant_env.cloud.handover import HandOver
from instant_env.cloud.session import Cloud, connect
from instant_env.launch.techniques import Prepared
from instant_env.stopping import StopSignals

pytest_plugins = ("support.tiny_cloud",)
pytestmark = pytest.mark.boot


def race(
    tiny_cloud: TinyCloud, tmp_path: Path, *cells: tuple[str, Options], parallel: int = 1
) -> BenchResult:
    """One attempt of each, all with the tiny image in place of the one that the technique names."""
    cloud = connect(tiny_cloud.settings)
    arch, instance_type = tiny_cloud.arch, INSTANCE_TYPES[tiny_cloud.arch]
    made = tuple(Cell(name, arch, instance_type, None, options) for name, options in cells)
    experiment = Experiment(made, iterations=1, seed=1, timeout_s=240.0, parallel=parallel)
    tiny = Prepared(tiny_cloud.image_id, "root", root_device="/dev/xvda", root_gib=1)
    plan = Plan("techniques", experiment, dict.fromkeys(made, tiny), prices.find(cloud, made))
    run = Run(cloud, plan, StopSignals(), print)
    result = run.execute(tmp_path / "techniques.csv")
    assert_nothing_left(cloud)
    for row in result.rows:
        assert row.outcome == "ok", row.error
    return result


def assert_nothing_left(cloud: Cloud) -> None:
    answer = cloud.ec2.describe_instances()
    assert {i["State"]["Name"] for r in answer["Reservations"] for i in r["Instances"]} <= {"terminated"}
    assert cloud.ec2.describe_addresses()["Addresses"] == []
    assert cloud.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    assert [key["KeyName"] for key in cloud.ec2.describe_key_pairs()["KeyPairs"]] == ["tests"]


def marks(row: Row) -> tuple[float, float, float, float]:
    assert row.t1_ms is not None
    assert row.t2_ms is not None
    assert row.t3_ms is not None
    assert row.t4_ms is not None
    return row.t1_ms, row.t2_ms, row.t3_ms, row.t4_ms


@pytest.mark.slow
def test_an_interface_made_ahead_and_a_machine_that_runs(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    result = race(tiny_cloud, tmp_path, ("prealloc-eni", Options()), ("warm-running", Options(rest_s=1.0)))
    rows = {row.technique: row for row in result.rows}

    eni = rows["prealloc-eni"]
    assert 0 < marks(eni)[0] < marks(eni)[1] < marks(eni)[2] < marks(eni)[3]
    assert eni.fill_ms is not None
    assert eni.key_received_ms is not None, "this boot's marks"

    running = rows["warm-running"]
    t1, t2, t3, t4 = marks(running)
    assert t2 == t1 < t3 < t4
    assert running.keys_refused == 0
    assert running.guest_boot_ms is not None
    assert running.guest_boot_ms < -1000, "it ran before"
    assert running.key_received_ms is None, "that was an earlier key"
    assert running.pool_age_ms is not None
    assert running.pool_age_ms >= 1000
    assert running.market == "on-demand"
    about = json.loads(result.metadata_path.read_text())
    assert about["pools"]["warm-running"]["machines"] == 1
    assert about["pools"]["prealloc-eni"]["machines"] == 0
    assert about["pools"]["warm-running"]["seconds"] > 1


@pytest.mark.slow
@pytest.mark.only_x86_64(HIBERNATION)
def test_a_machine_asleep_resumes_and_takes_a_new_key(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    result = race(tiny_cloud, tmp_path, ("warm-hibernated", Options()))
    (row,) = result.rows
    assert row.resumed == "yes"
    t1, t2, t3, t4 = marks(row)
    assert 0 < t1 < t2 < t3 < t4
    assert row.keys_refused == 0
    assert row.guest_boot_ms is not None
    assert row.guest_clock_error_ms is not None
    assert row.resumed_ms is not None
    assert t1 < row.guest_boot_ms + row.resumed_ms < t4 + row.guest_clock_error_ms
    assert row.init_start_ms is None, "that was before it slept"


@pytest.mark.slow
def test_a_stopped_machine_takes_a_new_key_from_its_user_data(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    result = race(tiny_cloud, tmp_path, ("custom-init+warm-stopped", Options()))
    (row,) = result.rows
    t1, t2, t3, t4 = marks(row)
    assert 0 < t1 < t2 < t3 < t4
    assert row.guest_boot_ms is not None
    assert row.guest_boot_ms > 0, "it booted for this attempt"
    assert row.key_written_ms is not None


@pytest.mark.slow
def test_a_running_machine_takes_a_key_by_tag(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    result = race(tiny_cloud, tmp_path, ("warm-running", Options(hand_over=HandOver.TAG)))
    (row,) = result.rows
    assert row.variant == "hand_over=tag"
