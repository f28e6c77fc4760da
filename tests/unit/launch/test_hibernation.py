"""Putting a machine of a pool to sleep: EC2 is not ready for it at first, and some images never are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.harness_cloud import Ec2Faults, cloud_in_process, register_image
from support.moto_cloud import launch_of

from instant_env.cloud import instances
from instant_env.cloud.images import list_baked
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, tag_list
from instant_env.errors import UsageError
from instant_env.launch import pool
from instant_env.launch.techniques import FillError, LaunchContext, PoolSlot, find_technique

#: As EC2 has it in public reports.
NOT_READY = "This instance is not ready to hibernate yet. Retry in a few minutes."


class Refusals:
    """StopInstances is refused so often, and hibernates then."""

    def __init__(self, cloud: Cloud, times: int, code: str, message: str) -> None:
        self._left, self._error = times, {"Error": {"Code": code, "Message": message}}
        self.calls = 0
        cloud.ec2.meta.events.register("before-parameter-build.ec2.StopInstances", self._refuse)
        cloud.ec2.meta.events.register("after-call.ec2.DescribeInstances", self._reason)

    def _refuse(self, **_: Any) -> None:
        self.calls += 1
        if self.calls <= self._left:
            raise ClientError(self._error, "StopInstances")  # type: ignore[arg-type]

    def _reason(self, parsed: dict[str, Any], **_: Any) -> None:
        for reservation in parsed["Reservations"]:
            for instance in reservation["Instances"]:
                instance["StateReason"] = {"Code": "Client.UserInitiatedHibernate", "Message": "asked"}


def hibernate(tmp_path: Path, times: int, code: str, message: str) -> tuple[int, list[str]]:
    """How often StopInstances was called, and the machines' states."""
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        refusals = Refusals(cloud, times, code, message)
        instance_id = instances.launch(cloud, launch_of(register_image(cloud)))
        context: Any = LaunchContext(cloud, None, None, 60.0)  # type: ignore[arg-type]  # it has a machine
        try:
            asyncio.run(pool.stop_or_hibernate(context, PoolSlot(instance_id), hibernate=True))
        finally:
            answer = cloud.ec2.describe_instances()
            states = [str(i["State"]["Name"]) for r in answer["Reservations"] for i in r["Instances"]]
        return refusals.calls, states


def test_it_is_asked_again_until_ec2_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_NOT_READY_PAUSES_S", (0.01,))
    assert hibernate(tmp_path, 12, "UnsupportedOperation", NOT_READY) == (13, ["stopped"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("UnsupportedHibernationConfiguration", "the instance was not configured for it"),
        ("UnsupportedOperation", "The instance type does not support hibernation"),
    ],
)
def test_what_will_never_hibernate_is_not_asked_again(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(FillError, match=message):
        hibernate(tmp_path, 1, code, message)


def test_it_is_given_up_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_NOT_READY_PAUSES_S", (0.01,))
    monkeypatch.setattr(pool, "_NOT_READY_S", 0.2)
    with pytest.raises(FillError, match="not ready"):
        hibernate(tmp_path, 10**6, "UnsupportedOperation", NOT_READY)


def test_an_image_whose_tag_says_no_is_refused_before_anything_is_launched(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        for recipe, hibernates in (("minimal", "no"), ("custom-init", "yes")):
            about = {"recipe": recipe, "login-user": "admin", "hibernates": hibernates, "base-ami": "ami-1"}
            tags = tag_list("r", Role.IMAGE, name=recipe, extra=about)
            cloud.ec2.create_tags(Resources=[register_image(cloud, recipe)], Tags=tags)
        images = {image.recipe: image for image in list_baked(cloud)}
        with pytest.raises(UsageError, match="cannot hibernate") as caught:
            find_technique("warm-hibernated").prepare(cloud, images)
        assert "custom-init+warm-hibernated" in caught.value.hint
        prepared = find_technique("custom-init+warm-hibernated").prepare(cloud, images)
        assert prepared.image_id == images["custom-init"].id
