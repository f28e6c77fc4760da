"""The tiny image: a machine in seconds, with all that the other tests want of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from instant_env.arch import Arch
from instant_env.localec2 import stock
from instant_env.settings import load

if TYPE_CHECKING:
    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = pytest.mark.boot


@pytest.mark.slow
def test_a_tiny_machine(tiny_cloud: TinyCloud) -> None:
    ec2 = tiny_cloud.ec2
    instance_id = tiny_cloud.launch_tiny(UserData="hello", InstanceInitiatedShutdownBehavior="terminate")
    guest = tiny_cloud.login(instance_id)
    assert guest.run("id -un; cat /proc/1/comm") == "root\ninstant-init"
    assert guest.run("imds user-data") == "hello"
    assert guest.run("imds meta-data/instance-id; imds -t $(imds -T) meta-data/ami-id").split() == [
        instance_id,
        tiny_cloud.image_id,
    ]
    assert guest.run("imds -n -s meta-data/instance-id || true") == "401"
    assert guest.status("imds meta-data/nothing-of-that-name") == 1

    # Everything belongs to root, whoever built the image.
    assert guest.run("find / -xdev ! -user root -o ! -group root -xdev") == ""

    # A volume, while it runs.
    volume_id = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1})
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    device = guest.device(volume_id)
    guest.run(f"mke2fs {device} && mount {device} /mnt && echo data >/mnt/file && umount /mnt")
    assert guest.run(f"mount {device} /mnt && cat /mnt/file && umount /mnt") == "data"

    guest.run("(sleep 1; kill 1) >/dev/null 2>&1 &")
    ended = tiny_cloud.wait(instance_id, "terminated")
    assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


@pytest.mark.parametrize("arch", list(Arch))
def test_the_image_is_small(arch: Arch) -> None:
    image = stock.build("tiny", arch, load().cache_dir, print)
    assert image.disk.stat().st_size <= 40_000_000
