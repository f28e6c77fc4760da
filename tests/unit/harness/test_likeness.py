"""What a race compares is alike: encryption and type of volumes, market, zone; or it is said."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from support.pretend_bakery import Bakery

from harness.figures.likeness import differences
from harness.figures.reading import Kind, Record
from harness.plan.arguments import Request, read
from harness.run.runner import BenchResult, carry_out
from instant_env.arch import Arch
from instant_env.cloud.images import BakedImage
from instant_env.cloud.tags import PREFIX
from instant_env.launch.techniques.base import ComparedVolume
from instant_env.launch.techniques.cold import Cold

pytest_plugins = ("support.pretend_bakery",)

KIND = Kind("aws", "ec2", "x86_64", "m7i.large", "us-east-1")


def record(technique: str, outcome: str = "ok", **texts: str) -> Record:
    return Record(KIND, technique, 1, outcome, 1000.0, {}, texts)


def race(bakery: Bakery, lines: list[str]) -> BenchResult:
    request = Request(iterations=1, seed=7, timeout_s=60, techniques=("cold", "minimal-ami"), ami=ami(bakery))
    settings, planner = read(request, bakery.settings)
    return carry_out(settings, planner, progress=lines.append, open_cloud=lambda *_: bakery.cloud)


def ami(bakery: Bakery) -> str:
    """The pretended image, called one of the recipe minimal."""
    (image,) = bakery.baked()
    tags = [{"Key": f"{PREFIX}recipe", "Value": "minimal"}]
    bakery.served.ec2.create_tags(Resources=[image.id], Tags=tags)  # type: ignore[arg-type]
    return image.id


def test_cold_has_a_root_volume_like_those_that_it_is_compared_with(bakery: Bakery) -> None:
    """The base's is not encrypted; a bake encrypts unless it is told not to."""
    bakery.bake()
    lines: list[str] = []
    result = race(bakery, lines)
    assert [row.outcome for row in result.rows] == ["ok", "ok"], [row.error for row in result.rows]
    about: dict[str, Any] = json.loads(result.metadata_path.read_text())
    volumes = about["root_volumes"]
    assert set(volumes) == {"cold", "minimal-ami"}
    assert volumes["cold"] == volumes["minimal-ami"]
    assert volumes["cold"]["encrypted"] is True
    assert volumes["cold"]["type"] == "gp3"
    assert about["encrypted_by_default"] is False
    assert len({cell["zone"] for cell in about["cells"]}) == 1, "a run is in one zone"
    assert [line for line in lines if "differs in" in line] == []


BASE = {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8, "VolumeType": "gp3", "Encrypted": False}}


class Bases:
    """DescribeImages of a base, and nothing else."""

    ec2: Any

    def __init__(self) -> None:
        self.ec2 = self

    def describe_images(self, **_: Any) -> Any:
        base = {"ImageId": "ami-base", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": [BASE]}
        return {"Images": [base]}


def baked(recipe: str, **changes: Any) -> BakedImage:
    image = BakedImage(
        id=f"ami-{recipe}", name=recipe, state="available", recipe=recipe, arch=Arch.X86_64, base="al2023",
        base_ami="ami-base", plan_hash="f", login_user="u", created=datetime(2026, 1, 1, tzinfo=UTC),
        size_gib=8, snapshot_ids=(), root_volume_type="gp3",
    )  # fmt: skip
    return dataclasses.replace(image, **changes)


@pytest.mark.parametrize(
    ("image", "volume"),
    [
        ({}, None),
        ({"root_encrypted": True}, ComparedVolume(True, "gp3")),
        ({"root_volume_type": "io2"}, ComparedVolume(False, "io2")),
        ({"root_encrypted": True, "encryption": "arn:k"}, ComparedVolume(True, "gp3", "arn:k")),
    ],
)
def test_cold_takes_over_what_its_base_has_not(image: dict[str, Any], volume: ComparedVolume | None) -> None:
    cloud: Any = Bases()
    prepared = Cold().prepare(cloud, {"minimal": baked("minimal", **image)})
    assert prepared.compared_volume == volume
    assert prepared.note == ""


def test_images_that_differ_among_themselves_are_noted() -> None:
    cloud: Any = Bases()
    images = {"minimal": baked("minimal"), "custom-init": baked("custom-init", root_encrypted=True)}
    prepared = Cold().prepare(cloud, images)
    assert prepared.note == "root volumes of the AMIs differ; cold's is as that of ami-minimal"


def test_differences_are_sentences_with_what_each_has() -> None:
    records = [
        record("cold", zone="us-east-1a", market="spot"),
        record("cold", zone="us-east-1b", market="on-demand"),
        record("custom-init", zone="us-east-1a", market="on-demand"),
        record("custom-init", outcome="capacity", zone="us-east-1c"),
    ]
    volumes = {
        "cold": {"encrypted": False, "type": "gp2", "gib": 8},
        "custom-init": {"encrypted": True, "type": "gp3", "gib": 8},
    }
    head = "What is compared on x86_64 m7i.large differs in "
    assert differences(records, volumes) == [
        f"{head}market: cold: on-demand, spot; custom-init: on-demand.",
        f"{head}availability zone: cold: us-east-1a, us-east-1b; custom-init: us-east-1a.",
        f"{head}encryption of the root volume: cold: no; custom-init: yes.",
        f"{head}type of the root volume: cold: gp2; custom-init: gp3.",
    ]


def test_what_is_alike_or_varied_on_purpose_or_not_on_record_is_no_difference() -> None:
    alike = [record(name, zone="us-east-1a", market="spot") for name in ("cold", "minimal-ami")]
    assert differences(alike, {"cold": {}, "minimal-ami": {"encrypted": True, "type": "gp3"}}) == []
    assert differences([record("cold"), record("minimal-ami")], {}) == []
    varied = [record(f"cold [zone={zone}]", zone=zone) for zone in ("us-east-1a", "us-east-1b")]
    assert differences(varied, {}) == []
