"""How a machine goes down, and how it sleeps."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.init_guest import HIBERNATION, PATIENCE_S, console, start, stop, wait_for_line, wait_until

from instant_env.localec2 import starter

if TYPE_CHECKING:
    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

ZONE = "us-east-1a"
#: What process 1 promises (init/internal/shutdown/shutdown.go), whatever hangs.
SHUTDOWN_LIMIT_S = 10.0
#: Between the end that a tag says and now: for what the test has to do to the machine before it sleeps.
NOTICE_S = 30


def took_s(said: str) -> float:
    """How long the shutdown took until the power went off, as the machine's last line tells."""
    found = re.search(r"(?:powering off|restarting) now, after (?:([0-9.]+)s|([0-9]+)ms)", said)
    assert found, said
    return float(found[1]) if found[1] else int(found[2]) / 1000


def test_power_button_signal_and_what_hangs(tiny_cloud: TinyCloud) -> None:
    instance_id = tiny_cloud.launch_tiny()
    guest = tiny_cloud.login(instance_id)
    volume_id = tiny_cloud.ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    tiny_cloud.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    device = guest.device(volume_id)
    guest.run(
        f"mkfs.ext4 -q {device} && mount {device} /mnt && echo precious >/mnt/file; echo root >/root/file"
    )

    said = stop(tiny_cloud, instance_id)
    assert "powering off: the power button was pressed" in said
    assert "unmount" not in said
    print(f"power button: {took_s(said):.3f} s")
    assert took_s(said) < SHUTDOWN_LIMIT_S

    # What was written is there, and the journals have nothing to tell: everything was unmounted.
    guest = start(tiny_cloud, instance_id)
    assert guest.run("cat /root/file") == "root"
    device = guest.device(volume_id)
    guest.run(f"mount {device} /mnt && grep -q precious /mnt/file")
    assert guest.status("dmesg | grep -i -e 'recovery complete' -e 'orphan cleanup'") != 0
    guest.run("kill -HUP 1; kill -USR1 1; kill -QUIT 1; sleep 1; kill -0 1")

    # A file system that never answers, a process that waits for it and cannot be killed, and one that ignores
    # SIGTERM: the machine goes down all the same.
    guest.run("fsfreeze --freeze /mnt")
    guest.run("dd if=/dev/zero of=/mnt/more bs=1M count=1 </dev/null >/dev/null 2>&1 &")
    stubborn = "trap : TERM HUP; while :; do sleep 1; done"
    guest.run(f"sh -c '{stubborn}' </dev/null >/dev/null 2>&1 &")
    wait_until(guest, "grep -q '(dd) D' /proc/[0-9]*/stat")
    guest.run("(sleep 1; kill -TERM 1) </dev/null >/dev/null 2>&1 &")
    wait_for_line(tiny_cloud, instance_id, "powering off: signal: terminated")
    begin = time.monotonic()
    tiny_cloud.wait(instance_id, "stopped", timeout_s=60)
    said = console(tiny_cloud, instance_id)
    print(f"with a frozen file system: {time.monotonic() - begin:.1f} s on the host's clock")
    assert re.search(r"processes are stuck: .*\(dd\) D", said), said
    assert took_s(said) < SHUTDOWN_LIMIT_S


@pytest.mark.only_x86_64(HIBERNATION)
def test_a_machine_sleeps_goes_on_and_ends_when_its_time_was_up_meanwhile(tiny_cloud: TinyCloud) -> None:
    cloud = tiny_cloud
    encrypted: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeSize": 2}}]
    instance_id = cloud.launch_tiny(
        HibernationOptions={"Configured": True}, BlockDeviceMappings=encrypted,
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )  # fmt: skip
    guest = cloud.login(instance_id)
    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    guest.run("(sleep 100000 & echo $! >/run/sleeper) </dev/null >/dev/null 2>&1")
    # Who keeps machines asleep wakes one for somebody else: keys are asked for again.
    guest.run("rm /root/.ssh/authorized_keys")
    sleep(cloud, instance_id)
    guest = start(cloud, instance_id)
    assert guest.run("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert guest.status("kill -0 $(cat /run/sleeper)") == 0, "its processes live on"
    wait_for_line(cloud, instance_id, "awake again, after ")
    assert guest.run("grep -c nvme /proc/swaps; true") == "0", "swap is for sleeping only"

    # Its time runs on while it sleeps, and nobody has to tell it so.
    at = datetime.now(UTC) + timedelta(seconds=NOTICE_S)
    expires = [{"Key": "instant-env:expires-at", "Value": at.strftime("%Y-%m-%dT%H:%M:%SZ")}]
    cloud.ec2.create_tags(Resources=[instance_id], Tags=expires)  # type: ignore[arg-type]
    wait_until(guest, "dmesg | grep -q 'powering off in [0-9]*s: the tag instant-env:expires-at says'")
    starter.inject(cloud.endpoint, kind="imds", instance=instance_id, answer="refused")
    sleep(cloud, instance_id)
    time.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()))
    cloud.ec2.start_instances(InstanceIds=[instance_id])
    cloud.wait(instance_id, "running")
    cloud.wait(instance_id, "stopped", timeout_s=PATIENCE_S)
    said = console(cloud, instance_id)
    assert "awake again, after " in said, said
    assert "powering off: its time is up: the tag instant-env:expires-at says" in said, said


def sleep(cloud: TinyCloud, instance_id: str) -> None:
    cloud.hibernate(instance_id)
    stopped = cloud.wait(instance_id, "stopped", timeout_s=150)
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedHibernate", stopped["StateReason"]
    assert "hibernating to /dev/nvme0n1p2" in console(cloud, instance_id)
