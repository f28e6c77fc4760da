"""An arm64 machine obeys as an x86_64 one does, though it has no keyboard and an ACPI of another kind.

The tiny image, on a host of any architecture. This is in `make test`; `make test-arm64` has much more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from support.init_guest import wait_for_line, wait_until
from support.localec2_cloud import machines, switches_of
from support.tiny_cloud import Guest, TinyCloud, end

from instant_env.arch import Arch

pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(400)]

ZONE = "us-east-1a"


@pytest.fixture
def arm64_cloud(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TinyCloud]:
    cloud = TinyCloud(tmp_path / "state", Arch.ARM64, switches_of(request))
    yield cloud
    end(cloud)
    assert machines(str(tmp_path)) == [], "no machine is left"


def test_it_boots_takes_a_volume_reboots_and_stops_by_its_power_button(arm64_cloud: TinyCloud) -> None:
    cloud, ec2 = arm64_cloud, arm64_cloud.ec2
    with pytest.raises(ClientError, match="does not match the architecture 'arm64'"):
        cloud.launch_tiny(InstanceType="t3.micro")
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    mount = {"device": volume_id, "path": "/data", "filesystem": "ext4", "format": "blank"}
    wishes = {"hostname": "arm", "mounts": [mount], "colour": "red"}
    instance_id = cloud.launch_tiny(UserData=json.dumps({"instant-env": wishes}))
    assert cloud.describe(instance_id)["Architecture"] == "arm64"
    guest = cloud.login(instance_id)
    assert guest.run("uname -m") == "aarch64"
    # The firmware's table names the serial port; the kernel takes it without being told.
    console = ec2.get_console_output(InstanceId=instance_id, Latest=True)["Output"]
    assert "instant-init" in console

    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    assert guest.device(volume_id).startswith("/dev/nvme")
    check_init(cloud, guest)

    # An orderly reboot: what was written and not synced is there afterwards.
    before = guest.run("cat /proc/sys/kernel/random/boot_id; echo written >/root/mark")
    guest.connection.close()
    pid = machines(instance_id)
    ec2.reboot_instances(InstanceIds=[instance_id])
    for _ in range(20):  # the old sshd answers until the shutdown reaches it
        guest = cloud.login(instance_id)
        if (after := guest.run("cat /proc/sys/kernel/random/boot_id")) != before:
            break
        guest.connection.close()
    assert after != before
    assert guest.run("cat /root/mark") == "written"
    assert machines(instance_id) == pid  # on the same hardware, as EC2 promises
    assert cloud.describe(instance_id)["State"]["Name"] == "running"

    guest.connection.close()
    ec2.stop_instances(InstanceIds=[instance_id])
    stopped = cloud.wait(instance_id, "stopped")
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    console = ec2.get_console_output(InstanceId=instance_id, Latest=True)["Output"]
    assert console.count("the power button was pressed") == 2


def check_init(cloud: TinyCloud, guest: Guest) -> None:
    """The duties of process 1 whose code, or whose kernel, is not x86_64's."""
    wait_until(guest, "instant-init timeline | grep -q first_login")
    timeline = json.loads(guest.run("instant-init timeline"))
    marks = {mark["name"]: mark["boottime_ms"] for mark in timeline["marks"]}
    assert 0 < marks["kernel_handoff"] < marks["init_start"] < marks["network_up"] < marks["sshd_listening"]
    assert {"sshd_listening", "first_login"} == {read["mark"] for read in timeline["root_reads"]}
    assert int(guest.run("awk '/^VmRSS/ {print $2}' /proc/1/status")) <= 12 * 1024, "the project's figure"

    # User data, and a blank volume.
    wait_for_line(cloud, guest.instance_id, 'unknown field "colour"')
    wait_until(guest, "[ $(hostname) = arm ] && grep -q ' /data ext4 ' /proc/mounts")

    # Controllers, orphans, and an sshd that is killed.
    wait_until(guest, "grep -q '^0::/instant-init$' /proc/1/cgroup")
    guest.run("(for n in $(seq 100); do : & done)")
    wait_until(guest, "! grep -q '^[0-9]* (.*) Z' /proc/[0-9]*/stat 2>/dev/null")
    listener = guest.run("cat /run/sshd.pid")
    guest.run(f"kill -KILL {listener}")
    wait_until(guest, f"[ $(cat /run/sshd.pid) != {listener} ]")
