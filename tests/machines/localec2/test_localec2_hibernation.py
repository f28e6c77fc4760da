"""A guest sleeps and goes on: the same boot, the same processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.init_guest import HIBERNATION, start, stop, wait_until
from support.tiny_cloud import KEY_NAME, Guest

from instant_env.arch import Arch
from instant_env.debian.command import search_path
from instant_env.localec2 import starter, stock
from instant_env.localec2.instances.hibernation import SLEEP_TIMEOUT_S
from instant_env.ssh.connection import wait_for_login

if TYPE_CHECKING:
    from pathlib import Path

    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.only_x86_64(HIBERNATION)]


def encrypted_root(size_gib: int) -> Any:
    return [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeSize": size_gib}}]


def without_swap(tiny_cloud: TinyCloud, directory: Path) -> str:
    """The tiny AMI without the partition that its kernel's `resume=` names, as custom-init AMIs are."""
    image = stock.build("tiny", Arch.X86_64, tiny_cloud.settings.cache_dir, print)
    raw, disk = directory / "disk.raw", directory / "disk.qcow2"
    commands: list[list[str | Path]] = [
        ["qemu-img", "convert", "-O", "raw", image.disk, raw],
        ["sfdisk", "--quiet", "--delete", raw, "2"],
        ["qemu-img", "convert", "-O", "qcow2", raw, disk],
    ]
    for command in commands:
        environment = os.environ | {"PATH": search_path()}
        subprocess.run(command, check=True, env=environment, capture_output=True)
    changes = {"disk": disk, "digest": "without-swap", "name": "tiny-without-swap"}
    return starter.register(tiny_cloud.endpoint, image.model_copy(update=changes))


