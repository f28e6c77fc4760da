"""Volumes: the root grows into its own, others are formatted when blank, and mounted. User data names it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.init_guest import console, put_file_system, start, stop, wait_for_line, wait_until

from instant_env.user_data import Mount, UserData

if TYPE_CHECKING:
    from pathlib import Path

    from support.tiny_cloud import Guest, TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT_GIB = 3
XFS_MIB = 320
SIZE_MIB = "df -m {} | awk 'END {{print $2}}'"
#: Where whoever makes a file system writes first.
BEGINNING = "dd if={} bs=1M count=4 2>/dev/null | sha256sum"
#: The whole of what holds a partition table at either end of the disk.
TABLE = "(dd if=/dev/nvme0n1 bs=512 count=34; dd if=/dev/nvme0n1 bs=512 skip={}) 2>/dev/null | sha256sum"

ZONE = "us-east-1a"


def phase(guest: Guest, name: str) -> dict[str, Any]:
    """The machine's progress."""
    document = json.loads(guest.run("cat /run/instant-env/phases.json"))
    entries: list[dict[str, Any]] = document["phases"]
    return next(entry for entry in entries if entry["name"] == name)


def test_root_and_extra_volumes(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    ec2 = tiny_cloud.ec2
    blank, late, odd, xfs = (ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"] for _ in range(4))
    mounts = [
        Mount(blank, "/data", "ext4", format_blank=True, owner="nobody"),
        Mount(late, "/data/late", "ext4", format_blank=True),
    ]
    root: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": ROOT_GIB}}]
    named = UserData(
        mounts=tuple(mounts), hostname="build-7", settings={"image": "app", "ports": "80:80 443:443"}
    )
    user_data = named.as_json()
    instance_id = tiny_cloud.launch_tiny(UserData=user_data, BlockDeviceMappings=root)
    guest = tiny_cloud.login(instance_id)

    # The root reaches the end of its volume, which the table says at both ends; sshd did not wait for it.
    wait_until(guest, f"[ $({SIZE_MIB.format('/')}) -gt {(ROOT_GIB - 1) * 1024} ]")
    sectors = int(guest.run("cat /sys/block/nvme0n1/size"))
    assert sectors == ROOT_GIB * 2**21
    for sector in (1, sectors - 1):
        header = f"dd if=/dev/nvme0n1 bs=512 skip={sector} count=1 2>/dev/null | head -c 8"
        assert guest.run(header) == "EFI PART"
    assert "root volume" not in console(tiny_cloud, instance_id), "nothing to complain about"
    table = guest.run(TABLE.format(sectors - 34))

    # Volumes that come after the start are formatted and mounted when they are there, /data/late after /data.
    wait_for_line(tiny_cloud, instance_id, f"waiting for volume {blank}, to be mounted on /data: ")
    assert phase(guest, "mounted")["state"] == "running"
    assert f"waiting for volume {blank}" in phase(guest, "mounted")["reason"]
    ec2.attach_volume(VolumeId=late, InstanceId=instance_id, Device="/dev/sdg")
    guest.device(late)
    ec2.attach_volume(VolumeId=blank, InstanceId=instance_id, Device="/dev/sdf")
    wait_until(guest, "grep -q ' /data ext4 ' /proc/mounts")
    wait_until(guest, "grep -q ' /data/late ext4 ' /proc/mounts")
    guest.run("instant-init await mounted")
    assert phase(guest, "mounted")["state"] == "done"
    guest.run("echo precious >/data/file; echo later >/data/late/file")
    assert guest.run("ls -ld /data | awk '{print $3}'") == "nobody"
    assert guest.run("ls -ld /data/late | awk '{print $3}'") == "root"

    # The name, and the settings, which root alone reads.
    assert phase(guest, "user-data")["state"] == "done"
    assert guest.run("hostname") == "build-7"
    assert guest.run("cat /run/instant-env/settings/ports") == "80:80 443:443"
    assert guest.status("su -s /bin/sh nobody -c 'cat /run/instant-env/settings/ports'") != 0
    assert "mounted" in guest.run("su -s /bin/sh nobody -c 'cat /run/instant-env/phases.json'")

    # One with something on it that no tool knows, and one with an XFS that is smaller than its device.
    for volume_id, name in ((odd, "/dev/sdh"), (xfs, "/dev/sdi")):
        ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=name)
    guest.run(f"echo nobody knows this | dd of={guest.device(odd)} seek=1000 conv=fsync")
    before = guest.run(BEGINNING.format(guest.device(odd)))
    put_file_system(guest, "xfs", XFS_MIB, guest.device(xfs), tmp_path)
    stop(tiny_cloud, instance_id)

    mounts += [Mount(odd, "/odd", "ext4", format_blank=True), Mount(xfs, "/xfs")]
    user_data = UserData(mounts=tuple(mounts)).as_json()
    ec2.modify_instance_attribute(InstanceId=instance_id, UserData={"Value": user_data.encode()})
    guest = start(tiny_cloud, instance_id)
    # What was there is mounted and kept, what is not known is left alone, and no table is written.
    wait_until(guest, "grep -q precious /data/file && grep -q later /data/late/file")
    wait_for_line(tiny_cloud, instance_id, f"volume {odd} is not mounted on /odd: .* is not blank")
    assert guest.status("instant-init await mounted") == 1
    assert f"volume {odd} is not mounted on /odd" in phase(guest, "mounted")["reason"]
    assert guest.run(BEGINNING.format(guest.device(odd))) == before
    assert guest.run(TABLE.format(sectors - 34)) == table

    wait_until(guest, "grep -q ' /xfs xfs ' /proc/mounts")
    assert int(guest.run(SIZE_MIB.format("/xfs"))) < XFS_MIB
    guest.run("instant-init grow /xfs")
    assert int(guest.run(SIZE_MIB.format("/xfs"))) > 900
    assert "unmount" not in stop(tiny_cloud, instance_id)
