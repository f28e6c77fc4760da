"""Publishing meets an account in which a new image and a new snapshot are not known everywhere at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.clouds.aws_client import Aws, aws_client
from support.localec2_served import Served

from instant_env.arch import Arch
from instant_env.cloud import copies
from instant_env.cloud.images import parameter_name
from instant_env.cloud.session import CloudError
from instant_env.cloud.tags import Role, read_tags, tag_specifications
from instant_env.publish import publish as publishing
from instant_env.publish.publish import find_source, publish
from instant_env.settings import CloudName

pytest_plugins = ("support.clouds.aws_client",)


def without_proxy(aws: Aws) -> Any:
    """Clients of further services are made with the environment's proxy but for this name."""
    return dataclasses.replace(aws.cloud, name=CloudName.LOCAL)


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Aws]:
    server = Served(tmp_path / "away")
    yield aws_client(server, tmp_path / "away-client")
    server.stop()


@pytest.fixture
def source(aws: Aws) -> publishing.Source:
    """An image of two GiB in which nothing is written."""
    extra = {"recipe": "minimal", "base": "b", "base-ami": "ami-1", "plan-hash": "f" * 64, "login-user": "u"}
    tags = tag_specifications("image", "snapshot", run_id="r", role=Role.IMAGE, name="n", extra=extra)
    image_id = aws.cloud.ec2.copy_image(
        Name="instant-env-minimal", SourceImageId=aws.served.register(), SourceRegion="us-east-1",
        TagSpecifications=tags,
    )["ImageId"]  # fmt: skip
    copies._wait(aws.cloud, image_id)
    name = parameter_name("minimal", Arch.X86_64)
    aws.cloud.ssm.put_parameter(Name=name, Value=image_id, Type="String")
    return find_source(without_proxy(aws), "latest", "minimal", Arch.X86_64)


class Late:
    """The next so many descriptions of one kind are NotFound, or empty, or without what was not seen yet."""

    def __init__(self, away: Aws, action: str, code: str, key: str) -> None:
        self.answers = ["missing", "empty", "missing"]
        self._code, self._key = code, key
        away.cloud.ec2.meta.events.register(f"after-call.ec2.{action}", self._change)

    def _change(self, parsed: dict[str, Any], **_: Any) -> None:
        if not parsed.get(self._key) or not self.answers:
            return
        if self.answers.pop() == "missing":
            raise ClientError({"Error": {"Code": self._code, "Message": "not known"}}, "Describe")
        parsed[self._key] = []


def test_a_new_image_and_its_snapshot_may_be_unknown_for_a_while(
    aws: Aws, away: Aws, source: publishing.Source
) -> None:
    images = Late(away, "DescribeImages", "InvalidAMIID.NotFound", "Images")
    snapshots = Late(away, "DescribeSnapshots", "InvalidSnapshot.NotFound", "Snapshots")
    away.fault("DeleteTags", "InvalidAMIID.NotFound", times=2)
    published = publish(without_proxy(aws), without_proxy(away), source, progress=lambda _: None)
    assert images.answers == snapshots.answers == []
    (image,) = away.cloud.ec2.describe_images(Owners=["self"])["Images"]
    assert published.image_id == image["ImageId"]
    assert published.snapshot_ids == (image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"],)
    assert "instant-env:expires-at" not in read_tags(image["Tags"])
    again = publish(without_proxy(aws), without_proxy(away), source, progress=lambda _: None)
    assert again.reused
    assert again.snapshot_ids == published.snapshot_ids


def test_a_snapshot_that_fails_is_told_with_its_reason(
    aws: Aws, away: Aws, source: publishing.Source
) -> None:
    def fail(parsed: dict[str, Any], **_: Any) -> None:
        for one in parsed["Snapshots"]:
            one |= {"State": "error", "StateMessage": "no key"}

    away.cloud.ec2.meta.events.register("after-call.ec2.DescribeSnapshots", fail)
    with pytest.raises(CloudError, match="is error: no key"):
        publish(without_proxy(aws), without_proxy(away), source, progress=lambda _: None)


@pytest.mark.parametrize(("architecture", "mode"), [("arm64", "uefi"), ("x86_64", "uefi-preferred")])
def test_graviton_gets_the_only_boot_mode_that_it_has(architecture: Any, mode: str) -> None:
    assert publishing._boot_mode({"Architecture": architecture, "BootMode": "uefi-preferred"}) == mode
