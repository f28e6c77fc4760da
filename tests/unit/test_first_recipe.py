"""docs/first-recipe.md: its commands, run in order as a reader would, except those that boot machines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from instant_env.settings import ROOT

PAGE = ROOT / "docs" / "first-recipe.md"
_BLOCK = re.compile(r"^```sh ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose recipes/ may be changed; everything else is this one's."""
    place = tmp_path / "checkout"
    place.mkdir()
    shutil.copytree(ROOT / "recipes", place / "recipes")
    for name in (".venv", "tasks.py", "instant_env", "harness"):
        (place / name).symlink_to(ROOT / name)
    return place


def run(checkout: Path, commands: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -eu -o pipefail\n{commands}"],
        cwd=checkout,
        env={
            **os.environ,
            "INSTANT_ENV_RECIPES_DIR": str(checkout / "recipes"),
            "INSTANT_ENV_STATE_DIR": str(checkout.parent / "state"),
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_it_says(checkout: Path) -> None:
    output = ""
    kinds = []
    for kind, commands in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "machines":
            continue
        result = run(checkout, commands)
        assert (result.returncode != 0) == (kind == "fails"), f"{commands}\n{result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr
        output += result.stdout + result.stderr
    assert set(kinds) == {"", "fails", "machines"}
    assert "container-host" in output  # `invoke recipes`
    assert "It'\"'\"'s ready." in output  # rendered and quoted
    assert "hello for arm64 on al2023" in output
    assert "greeting" in output.splitlines()[-1]  # the refusal names the parameter
    assert not (checkout.parent / "state" / "localec2").exists()  # no machine, no server
