"""A checkout and a state directory with what shells, URLs and QEMU's options take for something else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.front import INVOKE

from instant_env.settings import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STATE = "state of 'mine', \"his\": 50% @@ $HOME ä"


def copy_of_the_checkout(directory: Path) -> Path:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in os.fsdecode(listed).rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return directory


def test_verbs_run_from_a_path_with_blanks_and_marks(tmp_path: Path) -> None:
    checkout = copy_of_the_checkout(tmp_path / "in st, ä (1)")
    environ = {
        **os.environ, "PYTHONPATH": str(checkout), "INSTANT_ENV_STATE_DIR": str(tmp_path / STATE),
        "INSTANT_ENV_ACCELERATOR": "tcg",
    }  # fmt: skip

    def invoke(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, INVOKE, *words],
            cwd=checkout,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    endpoint = json.loads(invoke("local.up", "--json"))
    try:
        assert Path(endpoint["state_dir"]) == tmp_path / STATE / "localec2"
        assert list((checkout / "build").rglob("netd")), "it is this checkout that was run"
        assert json.loads(invoke("amis", "--json")) == {"images": []}
        exports = invoke("local.env")
        shell = f'{exports}\nprintf %s "$AWS_ENDPOINT_URL"'
        url = subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True).stdout
        assert url == endpoint["url"]
        plan = json.loads(invoke("recipe.show", "minimal", "--json"))
        assert plan["steps"]
    finally:
        assert json.loads(invoke("local.down", "--json")) == {"stopped": True}
