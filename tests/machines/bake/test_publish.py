"""`invoke publish` from one localec2 to another: killed in the middle, gone on with, and the result boots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.localec2_cloud import machines
from support.tiny_cloud import KEY_NAME, TinyCloud, end

from instant_env.arch import Arch
from instant_env.cloud.tags import Role, read_tags, tag_list
from instant_env.localec2 import starter
from instant_env.settings import ROOT

pytest_plugins = ("support.tiny_cloud",)
pytestmark = pytest.mark.boot

INVOKE = Path(sys.executable).parent / "invoke"


@pytest.fixture
def away(tmp_path: Path, guest_arch: Arch) -> Iterator[TinyCloud]:
    """Another localec2: what stands for AWS here."""
    cloud = TinyCloud(tmp_path / "away", guest_arch)
    yield cloud
    end(cloud)
    assert machines(str(tmp_path / "away")) == []


def own_image(cloud: TinyCloud) -> str:
    """A copy of the tiny image that looks like a baked one: the EBS direct APIs read one's own only."""
    extra = {"recipe": "tiny", "base": "tiny", "base-ami": cloud.image_id, "plan-hash": "f" * 64}
    tags = tag_list("r", Role.IMAGE, name="tiny", extra=extra | {"login-user": "root", "arch": cloud.arch})
    specifications: Any = [{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")]
    image_id = cloud.ec2.copy_image(
        Name="instant-env-tiny", SourceImageId=cloud.image_id, SourceRegion="us-east-1",
        TagSpecifications=specifications,
    )["ImageId"]  # fmt: skip
    while cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"] == "pending":
        time.sleep(0.05)
    name = f"/instant-env/tiny/{cloud.arch}/latest"
    starter.client(cloud.endpoint, "ssm").put_parameter(Name=name, Value=image_id, Type="String")
    return image_id


def command(source: TinyCloud, away: TinyCloud, *arguments: str) -> dict[str, Any]:
    environ = {
        **os.environ, "INSTANT_ENV_STATE_DIR": str(source.settings.state_dir),
        "INSTANT_ENV_ACCELERATOR": "tcg", "AWS_ACCESS_KEY_ID": away.endpoint.access_key_id,
        "AWS_SECRET_ACCESS_KEY": away.endpoint.secret_access_key,
    }  # fmt: skip
    words = [
        str(INVOKE), "publish", "--recipe", "tiny", "--arch", source.arch, "--to-endpoint", away.endpoint.url,
        *arguments,
    ]  # fmt: skip
    return {"args": words, "cwd": ROOT, "env": environ, "text": True}


def run(source: TinyCloud, away: TinyCloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(source, away, *arguments), capture_output=True, check=False, timeout=300)


def answer(source: TinyCloud, away: TinyCloud, *arguments: str) -> dict[str, Any]:
    result = run(source, away, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_an_image_is_published_through_faults_and_a_kill_and_boots(
    tiny_cloud: TinyCloud, away: TinyCloud
) -> None:
    image_id = own_image(tiny_cloud)
    plan = answer(tiny_cloud, away, "--dry-run")
    assert plan["source"] == image_id
    assert away.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []

    # Refused for good: one line, and what is there is tagged, with an expiry.
    starter.inject(
        away.endpoint, kind="error", action="CompleteSnapshot", code="AccessDeniedException", status=403
    )
    refused = run(tiny_cloud, away)
    assert refused.returncode == 4
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
    assert f"publishing {image_id}: CompleteSnapshot: AccessDeniedException" in line
    assert "goes on where this one stopped" in line
    (left,) = away.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    tags = read_tags(left["Tags"])
    assert (left["State"], tags["Project"], tags["instant-env:role"]) == ("pending", "instant-env", "image")
    assert "instant-env:expires-at" in tags
    there = command(tiny_cloud, away)
    there["args"] = [str(INVOKE), "clean", "--cloud", "aws", "--yes", "--json"]
    there["env"]["INSTANT_ENV_ENDPOINT_URL"] = away.endpoint.url
    (removed,) = json.loads(subprocess.run(**there, capture_output=True, check=True).stdout)["found"]
    assert (removed["kind"], removed["id"]) == ("snapshot", left["SnapshotId"])

    # Killed with blocks under way; what was written is not written again.
    slow = starter.inject(away.endpoint, kind="delay", action="PutSnapshotBlock", delay_ms=150)
    process = subprocess.Popen(**command(tiny_cloud, away, "--workers", "2"), stderr=subprocess.DEVNULL)
    (journal,) = (tiny_cloud.settings.state_dir / "publish").iterdir()
    deadline = time.monotonic() + 60
    while len([x for x in journal.read_text().splitlines() if x.startswith("snapshot")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while journal.read_text().rpartition("snapshot /dev/")[2].count("block ") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    starter.clear_faults(away.endpoint, slow["id"])
    written = journal.read_text().rpartition("snapshot /dev/")[2].count("block ")
    starter.inject(
        away.endpoint, kind="error", action="PutSnapshotBlock", code="RequestThrottledException", times=3
    )
    published = answer(tiny_cloud, away)
    assert published["blocks_before"] == written
    assert published["blocks_written"] + published["blocks_skipped"] == published["blocks"]
    assert published["blocks_skipped"] > published["blocks_written"] > written
    assert not journal.exists()
    again = answer(tiny_cloud, away)
    assert (again["reused"], again["ami"]) == (True, published["ami"])

    (image,) = away.ec2.describe_images(Owners=["self"])["Images"]
    source = tiny_cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]
    assert image["ImageId"] == published["ami"]
    same = ("Architecture", "BootMode", "RootDeviceName", "EnaSupport", "Name")
    assert {key: image.get(key) for key in same} == {key: source.get(key) for key in same}
    assert image["ImdsSupport"] == "v2.0"
    tags = read_tags(image["Tags"])
    assert (tags["instant-env:recipe"], tags["instant-env:published-from"]) == ("tiny", image_id)
    (snapshot,) = away.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    for left_tags in (tags, read_tags(snapshot["Tags"])):
        assert "instant-env:expires-at" not in left_tags
    guest = away.login(away.launch(published["ami"], KeyName=KEY_NAME, SecurityGroupIds=[away.group_id]))
    assert guest.run("imds meta-data/ami-id") == published["ami"]
