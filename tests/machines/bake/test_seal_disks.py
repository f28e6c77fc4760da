"""The seal's last lines on a machine: what GRUB and the audit read of its disks afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.init_guest import put_file_system, start, write_file

from instant_env.bake.seal import SEALED, power_off_lines
from instant_env.localec2 import starter

if TYPE_CHECKING:
    from pathlib import Path

    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(1500)]

ZONE = "us-east-1a"
FILES = 6000
SIZE_MIB = 320
#: A volume at which the kernel needs seconds for what is dirty, however fast this machine is.
OPERATIONS_PER_SECOND = 400
#: Without its journal replayed, as GRUB reads: xfs(5), ext4(5).
AS_GRUB = {"xfs": "ro,norecovery", "ext4": "ro,noload"}
FILL = "i=0; while [ $i -lt {files} ]; do echo $i >{directory}/$i; i=$((i + 1)); done"


def test_no_file_system_is_imaged_while_it_is_writable(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    """6,000 dirty inodes on each, and a boot entry that was just edited, on slow disks."""
    instance_id = tiny_cloud.launch_tiny()
    guest = tiny_cloud.login(instance_id)
    volumes = {}
    for kind, name in (("xfs", "/dev/sdf"), ("ext4", "/dev/sdg")):
        volumes[kind] = tiny_cloud.ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
        tiny_cloud.ec2.attach_volume(VolumeId=volumes[kind], InstanceId=instance_id, Device=name)
        device = guest.device(volumes[kind])
        put_file_system(guest, kind, SIZE_MIB, device, tmp_path)
        guest.run(f"modprobe {kind}; mkdir /{kind}; mount -t {kind} {device} /{kind}")
        guest.run(f"echo old >/{kind}/entry; sync")
    write_file(guest, "/run/seal", f"set -eu\nexec >/dev/console 2>&1 </dev/null\n{power_off_lines()}")
    starter.inject(tiny_cloud.endpoint, kind="disk", operations_per_second=OPERATIONS_PER_SECOND,
                   instance=instance_id)  # fmt: skip
    fill = "; ".join(FILL.format(files=FILES, directory=f"/{kind}") for kind in volumes)
    edit = "; ".join(f"echo new >/{kind}/entry" for kind in volumes)
    guest.run(f"{fill}; {edit}; setsid sh /run/seal >/dev/null 2>&1 &", timeout_s=600)
    tiny_cloud.wait(instance_id, "stopped", timeout_s=600)
    output = tiny_cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True)["Output"]
    assert SEALED in output
    starter.clear_faults(tiny_cloud.endpoint)

    guest = start(tiny_cloud, instance_id)
    for kind, volume_id in volumes.items():
        mount = f"mount -t {kind} -o {AS_GRUB[kind]} {guest.device(volume_id)} /{kind}"
        guest.run(f"modprobe {kind}; mkdir -p /{kind}; {mount}")
        assert guest.run(f"cat /{kind}/entry") == "new", kind
        assert guest.run(f"ls -d /{kind}/[0-9]* | wc -l") == str(FILES), kind
        assert guest.run(f"cat /{kind}/{FILES - 1}") == str(FILES - 1), kind
