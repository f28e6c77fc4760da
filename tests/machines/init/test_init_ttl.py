"""A machine of instant-init ends when its time is up, whoever is alive and whatever its clock says."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from support.init_guest import HIBERNATION, console, wait_for_line, wait_until

from instant_env.localec2 import starter
from instant_env.user_data import UserData

if TYPE_CHECKING:
    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

#: Of a machine that nobody logs in to.
SHORT_S = 25
#: Of one whose tag gives it longer before it is over.
TTL_S = 40
#: Between a look at the tag and the end that it says: for what the test has to do to the machine.
NOTICE_S = 30


def launch(cloud: TinyCloud, *, ttl_s: int) -> tuple[str, float]:
    """A machine without a key pair, whose one key is in user data; and when that was."""
    started = time.monotonic()
    instance_id = cloud.launch(
        cloud.image_id,
        SecurityGroupIds=[cloud.group_id],
        UserData=UserData(ttl_s=ttl_s, ssh_keys=(cloud.key.public_key,)).as_json(),
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )
    return instance_id, started


def expires(cloud: TinyCloud, instance_id: str, in_s: float) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cloud.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at", "Value": at}])


def ended(cloud: TinyCloud, instance_id: str, timeout_s: float) -> str:
    """The console of a machine that has powered itself off."""
    cloud.wait(instance_id, "stopped", timeout_s=timeout_s)
    return console(cloud, instance_id)


def test_time_is_up_whoever_is_there_and_whatever_the_clock_says(tiny_cloud: TinyCloud) -> None:
    """One machine ends by user data, alone. The other one's tag extends its life, and ends it."""
    cloud = tiny_cloud
    alone, started = launch(cloud, ttl_s=SHORT_S)
    extended, _ = launch(cloud, ttl_s=TTL_S)
    expires(cloud, extended, 3600)

    said = ended(cloud, alone, 120)
    assert f"powering off: its time is up: user data says ttl_s {SHORT_S}" in said
    assert time.monotonic() - started >= SHORT_S

    guest = cloud.login(extended)
    guest.run("date -s @$(($(date +%s) + 86400))")  # the clock is a day ahead
    wait_until(guest, f"[ $(cut -d. -f1 /proc/uptime) -gt {TTL_S + 5} ]")
    # A slip changes nothing.
    cloud.ec2.create_tags(Resources=[extended], Tags=[{"Key": "instant-env:expires-at", "Value": "tomorrow"}])
    wait_for_line(
        cloud, extended, 'tag instant-env:expires-at: not a time like 2026-11-21T18:00:00Z: "tomorrow"'
    )
    assert guest.run("sleep 2; echo alive") == "alive", "the tag has extended it"

    # From here on nobody is to be asked, and the time of day is anybody's.
    guest.run("date -s @$(($(date +%s) - 3 * 86400))")
    expires(cloud, extended, NOTICE_S)
    wait_until(guest, "dmesg | grep -q 'powering off in [0-9]*s: the tag instant-env:expires-at says'")
    starter.inject(cloud.endpoint, kind="imds", instance=extended, answer="refused")
    guest.run("date -s @4000000000 && sleep 2 && date -s @1000000000")
    guest.connection.close()
    said = ended(cloud, extended, NOTICE_S + 60)
    assert "powering off: its time is up: the tag instant-env:expires-at says" in said


@pytest.mark.only_x86_64(HIBERNATION)
def test_a_machine_asleep_past_its_end_goes_by_the_tag_that_it_wakes_up_to(tiny_cloud: TinyCloud) -> None:
    """A pool's slot sleeps for longer than it was to live, and is given a later end before it is started."""
    cloud = tiny_cloud
    instance_id = cloud.launch_tiny(
        HibernationOptions={"Configured": True},
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeSize": 2}}],
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )
    guest = cloud.login(instance_id)
    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    expires(cloud, instance_id, NOTICE_S)
    end = time.monotonic() + NOTICE_S
    wait_until(guest, "dmesg | grep -q 'powering off in [0-9]*s: the tag instant-env:expires-at says'")
    cloud.hibernate(instance_id)
    stopped = cloud.wait(instance_id, "stopped", timeout_s=150)
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedHibernate", stopped["StateReason"]
    time.sleep(max(0.0, end + 5 - time.monotonic()))

    expires(cloud, instance_id, 3600)
    cloud.ec2.start_instances(InstanceIds=[instance_id])
    again = cloud.login(instance_id)
    assert again.run("cat /proc/sys/kernel/random/boot_id") == boot_id, "it has resumed"
    # The init has looked at the clock since it woke up, and at the new tag.
    wait_until(again, "dmesg | grep -qE 'powering off in (59m|1h)'")
    assert again.run("sleep 2; echo alive") == "alive"
