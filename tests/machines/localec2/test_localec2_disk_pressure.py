"""A guest that fills the host's disk stands still, loses nothing, and goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.localec2_cloud import switches_of
from support.patience import until
from support.tiny_cloud import TinyCloud, end

from instant_env.arch import Arch
from instant_env.localec2 import starter

pytestmark = [pytest.mark.boot, pytest.mark.slow]

SMALL_MIB, LARGE_MIB, WRITTEN_MIB = 160, 400, 150
#: Neither too fast nor too slow for a busy host: the reserve takes a second, the time of twenty looks.
#: Direct, one request after the other: what is queued is written as the machine stops, throttled or not.
BYTES_PER_SECOND = 16 << 20


def mount(directory: Path, *words: str) -> bool:
    command = ["mount", *words, str(directory)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    if not mount(directory, "-t", "tmpfs", "-o", f"size={SMALL_MIB}m,mode=0700", "tmpfs"):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def cramped(small: Path, guest_arch: Arch, request: pytest.FixtureRequest) -> Iterator[TinyCloud]:
    cloud = TinyCloud(small / "state", guest_arch, switches_of(request))
    yield cloud
    end(cloud)


#: Alone the whole test takes 80 s; beside another test's guests 120 were not enough for its guest to write.
PATIENCE_S = 360.0


def test_a_guest_that_fills_the_disk_waits_for_room(cramped: TinyCloud, small: Path) -> None:
    ec2 = cramped.ec2
    instance_id = cramped.launch_tiny()
    guest = cramped.login(instance_id)
    volume_id = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    device = guest.device(volume_id)

    def check() -> str:
        (found,) = ec2.describe_instance_status(InstanceIds=[instance_id])["InstanceStatuses"]
        return found["InstanceStatus"]["Status"]

    until(lambda: check() == "ok", PATIENCE_S, pause_s=0.1)
    errors = "dmesg | grep -iE 'I/O error|nvme.*(timeout|abort|error)' || true"
    before = guest.run(errors)
    count = WRITTEN_MIB << 20
    starter.inject(cramped.endpoint, kind="disk", instance=instance_id, bytes_per_second=BYTES_PER_SECOND)
    guest.run(
        f"(yes 0123456789abcde | head -c {count} | dd of={device} bs=64k iflag=fullblock oflag=direct;"
        " echo $? >/run/done) </dev/null >/dev/null 2>&1 &"
    )
    until(lambda: check() == "impaired", PATIENCE_S, pause_s=0.1)
    status = starter.status(cramped.settings)
    assert status.low_disk_space
    assert [item.state for item in status.instances] == ["running"]
    # What is left is the server's: whatever is asked of it meanwhile is done.
    ec2.create_key_pair(KeyName="meanwhile")
    ec2.create_tags(Resources=[instance_id, volume_id], Tags=[{"Key": "meanwhile", "Value": "yes"}])
    assert cramped.describe(instance_id)["Tags"] == [{"Key": "meanwhile", "Value": "yes"}]

    assert mount(small, "-o", f"remount,size={LARGE_MIB}m")
    until(lambda: check() == "ok", PATIENCE_S, pause_s=0.1)
    assert not starter.status(cramped.settings).low_disk_space
    until(lambda: guest.status("test -e /run/done") == 0, PATIENCE_S, pause_s=0.1)
    assert guest.run("cat /run/done") == "0"
    assert guest.run(errors) == before, "it noticed nothing"
    wanted = guest.run(f"yes 0123456789abcde | head -c {count} | md5sum", timeout_s=120)
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    assert guest.run(f"head -c {count} {device} | md5sum", timeout_s=120) == wanted
