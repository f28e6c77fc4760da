"""The front door with a state directory of its own, for tests that go the way of a user.

The fixtures are for the session, so that a bake of one file serves the others. Files run in the order of
their names: test_main_job.py bakes, test_ssh.py logs in, test_tidy.py cleans up. Each can also be run alone.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instant_env.settings import ROOT
from support import awscli

#: A directory that is kept: what was baked there is not baked again. For work on these tests.
KEPT = os.environ.get("INSTANT_ENV_E2E_DIR")
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
        program = awscli.command()
        exports = self.run("local.env").stdout
        command = f"{exports}\nexec {shlex.join([*program, *arguments, '--output', 'json'])}"
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
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in command.split(b"\0")[0] and str(self.directory).encode() in command:
                pids.append(int(process.name))
        return pids


NOTHING: dict[str, list[str]] = {
    "instances": [], "key pairs": [], "security groups": [], "volumes": [], "processes": [],
}  # fmt: skip


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(Path(KEPT) if KEPT else tmp_path_factory.mktemp("e2e"))
    try:
        yield front
    finally:
        print((front.directory / "state" / "localec2" / "server.log").read_text()[-20000:])
        front.run("local.down")
        assert front.machines() == []


@pytest.fixture(scope="session")
def custom_init(front: Front) -> str:
    """An AMI of the recipe custom-init: the one that is there, or one that is baked now."""
    images = front.json("amis", "--recipe", "custom-init")["images"]
    return str(images[0]["ami"] if images else front.json("bake", "--recipe", "custom-init")["ami"])
