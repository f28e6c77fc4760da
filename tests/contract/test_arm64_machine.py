"""An arm64 machine obeys as an x86_64 one does, though it has no keyboard and an ACPI of another kind.

The tiny image, on a host of any architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from localec2_cloud import machines
from tiny_cloud import TinyCloud, end

from instant_env.arch import Arch

pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def arm64_cloud(tmp_path: Path) -> Iterator[TinyCloud]:
    cloud = TinyCloud(tmp_path / "state", Arch.ARM64)
    yield cloud
    end(cloud)
    assert machines(str(tmp_path)) == [], "no machine is left"


def test_it_boots_takes_a_volume_reboots_and_stops_by_its_power_button(arm64_cloud: TinyCloud) -> None:
    cloud, ec2 = arm64_cloud, arm64_cloud.ec2
    with pytest.raises(ClientError, match="does not match the architecture 'arm64'"):
        cloud.launch_tiny(InstanceType="t3.micro")
    instance_id = cloud.launch_tiny()
    assert cloud.describe(instance_id)["Architecture"] == "arm64"
    guest = cloud.login(instance_id)
    assert guest.run("uname -m") == "aarch64"
    # The firmware's table names the serial port; the kernel takes it without being told.
    console = ec2.get_console_output(InstanceId=instance_id)["Output"]
    assert "instant-init" in console

    zone = cloud.describe(instance_id)["Placement"]["AvailabilityZone"]
    volume_id = ec2.create_volume(AvailabilityZone=zone, Size=1)["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1})
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    assert guest.device(volume_id).startswith("/dev/nvme")

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
    console = ec2.get_console_output(InstanceId=instance_id)["Output"]
    assert console.count("the power button was pressed") == 2
