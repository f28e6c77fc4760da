from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.ec2.models import ec2_backends
from support.harness_cloud import Ec2Faults, cloud_in_process, register_image

from harness.plan.definition import load
from harness.plan.planning import of_definition
from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.cloud.tags import Role, tag_list
from instant_env.errors import UsageError
from instant_env.settings import ROOT

SMALL: dict[str, Any] = {"name": "small", "about": "why", "techniques": ["cold"]}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "e.yml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def usual(arch: Arch) -> str:
    return {Arch.X86_64: "m7i.large", Arch.ARM64: "m7g.large"}[arch]


def test_every_list_is_an_axis(tmp_path: Path) -> None:
    path = written(
        tmp_path, techniques=["cold", "custom-init+prealloc-eni"], architectures=["x86_64", "arm64"],
        markets=["spot", "on-demand"], options={"hop_limit": [1, 2, 64], "zone": "us-east-1b"},
    )  # fmt: skip
    cells = load(path).cells(usual)
    assert len(cells) == 2 * 2 * 2 * 3
    assert len(set(cells)) == len(cells)
    assert {cell.instance_type for cell in cells if cell.arch is Arch.ARM64} == {"m7g.large"}
    assert {cell.options.hop_limit for cell in cells} == {1, 2, 64}
    assert {cell.options.zone for cell in cells} == {"us-east-1b"}
    assert {cell.market for cell in cells} == {Market.SPOT, Market.ON_DEMAND}


def test_a_type_belongs_to_its_architecture(tmp_path: Path) -> None:
    path = written(
        tmp_path, architectures=["x86_64", "arm64"], instance_types=["c7i.large", "c7g.large", "t4g.small"]
    )
    cells = load(path).cells(usual)
    assert [(cell.arch.value, cell.instance_type) for cell in cells] == [
        ("x86_64", "c7i.large"), ("arm64", "c7g.large"), ("arm64", "t4g.small"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"m7g.large is not of x86_64"):
        load(written(tmp_path, instance_types=["m7g.large"])).cells(usual)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hop_limit": [1, 2]}, "hop_limit: Extra inputs"),
        ({"options": {"hop_limit": [0]}}, "options.hop_limit.0: Input should be greater than or equal to 1"),
        ({"options": {"hoplimit": [1]}}, "options.hoplimit: Extra inputs"),
        ({"options": {"boot_mode": ["bios"]}}, "options.boot_mode.0: Input should be 'uefi'"),
        ({"options": {"zone": []}}, "options.zone: Value should have at least 1 item"),
        ({"options": {"hop_limit": [1, 1]}}, "1 is there twice"),
        ({"techniques": ["warm"]}, "unknown technique 'warm'"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"name": "../x"}, "name: String should match"),
        ({"markets": ["reserved"]}, "markets.0: Input should be 'spot' or 'on-demand'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, **changes))
    assert words in caught.value.message


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "42"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"e\.yml"):
        load(path)
    with pytest.raises(UsageError, match="cannot read") as caught:
        load(tmp_path / "none.yml")
    assert "e.yml" in caught.value.hint


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yml")), ids=lambda path: path.stem)
def test_the_ready_made_ones_are_in_order(path: Path) -> None:
    definition = load(path)
    assert definition.name == path.stem
    # Emulated arm64 is slow: 3 are what a sample of all techniques takes there.
    assert definition.n >= (3 if definition.architectures == [Arch.ARM64] else 10)
    assert len(definition.cells(usual)) >= 2


def test_the_readme_has_every_key() -> None:
    from harness.plan.definition import Axes, Definition

    text = (ROOT / "experiments" / "README.md").read_text()
    for name in [*Definition.model_fields, *Axes.model_fields]:
        assert f"| `{name}` |" in text, name


def test_boot_modes_of_another_accounts_image_are_refused_by_the_plan(tmp_path: Path) -> None:
    """cold's AMI is Amazon's: its snapshots are registered by nobody else."""
    definition = load(written(tmp_path, techniques=["cold", "minimal-ami"], options={"boot_mode": ["uefi"]}))
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        base, image = register_image(cloud), register_image(cloud, "minimal")
        about = {"recipe": "minimal", "base": "al2023", "base-ami": base, "login-user": "ec2-user"}
        cloud.ec2.create_tags(Resources=[image], Tags=tag_list("r", Role.IMAGE, name="minimal", extra=about))
        definition = definition.model_copy(update={"ami": image})
        assert len(of_definition(cloud, definition).experiment.cells) == 2
        ec2_backends[ACCOUNT][cloud.region].amis[base].owner_id = "137112412989"
        with pytest.raises(UsageError, match=f"cold.*{base} is another account's"):
            of_definition(cloud, definition)
