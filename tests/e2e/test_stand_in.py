"""The dnf half of the recipes, baked over SSH from a base that is laid out as Amazon Linux 2023 and boots.

docs/al2023.md says what this proves and what only AWS can. Part of `make test-al2023` only: the base and its
kernel are made when they are not cached, and three bakes follow.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.front import NOTHING, Front, rows_of

from instant_env.settings import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(
        os.environ.get("INSTANT_ENV_AL2023") != "1", reason="takes long: make test-al2023 (CONTRIBUTING.md)"
    ),
]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("al2023-like"))
    try:
        yield front
    finally:
        print((front.directory / "state" / "localec2" / "server.log").read_text()[-20000:])
        front.run("local.down")
        assert front.machines() == []


def check(bake: dict[str, object]) -> None:
    """One bake was audited, found clean, and logged in to."""
    manifest = json.loads(Path(str(bake["manifest"])).read_text())
    assert manifest["audit"]["findings"] == []
    assert manifest["audit"]["bytes_scanned"] > 1 << 30
    assert {"seal", "verify"} <= {step["name"] for step in manifest["steps"]}
    assert manifest["timeline"]["pid1"] is (bake["recipe"] == "custom-init")


def test_both_recipes_are_baked_by_dnf_and_log_in(front: Front) -> None:
    bakes = front.json("bake", "--base", "al2023-like", "--recipe", "minimal,custom-init")["bakes"]
    assert [bake["recipe"] for bake in bakes] == ["minimal", "custom-init"]
    for bake in bakes:
        check(bake)
    assert front.leftovers() == NOTHING


def test_both_are_raced_against_the_bases_cold(front: Front) -> None:
    result = front.json("bench", "--ami", "latest", "--iterations", "3")
    rows = rows_of(result["csv"])
    assert Counter(row["technique"] for row in rows) == {"cold": 3, "minimal-ami": 3, "custom-init": 3}
    assert [row["outcome"] for row in rows] == ["ok"] * 9
    t4 = {
        technique: statistics.median(float(row["t4_ms"]) for row in rows if row["technique"] == technique)
        for technique in ("cold", "minimal-ami", "custom-init")
    }
    assert t4["custom-init"] < t4["minimal-ami"] < t4["cold"]
    assert front.leftovers() == NOTHING


def test_xfs_alone_changes_nothing_for_the_apt_half(front: Front, tmp_path: Path) -> None:
    """Debian on XFS: seal, audit, growth and GRUB, without what else is different on Amazon Linux."""
    recipes = shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    base = yaml.safe_load((recipes / "bases" / "debian-12.yml").read_text())
    base |= {
        "base": "debian-12-xfs", "root_filesystem": "xfs",
        "ssm_parameter": "/aws/service/instant-env/debian-12-xfs/{{ arch }}",
    }  # fmt: skip
    (recipes / "bases" / "debian-12-xfs.yml").write_text(yaml.safe_dump(base))
    front.environ["INSTANT_ENV_RECIPES_DIR"] = str(recipes)
    try:
        bake = front.json("bake", "--base", "debian-12-xfs", "--recipe", "minimal")
    finally:
        del front.environ["INSTANT_ENV_RECIPES_DIR"]
    check(bake)
