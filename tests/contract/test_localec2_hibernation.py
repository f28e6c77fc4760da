"""A guest sleeps and goes on: the same boot, the same processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tiny_cloud import TinyCloud

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]


def test_a_guest_hibernates_and_goes_on(tiny_cloud: TinyCloud) -> None:
    encrypted: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeSize": 2}}]
    instance_id = tiny_cloud.launch_tiny(
        HibernationOptions={"Configured": True}, BlockDeviceMappings=encrypted
    )
    guest = tiny_cloud.login(instance_id)
    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    guest.run("(sleep 100000 & echo $! >/run/sleeper) </dev/null >/dev/null 2>&1")
    uptime_s = float(guest.run("cut -d' ' -f1 /proc/uptime"))

    tiny_cloud.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    stopped = tiny_cloud.wait(instance_id, "stopped", timeout_s=150)
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedHibernate", stopped["StateReason"]

    tiny_cloud.ec2.start_instances(InstanceIds=[instance_id])
    again = tiny_cloud.login(instance_id)
    assert again.run("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert float(again.run("cut -d' ' -f1 /proc/uptime")) > uptime_s
    assert again.status("kill -0 $(cat /run/sleeper)") == 0, "its processes live on"
