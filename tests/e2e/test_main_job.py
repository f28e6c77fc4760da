"""The whole road, as a user goes it: bake both recipes, race them against cold, restart, clean up.

One state directory for the module, the machine's own cache of stock images. The tests build on each other
in the order they are written, as the steps of a job do: each needs what the one before it left.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awscli
import pytest
import yaml

from instant_env.settings import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

INVOKE = Path(sys.executable).parent / "invoke"


class Front:
    """The front door with one state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.results = directory / "results"
        self.environ = {
            **os.environ,
            "INSTANT_ENV_STATE_DIR": str(directory / "state"),
            "INSTANT_ENV_RESULTS_DIR": str(self.results),
        }

    def run(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [str(INVOKE), *arguments], cwd=ROOT, env=self.environ, capture_output=True, text=True, check=False
        )
        print(shlex.join(arguments), result.stderr, result.stdout, sep="\n")
        if ok:
            assert result.returncode == 0, result.stderr
        return result

    def json(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(*arguments, "--json").stdout)
        return answer

    def aws(self, *arguments: str) -> dict[str, Any]:
        """The AWS CLI, from PyPI, in an environment of its own, under what local.env prints."""
        program = awscli.program()
        exports = self.run("local.env").stdout
        command = f"{exports}\nexec {shlex.join([str(program), *arguments, '--output', 'json'])}"
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def leftovers(self) -> dict[str, list[str]]:
        """Live machines, key pairs and security groups of ours, asked of the cloud itself."""
        ours = ["--filters", "Name=tag:Project,Values=instant-env"]
        reservations = self.aws("ec2", "describe-instances", *ours)["Reservations"]
        machines = [
            instance["InstanceId"]
            for reservation in reservations
            for instance in reservation["Instances"]
            if instance["State"]["Name"] != "terminated"
        ]
        keys = [key["KeyName"] for key in self.aws("ec2", "describe-key-pairs")["KeyPairs"]]
        groups = self.aws("ec2", "describe-security-groups", *ours)["SecurityGroups"]
        volumes = self.aws("ec2", "describe-volumes", *ours)["Volumes"]
        return {
            "instances": machines,
            "key pairs": keys,
            "security groups": [group["GroupId"] for group in groups],
            "volumes": [volume["VolumeId"] for volume in volumes],
            "processes": [str(pid) for pid in self.machines()],
        }

    def machines(self) -> list[int]:
        """Process ids of QEMUs that run from our state directory."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in command.split(b"\0")[0] and str(self.directory).encode() in command:
                found.append(int(process.name))
        return found


NOTHING: dict[str, list[str]] = {
    "instances": [], "key pairs": [], "security groups": [], "volumes": [], "processes": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("e2e"))
    try:
        yield front
    finally:
        print((front.directory / "state" / "localec2" / "server.log").read_text()[-20000:])
        front.run("local.down")
        assert front.machines() == []


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_both_recipes_bake_side_by_side_are_audited_and_leave_nothing(front: Front) -> None:
    """Two commands at once on one state directory: each starts the server by need, neither is in the way."""
    bakes = {
        recipe: subprocess.Popen(
            [str(INVOKE), "bake", "--arch", "x86_64", "--recipe", recipe, "--json"],
            cwd=ROOT, env=front.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for recipe in ("minimal", "custom-init")
    }  # fmt: skip
    for recipe, bake in bakes.items():
        stdout, stderr = bake.communicate(timeout=1400)
        print(stderr)
        assert bake.returncode == 0, stderr
        baked = json.loads(stdout)
        assert not baked["reused"]
        manifest = json.loads(Path(baked["manifest"]).read_text())
        assert manifest["audit"]["findings"] == []
        assert manifest["audit"]["bytes_scanned"] > 1 << 30
        assert {"strip", "seal", "verify"} <= {step["name"] for step in manifest["steps"]}
        assert any(mark["name"] == "key_written" for mark in manifest["timeline"]["marks"])
        assert manifest["timeline"]["pid1"] is (recipe == "custom-init")
    assert front.leftovers() == NOTHING


def test_the_same_plan_again_names_the_ami_that_holds_it(front: Front) -> None:
    again = front.json("bake", "--recipe", "minimal")
    assert again["reused"]
    (minimal,) = [image for image in front.json("amis")["images"] if image["recipe"] == "minimal"]
    assert again["ami"] == minimal["ami"]


def test_the_race_ends_with_a_row_per_attempt_and_custom_init_ahead(front: Front) -> None:
    result = front.json("bench", "--ami", "latest", "--iterations", "1")
    rows = rows_of(result["csv"])
    assert {row["technique"] for row in rows} == {"cold", "minimal-ami", "custom-init"}
    assert [row["outcome"] for row in rows] == ["ok"] * 3
    t4 = {row["technique"]: float(row["t4_ms"]) for row in rows}
    # How much faster is a benchmark's business; that it is faster is ours.
    assert t4["custom-init"] < t4["minimal-ami"] < t4["cold"]
    for row in rows:
        assert 0 < float(row["t1_ms"]) < float(row["t2_ms"]) < float(row["t3_ms"]) < float(row["t4_ms"])
    assert front.leftovers() == NOTHING


def test_amis_survive_a_restart_and_still_launch(front: Front) -> None:
    before = front.json("amis")["images"]
    front.run("local.down")
    front.run("local.up")
    assert front.json("amis")["images"] == before
    listed = front.aws("ec2", "describe-images", "--owners", "self")["Images"]
    assert {image["ami"] for image in before} <= {image["ImageId"] for image in listed}
    result = front.json("bench", "--technique", "custom-init", "--iterations", "1")
    assert [row["outcome"] for row in rows_of(result["csv"])] == ["ok"]


class Baking:
    """A bake in its second step. The base is our own minimal AMI, which boots in half the time."""

    def __init__(self, front: Front, directory: Path) -> None:
        recipes = shutil.copytree(ROOT / "recipes", directory / "recipes")
        base = yaml.safe_load((recipes / "bases" / "debian-12.yml").read_text())
        account = front.aws("sts", "get-caller-identity")["Account"]
        parameter = "/instant-env/minimal/{{ arch }}/latest"
        base |= {"base": "ours", "ssm_parameter": parameter, "owners": [account]}
        (recipes / "bases" / "ours.yml").write_text(yaml.safe_dump(base))
        self.process = subprocess.Popen(
            [str(INVOKE), "bake", "--recipe", "minimal", "--base", "ours"],
            cwd=ROOT, env={**front.environ, "INSTANT_ENV_RECIPES_DIR": str(recipes)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.seen = ""
        for line in self.process.stderr:
            self.seen += line
            if "step 2/" in line:
                break
        time.sleep(1)  # into the next step
        assert front.leftovers()["instances"] != [], self.seen

    def end(self, timeout_s: float) -> int:
        """Its exit code; what it said is in ``seen``."""
        assert self.process.stderr is not None
        self.seen += self.process.stderr.read()
        return self.process.wait(timeout=timeout_s)


def test_ctrl_c_in_the_middle_of_a_bake_leaves_nothing(front: Front, tmp_path: Path) -> None:
    images = front.json("amis")["images"]
    bake = Baking(front, tmp_path)
    bake.process.send_signal(signal.SIGINT)
    assert bake.end(timeout_s=120) == 130, bake.seen
    assert "Traceback" not in bake.seen
    assert front.leftovers() == NOTHING
    assert front.json("amis")["images"] == images


def test_a_server_killed_in_the_middle_of_a_bake_comes_back_and_is_cleaned(
    front: Front, tmp_path: Path
) -> None:
    """The bake fails in one line; AMIs are there; what it left, if anything, is what `clean` takes."""
    images = front.json("amis")["images"]
    bake = Baking(front, tmp_path)
    os.kill(front.json("local.status")["endpoint"]["pid"], signal.SIGKILL)
    assert front.json("local.status")["endpoint"] is None
    front.run("local.up")
    status = front.json("local.status")
    assert front.machines() == []
    assert {item["state"] for item in status["instances"]} <= {"stopped", "terminated", "shutting-down"}
    assert bake.end(timeout_s=300) not in (0, 130), bake.seen
    assert "Traceback" not in bake.seen
    assert front.json("clean", "--yes")["failures"] == []
    assert front.leftovers() == NOTHING
    assert front.json("amis")["images"] == images


def test_clean_says_first_and_takes_only_what_is_old_or_expired(front: Front) -> None:
    """A second custom-init AMI, made from a bench machine that somebody left behind."""
    assert front.json("clean")["found"] == []
    (first,) = front.json("amis", "--recipe", "custom-init")["images"]
    ours = "{Key=Project,Value=instant-env}"
    expired = "{Key=instant-env:role,Value=bench},{Key=instant-env:expires-at,Value=2020-01-01T00:00:00Z}"
    (machine,) = front.aws(
        "ec2", "run-instances", "--image-id", first["ami"], "--instance-type", "m7i.large",
        "--tag-specifications", f"ResourceType=instance,Tags=[{ours},{expired}]",
    )["Instances"]  # fmt: skip
    stop = ["ec2", "stop-instances", "--force", "--instance-ids", machine["InstanceId"]]
    while front.aws(*stop)["StoppingInstances"][0]["CurrentState"]["Name"] != "stopped":
        time.sleep(0.5)
    tags = "{Key=instant-env:role,Value=image},{Key=instant-env:recipe,Value=custom-init}"
    second = front.aws(
        "ec2", "create-image", "--instance-id", machine["InstanceId"], "--name", "second",
        "--tag-specifications", f"ResourceType=image,Tags=[{ours},{tags}]",
    )["ImageId"]  # fmt: skip
    while front.aws("ec2", "describe-images", "--image-ids", second)["Images"][0]["State"] == "pending":
        time.sleep(0.5)

    # The older one is `latest`, so it stays; the machine may go, and off a terminal nothing goes unasked.
    found = front.json("clean", "--keep", "1")
    assert [(row["kind"], row["id"]) for row in found["found"]] == [("instance", machine["InstanceId"])]
    assert not found["removed"]
    assert front.leftovers()["instances"] == [machine["InstanceId"]]

    parameter = "/instant-env/custom-init/x86_64/latest"
    front.aws(
        "ssm", "put-parameter", "--name", parameter, "--value", second, "--type", "String", "--overwrite"
    )
    found = front.json("clean", "--keep", "1", "--yes")
    assert {(row["kind"], row["id"]) for row in found["found"]} == {
        ("instance", machine["InstanceId"]),
        ("image", first["ami"]),
    }
    assert found["failures"] == []
    assert [image["ami"] for image in front.json("amis", "--recipe", "custom-init")["images"]] == [second]
    snapshots = front.aws("ec2", "describe-snapshots", "--owner-ids", "self")["Snapshots"]
    assert not {snapshot["SnapshotId"] for snapshot in snapshots} & set(first["snapshots"])
    assert front.leftovers() == NOTHING
