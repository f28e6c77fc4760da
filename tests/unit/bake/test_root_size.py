"""A recipe's root_gib: of builder, image, forecast and plan hash, and grown before the steps."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.pretend_bakery import Bakery, Calls

from instant_env.bake import builder
from instant_env.bake.bake import estimate
from instant_env.bake.execute import StepError
from instant_env.bake.recipe import load_recipe, resolve
from instant_env.errors import UsageError

pytest_plugins = ("support.pretend_bakery",)


def change(bakery: Bakery, name: str = "pretend", **keys: Any) -> None:
    path = bakery.settings.recipes_dir / name / "recipe.yml"
    path.parent.mkdir(exist_ok=True)
    before = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump(before | keys))


def test_builder_image_and_forecast_have_the_recipes_size(bakery: Bakery) -> None:
    plain = estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    change(bakery, root_gib=5)
    larger = estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    assert larger.plan.hash != plain.plan.hash
    assert larger.usual_s > plain.usual_s
    assert [one.what for one in larger.resources if one.kind == "snapshot"] == ["encrypted 5 GiB"]
    assert sum("5 GiB" in one.what for one in larger.resources if one.kind == "volume") == 3
    calls = Calls(bakery.cloud)
    result = bakery.bake()
    assert result.image.root_gib == 5
    built, verified = (asked for action, asked in calls.requests if action == "RunInstances")
    (mapping,) = built["BlockDeviceMappings"]
    assert mapping["Ebs"]["VolumeSize"] == 5
    assert "VolumeSize" not in str(verified)  # the AMI's own
    grown = [n for n, command in enumerate(bakery.guest.commands) if "its partition ends at" in command]
    steps = [n for n, command in enumerate(bakery.guest.commands) if "01-first.sh" in command]
    assert len(grown) == 1
    assert grown < steps


def test_a_size_below_the_bases_is_the_bases(bakery: Bakery) -> None:
    change(bakery, root_gib=1)
    calls = Calls(bakery.cloud)
    assert bakery.bake().image.root_gib == 2
    assert "VolumeSize" not in str([asked for action, asked in calls.requests if action == "RunInstances"])
    assert not [command for command in bakery.guest.commands if "its partition ends at" in command]


def test_a_root_that_nothing_has_grown_stops_the_bake_before_its_steps(bakery: Bakery) -> None:
    change(bakery, root_gib=5)
    bakery.guest.answers.append(("its partition ends at", "", 1))
    with pytest.raises(StepError, match="the root file system does not fill its volume of 5 GiB") as caught:
        bakery.bake()
    assert "root_gib" in caught.value.hint
    assert not [command for command in bakery.guest.commands if "01-first.sh" in command]


@pytest.mark.parametrize(("parent", "child", "expected"), [(4, 3, 4), (3, 6, 6), (3, None, 3), (None, 2, 2)])
def test_of_a_lineage_the_largest_holds(
    bakery: Bakery, parent: int | None, child: int | None, expected: int
) -> None:
    change(bakery, root_gib=parent)
    change(bakery, "child", recipe="child", description="x", extends="pretend", root_gib=child)
    assert resolve(bakery.settings.recipes_dir, "child", "apt").root_gib == expected


@pytest.mark.parametrize("size", [0, -1, 65, "2 GiB", 2.5])
def test_a_size_that_no_bake_has_time_for_is_refused(bakery: Bakery, size: object) -> None:
    change(bakery, root_gib=size)
    with pytest.raises(UsageError, match="root_gib"):
        load_recipe(bakery.settings.recipes_dir, "pretend")


#: Sectors: a disk of 3 GiB, and where its partition begins.
_DISK, _START = 6291456, 2048


@pytest.mark.parametrize(
    ("partition", "usable", "reason"),
    [
        (_DISK - _START - 34, 5900000, ""),
        (_DISK - _START - 34, 3900000, "it has 3900000 of its partition's"),
        (4192256, 4000000, f"its partition ends at sector 4194304 of {_DISK}"),
    ],
)
def test_partition_and_file_system_are_looked_at(
    tmp_path: Path, partition: int, usable: int, reason: str
) -> None:
    """The script itself, on a /sys of its own and with programs that answer for the mounted root."""
    disk = tmp_path / "sys" / "devices" / "nvme0n1"
    (disk / "nvme0n1p1").mkdir(parents=True)
    for path, value in (
        ("size", _DISK), ("nvme0n1p1/partition", 1), ("nvme0n1p1/start", _START),
        ("nvme0n1p1/size", partition),
    ):  # fmt: skip
        (disk / path).write_text(f"{value}\n")
    classes = tmp_path / "sys" / "class" / "block"
    classes.mkdir(parents=True)
    (classes / "nvme0n1p1").symlink_to(disk / "nvme0n1p1")
    for name, output in (("findmnt", "/dev/nvme0n1p1"), ("df", f"512B-blocks\n {usable}")):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '%s\\n' '{output}'\n")
        (tmp_path / name).chmod(0o755)
    script = builder._ROOT_IS_GROWN.replace("/sys/", f"{tmp_path}/sys/")
    result = subprocess.run(
        ["sh", "-euc", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, reason in result.stderr) == (1 if reason else 0, True), result.stderr
