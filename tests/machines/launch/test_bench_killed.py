"""SIGKILL of a benchmark at a random moment, by technique; then one `invoke clean --yes` leaves nothing.

`make test-kills` kills each technique six times. A failure prints its seed; INSTANT_ENV_KILL_SEED repeats it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.front import INVOKE
from support.init_guest import HIBERNATION
from support.tiny_cloud import INSTANCE_TYPES, KEY_NAME, TinyCloud

from harness.plan import prices
from harness.plan.experiment import Cell, Experiment, Options
from harness.plan.planning import Plan
from harness.run.runner import Run
from instant_env.arch import Arch
from instant_env.cloud.session import connect
from instant_env.launch.techniques import Prepared
from instant_env.settings import ROOT, Settings
from instant_env.stopping import StopSignals

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("INSTANT_ENV_KILLS", "1"))
SEED = int(os.environ.get("INSTANT_ENV_KILL_SEED", str(time.time_ns() % 1_000_000)))
#: The latest moment of a kill, after the process said that it begins. What a technique makes ahead takes
#: longest for those that put a machine to sleep.
LATEST_S = {
    "cold": 12.0,
    "prealloc-eni": 12.0,
    "warm-running": 15.0,
    "warm-stopped": 25.0,
    "warm-hibernated": 35.0,
}


def bench(settings: Settings, arch: Arch, image_id: str, technique: str, csv_path: Path, ready: Any) -> None:
    """The process that is killed: attempts of one technique, without an end."""
    os.setsid()
    cloud = connect(settings)
    cell = Cell(technique, arch, INSTANCE_TYPES[arch], None, Options())
    experiment = Experiment((cell,), iterations=100, seed=1, timeout_s=240.0, parallel=1)
    tiny = Prepared(image_id, "root", root_device="/dev/xvda", root_gib=1)
    run = Run(
        cloud, Plan("kills", experiment, {cell: tiny}, prices.find(cloud, (cell,))), StopSignals(), print
    )
    ready.send("begins")
    run.execute(csv_path)


@pytest.mark.parametrize(
    "technique",
    [
        "cold",
        "prealloc-eni",
        "warm-running",
        "warm-stopped",
        pytest.param("warm-hibernated", marks=pytest.mark.only_x86_64(HIBERNATION)),
    ],
)
def test_one_clean_leaves_nothing_of_a_killed_bench(
    tiny_cloud: TinyCloud, tmp_path: Path, technique: str
) -> None:
    cloud = tiny_cloud
    image_id = cloud.image_id
    print(f"INSTANT_ENV_KILL_SEED={SEED}")
    drawn = random.Random(f"{SEED}-{technique}")  # noqa: S311 - moments, not secrets
    context = multiprocessing.get_context("spawn")
    for number in range(KILLS):
        said, theirs = context.Pipe(duplex=False)
        csv_path = tmp_path / f"{technique}-{number}.csv"
        process = context.Process(
            target=bench, args=(cloud.settings, cloud.arch, image_id, technique, csv_path, theirs)
        )
        process.start()
        theirs.close()
        assert said.recv() == "begins"
        after_s = drawn.uniform(0.2, LATEST_S[technique])
        time.sleep(after_s)
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        print(f"{technique}: killed after {after_s:.1f} s")
        clean(cloud.settings)
        assert left(cloud) == [], f"killed after {after_s:.1f} s"


def clean(settings: Settings) -> None:
    result = subprocess.run(
        [INVOKE, "clean", "--yes"],
        cwd=ROOT, env={**os.environ, "INSTANT_ENV_STATE_DIR": str(settings.state_dir)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr


def left(cloud: TinyCloud) -> list[str]:
    """What is there beside the server's own things and the test's key pair."""
    ec2 = cloud.ec2
    instances = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    groups = ec2.describe_security_groups()["SecurityGroups"]
    return [
        *(i["InstanceId"] for i in instances if i["State"]["Name"] != "terminated"),
        *(address["AllocationId"] for address in ec2.describe_addresses()["Addresses"]),
        *(card["NetworkInterfaceId"] for card in ec2.describe_network_interfaces()["NetworkInterfaces"]),
        *(volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]),
        *(group["GroupId"] for group in groups if group["GroupName"] != "default"),
        *(key["KeyName"] for key in ec2.describe_key_pairs()["KeyPairs"] if key["KeyName"] != KEY_NAME),
    ]