def test_a_guest_hibernates_and_goes_on(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    """Its init makes the swap behind the root, which takes the rest of the volume."""
    instance_id = tiny_cloud.launch(
        without_swap(tiny_cloud, tmp_path), KeyName=KEY_NAME, SecurityGroupIds=[tiny_cloud.group_id],
        HibernationOptions={"Configured": True}, BlockDeviceMappings=encrypted_root(3),
    )  # fmt: skip
    guest = tiny_cloud.login(instance_id)
    assert guest.run("imds meta-data/hibernation/configured") == "true"
    wait_until(guest, "grep -qv '^0:0$' /sys/power/resume")
    memory_kib = int(guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    swap_kib, root_kib = (int(guest.run(f"cat /sys/class/block/nvme0n1p{n}/size")) // 2 for n in (2, 1))
    assert memory_kib < swap_kib < memory_kib + 64 * 1024
    # 560 MiB lie in front of tiny's root.
    assert root_kib + swap_kib > (3 * 1024 - 560 - 64) * 1024, "the root has what is left"
    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    guest.run("(sleep 100000 & echo $! >/run/sleeper) </dev/null >/dev/null 2>&1")
    uptime_s = float(guest.run("cut -d' ' -f1 /proc/uptime"))

    tiny_cloud.hibernate(instance_id)
    stopped = tiny_cloud.wait(instance_id, "stopped", timeout_s=150)
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedHibernate", stopped["StateReason"]

    tiny_cloud.ec2.start_instances(InstanceIds=[instance_id])
    again = tiny_cloud.login(instance_id)
    assert again.run("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert float(again.run("cut -d' ' -f1 /proc/uptime")) > uptime_s
    assert again.status("kill -0 $(cat /run/sleeper)") == 0, "its processes live on"

    # A start that is a boot finds the partition that was made.
    stop(tiny_cloud, instance_id)
    guest = start(tiny_cloud, instance_id)
    assert guest.run("cat /sys/power/resume") == guest.run("cat /sys/class/block/nvme0n1p2/dev")
    assert int(guest.run("cat /sys/class/block/nvme0n1p1/size")) // 2 == root_kib


def test_a_guest_that_only_suspends_to_memory_is_shut_down(tiny_cloud: TinyCloud) -> None:
    """What a stock systemd does at the sleep key. It is woken up and shut down.

    The reason says so where a switch lets it; EC2's stays that of a hibernation.
    """
    tiny_cloud.strict(hibernation_reason_kept=False)
    instance_id = tiny_cloud.launch_tiny(
        HibernationOptions={"Configured": True}, BlockDeviceMappings=encrypted_root(2)
    )
    guest = tiny_cloud.login(instance_id)
    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    guest.run("echo kept >/var/kept; sync")
    # tiny's own init ignores the key when there is an offset, and this takes its place.
    guest.run("echo 1 >/sys/power/resume_offset")
    guest.run(
        "for d in /dev/input/event*; do (dd if=$d bs=24 count=1 && echo mem >/sys/power/state) "
        "</dev/null >/dev/null 2>&1 & done"
    )
    # A key that is pressed before they read is nobody's.
    wait_until(
        guest,
        "n=0; for f in /proc/[0-9]*/fd/0; do "
        "case $(readlink $f) in /dev/input/event*) n=$((n+1));; esac; done; "
        "[ $n -ge $(ls /dev/input/event* | wc -l) ]",
    )
    asked = time.monotonic()
    tiny_cloud.hibernate(instance_id)
    stopped = tiny_cloud.wait(instance_id, "stopped", timeout_s=250)
    assert "did not hibernate" in stopped["StateReason"]["Message"], stopped["StateReason"]
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert time.monotonic() - asked < SLEEP_TIMEOUT_S, "it was seen to sleep, not waited for"
    tiny_cloud.ec2.start_instances(InstanceIds=[instance_id])
    again = tiny_cloud.login(instance_id)
    assert again.run("cat /proc/sys/kernel/random/boot_id") != boot_id
    assert again.run("cat /var/kept") == "kept"


#: A stock Debian guest prepared as its user would: a swap file, its place on the kernel's command line, and
#: systemd-logind told what the sleep key is for. On EC2 ec2-hibinit-agent does the same.
_PREPARE_DEBIAN = r"""set -e
fallocate -l 1200M /swap
chmod 600 /swap
mkswap /swap >/dev/null
swapon /swap
echo '/swap none swap sw 0 0' >>/etc/fstab
offset=$(filefrag -v /swap | awk '$1 == "0:" { print $4 + 0 }')
uuid=$(findmnt -no PARTUUID /)
echo "GRUB_CMDLINE_LINUX=\"\$GRUB_CMDLINE_LINUX resume=PARTUUID=$uuid resume_offset=$offset\"" \
    >/etc/default/grub.d/90-resume.cfg
update-grub 2>&1
mkdir -p /etc/systemd/logind.conf.d
printf "[Login]\nHandleSuspendKey=hibernate\nHandleHibernateKey=hibernate\n" \
    >/etc/systemd/logind.conf.d/hibernate.conf
# What the next boot's command line will say, this kernel has to be told.
echo "$offset" >/sys/power/resume_offset
cat "/sys/class/block/$(basename "$(findmnt -no SOURCE /)")/dev" >/sys/power/resume || true
systemctl restart systemd-logind
grep -c resume_offset /boot/grub/grub.cfg
"""


@pytest.mark.timeout(1500)
def test_stock_debian_hibernates_and_goes_on(tiny_cloud: TinyCloud) -> None:
    image_id = starter.ensure_stock(tiny_cloud.settings, "debian-12", Arch.X86_64)
    instance_id = tiny_cloud.launch(
        image_id, KeyName=KEY_NAME, SecurityGroupIds=[tiny_cloud.group_id],
        HibernationOptions={"Configured": True}, BlockDeviceMappings=encrypted_root(4),
    )  # fmt: skip

    def login() -> Guest:
        address = tiny_cloud.wait(instance_id, "running")["PublicIpAddress"]
        port = tiny_cloud.endpoint.ssh_port
        return Guest(instance_id, wait_for_login(address, port, "admin", tiny_cloud.key, timeout_s=600))

    guest = login()
    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    guest.run(f"sudo sh -c {shlex.quote(_PREPARE_DEBIAN)}", timeout_s=300)
    guest.run("(sleep 100000 & echo $! >/tmp/sleeper) </dev/null >/dev/null 2>&1")

    tiny_cloud.hibernate(instance_id)
    stopped = tiny_cloud.wait(instance_id, "stopped", timeout_s=300)
    console = tiny_cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True)["Output"][-3000:]
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedHibernate", console

    tiny_cloud.ec2.start_instances(InstanceIds=[instance_id])
    again = login()
    assert again.run("cat /proc/sys/kernel/random/boot_id") == boot_id
    assert again.status("kill -0 $(cat /tmp/sleeper)") == 0, "its processes live on"
