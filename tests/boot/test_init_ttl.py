"""A machine of instant-init ends when its time is up, whoever is alive and whatever its clock says."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from instant_env.localec2 import starter

if TYPE_CHECKING:
    from tiny_cloud import TinyCloud

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

#: Long enough to boot and log in on a busy machine.
TTL_S = 90


def launch(cloud: TinyCloud, **wishes: object) -> tuple[str, float]:
    """A machine without a key pair, whose one key is in user data; and when that was."""
    started = time.monotonic()
    wishes["ssh_keys"] = [cloud.key.public_openssh]
    arguments: dict[str, Any] = {
        "ImageId": cloud.image_id, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1,
        "SecurityGroupIds": [cloud.group_id], "UserData": json.dumps({"instant-env": wishes}),
        "MetadataOptions": {"InstanceMetadataTags": "enabled"},
    }  # fmt: skip
    return cloud.ec2.run_instances(**arguments)["Instances"][0]["InstanceId"], started


def expires(cloud: TinyCloud, instance_id: str, in_s: float) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cloud.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at", "Value": at}])


def ended(cloud: TinyCloud, instance_id: str, timeout_s: float) -> str:
    """The console of a machine that has powered itself off."""
    cloud.wait(instance_id, "stopped", timeout_s=timeout_s)
    return str(cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", ""))


def test_time_is_up_whatever_the_clock_says(tiny_cloud: TinyCloud) -> None:
    cloud = tiny_cloud
    instance_id, started = launch(cloud, ttl_s=TTL_S)
    guest = cloud.login(instance_id)
    # Nobody is to be asked, and the time of day is anybody's.
    starter.inject(cloud.endpoint, kind="imds", instance=instance_id, answer="refused")
    guest.run("date -s @4000000000 && sleep 2 && date -s @1000000000")
    guest.connection.close()
    assert cloud.describe(instance_id)["State"]["Name"] == "running"
    said = ended(cloud, instance_id, TTL_S + 60)
    assert f"powering off: its time is up: user data says ttl_s {TTL_S}" in said
    assert time.monotonic() - started >= TTL_S


def test_a_tag_extends_and_shortens(tiny_cloud: TinyCloud) -> None:
    cloud = tiny_cloud
    instance_id, started = launch(cloud, ttl_s=TTL_S)
    expires(cloud, instance_id, 3600)
    guest = cloud.login(instance_id)
    # A slip does not end it, nor does a clock that is a day ahead.
    guest.run("date -s @$(($(date +%s) + 86400))")
    time.sleep(max(0.0, started + TTL_S + 20 - time.monotonic()))
    assert guest.run("echo alive") == "alive", "the tag has extended it"
    cloud.ec2.create_tags(
        Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at", "Value": "tomorrow"}]
    )
    time.sleep(8)
    assert guest.run("echo alive") == "alive", "what is no time changes nothing"
    guest.run("date -s @$(($(date +%s) - 3 * 86400))")
    expires(cloud, instance_id, 10)
    guest.connection.close()
    said = ended(cloud, instance_id, 60)
    assert 'tag instant-env:expires-at: not a time like 2026-11-21T18:00:00Z: "tomorrow"' in said
    assert "powering off: its time is up: the tag instant-env:expires-at says" in said
