"""What a verb says at its start of machines that should have ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.moto_cloud import LATER, NOW, launch

from instant_env.cli import common
from instant_env.cloud import expired
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role

pytest_plugins = ("support.moto_cloud",)


def test_machines_past_their_time_are_named_and_others_are_not(cloud: Cloud) -> None:
    assert expired.warning(cloud, LATER) == ""
    late = launch(cloud, Role.BUILDER, expires_at=NOW)
    launch(cloud, expires_at=LATER + timedelta(hours=1))
    gone = launch(cloud, expires_at=NOW)
    cloud.ec2.terminate_instances(InstanceIds=[gone])
    line = expired.warning(cloud, LATER)
    assert line.startswith(
        f"warning: 1 machine is past the time that the tags say: {late} (builder, running,"
    )
    assert line.endswith("run: invoke clean")
    for _ in range(4):
        launch(cloud, expires_at=NOW)
    assert "5 machines are" in expired.warning(cloud, LATER)
    assert "and 2 more" in expired.warning(cloud, LATER)


def test_it_is_one_call_and_no_error_of_a_verb(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def refuse(event_name: str, **_: Any) -> None:
        calls.append(event_name)
        raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, "DescribeInstances")

    cloud.ec2.meta.events.register("before-call", refuse)
    monkeypatch.setattr("instant_env.cloud.session.connect", lambda *_: cloud)
    lines: list[str] = []
    assert common.open_cloud(cloud.settings, lines.append) is cloud
    assert (lines, len(calls)) == ([], 1)


def test_the_verbs_say_it_when_they_open_the_cloud(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    late = launch(cloud, expires_at=NOW)
    monkeypatch.setattr("instant_env.cloud.session.connect", lambda *_: cloud)
    lines: list[str] = []
    common.open_cloud(cloud.settings, lines.append)
    assert len(lines) == 1
    assert late in lines[0]
