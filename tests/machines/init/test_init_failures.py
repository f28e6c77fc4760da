"""What process 1 does about what it cannot mend: it lets somebody in, or says why not and ends."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.init_guest import PATIENCE_S, console, start, stop, wait_for_line, write_file

from instant_env.debian.command import search_path
from instant_env.localec2 import starter, stock
from instant_env.localec2.stock.disk import SECTOR
from instant_env.localec2.stock.tiny_contents import GEOMETRY
from instant_env.toolchain import go_build

if TYPE_CHECKING:
    from pathlib import Path

    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

#: Of a test build: names the work that is to panic.
FAULT = "/etc/instant-init.fault"


def test_a_full_root_a_panic_and_no_server(shared_tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    cloud = shared_tiny_cloud
    instance_id = cloud.launch_tiny()
    guest = cloud.login(instance_id)

    # A root without a block left, and no host keys: those of this start are in memory.
    guest.run("rm /etc/ssh/ssh_host_*; dd if=/dev/zero of=/root/fill bs=1M; sync; "
              "dd if=/dev/zero of=/root/rest bs=1k; sync")  # fmt: skip
    stop(cloud, instance_id)
    guest = start(cloud, instance_id)
    assert guest.run("df -m / | awk 'END {print $4}'") == "0"
    wait_for_line(cloud, instance_id, "host keys: .*no space left on device; this start has its own")
    guest.run("rm /root/fill /root/rest")

    # A panic beside a running sshd: people have minutes to look. In a test build only: it has a tag.
    binary = go_build("init", cloud.arch, tmp_path / "faults", tags="faults")
    guest.connection.put(str(binary), "/usr/sbin/instant-init.faults")
    guest.run(
        "chmod 0755 /usr/sbin/instant-init.faults; mv /usr/sbin/instant-init.faults /usr/sbin/instant-init"
    )
    write_file(guest, FAULT, "root volume")
    stop(cloud, instance_id)
    guest = start(cloud, instance_id)
    wait_for_line(cloud, instance_id, "fatal: root volume: panic: injected fault")
    wait_for_line(cloud, instance_id, r"instant-init: powering off in 5m0s")
    assert cloud.login(instance_id).run("echo in") == "in"

    # No sshd any more, so nobody has a use for the machine: cause and condition on the console, then off.
    write_file(guest, FAULT, "network")
    guest.run("sync; mv /usr/sbin/sshd /usr/sbin/sshd.away")
    guest.run("kill -KILL $(cat /run/sshd.pid)")
    wait_for_line(cloud, instance_id, "fatal: sshd: start /usr/sbin/sshd: no such file or directory")
    cloud.wait(instance_id, "stopped", timeout_s=PATIENCE_S)
    explained(console(cloud, instance_id), nic="eth0")

    # A panic before anybody can log in, or a driver is loaded: the same, and off it stays.
    cloud.ec2.start_instances(InstanceIds=[instance_id])
    cloud.wait(instance_id, "running")
    cloud.wait(instance_id, "stopped", timeout_s=PATIENCE_S)
    said = console(cloud, instance_id)
    assert "fatal: boot: network: panic: injected fault" in said, said
    assert "goroutine " in said, "and where"
    explained(said, nic="lo")


def explained(said: str, nic: str) -> None:
    """A machine that nobody can log in to tells how it stands before it ends."""
    for words in (
        "memory: MemTotal: ", "root: writable, ", f"network: {nic} ", "powering off in 10s",
        "powering off: a fatal error", "powering off now, after ",
    ):  # fmt: skip
        assert words in said, said


def test_a_read_only_root(shared_tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    """ext4 that is marked read-only, as a damaged one or somebody's mistake may be: no remount helps."""
    cloud = shared_tiny_cloud
    image = stock.build("tiny", cloud.arch, cloud.settings.cache_dir, print)
    disk = edited(image.disk, tmp_path, "feature read-only")
    changes = {"disk": disk, "digest": "read-only", "name": "tiny-read-only"}
    image_id = starter.register(cloud.endpoint, image.model_copy(update=changes))
    instance_id = cloud.launch(image_id, KeyName="tests", SecurityGroupIds=[cloud.group_id])
    guest = cloud.login(instance_id)
    assert guest.run("grep ' / ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1") == "ro"
    assert guest.run("touch /file 2>&1; true").endswith("Read-only file system")
    wait_for_line(cloud, instance_id, "the root stays read-only: remount / writable: read-only file system")
    wait_for_line(cloud, instance_id, "host keys: .*; this start has its own, in /run/instant-init/ssh")
    assert guest.run("ls /run/instant-init/ssh").count("_key") == 4
    guest.run("dmesg | grep 'made /run/instant-init/ssh/ssh_host_ed25519_key: ssh-ed25519 '")
    assert "fatal" not in stop(cloud, instance_id)


def edited(disk: Path, directory: Path, command: str) -> Path:
    """A copy of a tiny disk on whose root file system debugfs did something."""
    raw, copy = directory / "disk.raw", directory / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    root = f"{raw}?offset={GEOMETRY.root.start * SECTOR}"
    environment = os.environ | {"PATH": search_path()}
    subprocess.run(["debugfs", "-w", "-R", command, root], check=True, env=environment, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, copy], check=True)
    return copy
