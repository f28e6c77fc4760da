"""A stock machine, launched as everybody launches it, tells where its boot went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.localec2_cloud import STOCK_TIMEOUT_S, LocalCloud
from support.tiny_cloud import INSTANCE_TYPES

from harness.plan import prices
from harness.plan.experiment import Cell, Experiment
from harness.plan.planning import Plan
from harness.results_file import guests_path
from harness.run.runner import Run
from instant_env.arch import Arch
from instant_env.cloud.session import connect
from instant_env.launch.techniques import Prepared
from instant_env.localec2 import starter
from instant_env.stopping import StopSignals

pytest_plugins = ("support.localec2_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(STOCK_TIMEOUT_S)]


def test_cloud_inits_share_of_a_cold_boot(local_cloud: LocalCloud, tmp_path: Path, guest_arch: Arch) -> None:
    image_id = starter.ensure_stock(local_cloud.settings, "debian-12", guest_arch)
    cloud = connect(local_cloud.settings)
    cell = Cell("cold", guest_arch, INSTANCE_TYPES[guest_arch])
    experiment = Experiment((cell,), iterations=1, seed=1, timeout_s=600.0)
    plan = Plan("records", experiment, {cell: Prepared(image_id, "admin")}, prices.find(cloud, [cell]))
    result = Run(cloud, plan, StopSignals(), print).execute(tmp_path / "records.csv")
    (row,) = result.rows
    assert row.outcome == "ok", row.error
    assert row.t4_ms is not None
    (line,) = guests_path(result.csv_path).read_text().splitlines()
    told = json.loads(line)
    assert told["attempt"] == 1
    assert not told["clock_stepped"]

    stages = {stage["name"]: stage for stage in told["stages"]}
    assert 0 < stages["userspace"]["began_ms"] < row.t4_ms
    (ssh,) = [unit for unit in told["units"] if unit["name"] in ("ssh.service", "sshd.service")]
    # Both clocks are joined within the error that the row states: sshd was started before it let us in.
    assert row.guest_clock_error_ms is not None
    assert told["boot_ms"] + ssh["began_ms"] < row.t4_ms + row.guest_clock_error_ms
    names = {span["name"] for span in told["cloud_init"]}
    assert {"init-local", "init-network"} <= names
    network = next(span for span in told["cloud_init"] if span["name"] == "init-network")
    assert network["result"] == "SUCCESS"
    assert 0 < network["began_ms"] < network["ended_ms"]
