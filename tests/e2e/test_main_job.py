"""The whole road, as a user goes it: bake both recipes, race them against cold, restart, kill.

One state directory for the session, the machine's own cache of stock images. The tests build on each other
in the order they are written, as the steps of a job do: each needs what the one before it left. What was
baked here serves test_ssh.py, and test_tidy.py cleans it up.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support.front import INVOKE, NOTHING, Front, rows_of

from instant_env.settings import ROOT

pytest_plugins = ("support.front",)
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def test_both_recipes_bake_side_by_side_are_audited_and_leave_nothing(front: Front) -> None:
    """Two processes at once on one state directory: neither is in the way of the other."""
    bakes = front.json("bake", "--arch", "x86_64", "--recipe", "minimal,custom-init")["bakes"]
    assert [bake["recipe"] for bake in bakes] == ["minimal", "custom-init"]
    for baked in bakes:
        assert baked["ok"]
        assert not baked["reused"]
        manifest = json.loads(Path(baked["manifest"]).read_text())
        assert manifest["audit"]["findings"] == []
        assert manifest["audit"]["bytes_scanned"] > 1 << 30
        assert {"strip", "seal", "verify"} <= {step["name"] for step in manifest["steps"]}
        assert any(mark["name"] == "key_written" for mark in manifest["timeline"]["marks"])
        assert manifest["timeline"]["pid1"] is (baked["recipe"] == "custom-init")
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
