"""The debian-12 base boots as EC2 would boot it: firmware, GRUB, initramfs, systemd, cloud-init, SSH.

One boot of it; every test looks at that machine, or at the image's own bytes, and the last one makes of it
what recipe `minimal` makes. The image is built when it is not cached: one to three minutes, and longer by
emulation (docs/arm64.md).
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.init_guest import console
from support.localec2_cloud import STOCK_TIMEOUT_S

from instant_env.arch import Arch
from instant_env.bake.recipe import load_base, render_script, resolve
from instant_env.cloud.keys import KeyPair
from instant_env.debian.command import search_path
from instant_env.localec2 import starter, stock
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.stock import disk
from instant_env.settings import ROOT, load
from instant_env.ssh.connection import wait_for_login
from instant_env.toolchain import go_build
from instant_env.user_data import UserData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import fabric
    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.timeout(STOCK_TIMEOUT_S)]

BOOT_TIMEOUT_S = 400.0
#: Larger than the image, as a volume may be: root has to grow into it.
VOLUME_GIB = 3
WISHED = KeyPair.generate("wished")

RECIPES = ROOT / "recipes"
UNIT = "instant-init-key.service"
#: RSS of an agent that waits, in KiB. A bound for a leak, not a figure.
MOST_RSS_KIB = 16 * 1024

#: Standard output of a command, run as admin; its failure is the test's.
Run = Callable[[str], str]


@pytest.fixture(scope="module")
def image(guest_arch: Arch) -> stock.StockImage:
    return stock.build("debian-12", guest_arch, load().cache_dir, print)


@pytest.fixture(scope="module")
def instance_id(shared_tiny_cloud: TinyCloud) -> str:
    """cloud-init has no use for this user data, and says so; the key agent of the last test has."""
    root: Any = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": VOLUME_GIB}}]
    return shared_tiny_cloud.launch(
        starter.ensure_stock(shared_tiny_cloud.settings, "debian-12", shared_tiny_cloud.arch),
        KeyName="tests", SecurityGroupIds=[shared_tiny_cloud.group_id], BlockDeviceMappings=root,
        UserData=UserData(ttl_s=3000, ssh_keys=(WISHED.public_key,)).as_json(),
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )  # fmt: skip


def log_in(
    cloud: TinyCloud, instance_id: str, key: KeyPair, timeout_s: float = BOOT_TIMEOUT_S
) -> fabric.Connection:
    address = cloud.wait(instance_id, "running")["PublicIpAddress"]
    return wait_for_login(address, cloud.endpoint.ssh_port, "admin", key, timeout_s=timeout_s)


@pytest.fixture(scope="module")
def connection(shared_tiny_cloud: TinyCloud, instance_id: str) -> Iterator[fabric.Connection]:
    connection = log_in(shared_tiny_cloud, instance_id, shared_tiny_cloud.key)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def run(connection: fabric.Connection) -> Run:
    return lambda command: str(connection.run(command, hide=True, timeout=200).stdout).strip()


def test_login_with_the_key_from_imds(shared_tiny_cloud: TinyCloud, instance_id: str, run: Run) -> None:
    assert run("id -un; sudo -n id -un") == "admin\nroot"
    address = shared_tiny_cloud.describe(instance_id)["PrivateIpAddress"]
    assert run("hostname") == f"ip-{address.replace('.', '-')}"


def test_cloud_init_found_ec2_and_is_content(instance_id: str, run: Run) -> None:
    status = json.loads(run("cloud-init status --wait --format json"))
    assert (status["status"], status["errors"]) == ("done", [])
    result = json.loads(run("cat /run/cloud-init/result.json"))
    assert result["v1"]["datasource"] == "DataSourceEc2Local"
    assert run("cloud-init query instance_id") == instance_id


def test_the_system_is_up_without_failed_units(run: Run) -> None:
    assert run("systemctl is-system-running --wait; systemctl --failed --plain --no-legend") == "running"


def test_it_runs_what_debian_runs(guest_arch: Arch, run: Run) -> None:
    units = (
        "ssh",
        "systemd-networkd",
        "systemd-resolved",
        "systemd-timesyncd",
        "unattended-upgrades",
        "apparmor",
    )
    assert run(f"systemctl is-active {' '.join(units)}").split() == ["active"] * len(units)
    assert f"-cloud-{guest_arch.debian}" in run("uname -r")
    assert "root=PARTUUID=" in run("cat /proc/cmdline")
    assert "10-netplan" in run("networkctl status 'en*' | grep 'Network File'")


def test_grub_started_it_without_waiting(shared_tiny_cloud: TinyCloud, instance_id: str, run: Run) -> None:
    # Not by GetConsoleOutput, which has the last 64 KiB as EC2's has: this was at the beginning.
    directory = Layout.create(shared_tiny_cloud.settings.local_dir).instance(instance_id)
    said = (directory / "console.log").read_text(errors="replace")
    assert "Booting `Debian GNU/Linux'" in said
    assert "Loading initial ramdisk" in said
    assert run("sudo grep -c '^  *set timeout=0' /boot/grub/grub.cfg") != "0"


def test_root_grew_to_the_end_of_the_volume(run: Run) -> None:
    size = int(run("df --output=size --block-size=1 / | tail -1"))
    assert size > (VOLUME_GIB - 0.25) * 1024**3
    assert run("findmnt -no FSTYPE /boot/efi") == "vfat"


def test_identity_was_made_on_this_machine(run: Run) -> None:
    assert len(run("cat /etc/machine-id")) == 32
    keys = run("stat --format=%Y /etc/ssh/ssh_host_ed25519_key; awk '/btime/ {print $2}' /proc/stat")
    made, booted = map(int, keys.split())
    assert made >= booted


def test_the_image_holds_no_identity(image: stock.StockImage, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, raw], check=True)

    def debugfs(command: str) -> str:
        return subprocess.run(
            ["debugfs", "-R", command, f"{raw}?offset={disk.ROOT_START * disk.SECTOR}"],
            env=os.environ | {"PATH": search_path()}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert debugfs("cat /etc/machine-id") == ""
    assert debugfs("cat /etc/hostname") == ""
    assert "ssh_host" not in debugfs("ls /etc/ssh")
    for directory in (
        "/var/lib/cloud/instances",
        "/var/lib/apt/lists",
        "/var/cache/apt",
        "/home",
        "/root/.ssh",
    ):
        names = {line.split("/")[5] for line in debugfs(f"ls -p {directory}").splitlines() if "/" in line}
        assert names <= {".", "..", "lock", "partial"}, directory
    shadow = {line.split(":")[0]: line.split(":")[1] for line in debugfs("cat /etc/shadow").splitlines()}
    assert "admin" not in shadow
    assert all(password and password.strip("!") in ("", "*") for password in shadow.values())


# The last one to use the machine: it changes it, and ends it.


def install(connection: fabric.Connection, arch: Arch) -> None:
    """What the bake does: the binary, and the steps that configure the agent and sshd."""
    binary = go_build("init", arch)
    connection.put(io.BytesIO(binary.read_bytes()), "/tmp/instant-init")  # noqa: S108 - a guest's
    connection.run("sudo install -m 0755 /tmp/instant-init /usr/sbin/instant-init", hide=True)
    recipe, base = resolve(RECIPES, "minimal", "apt"), load_base(RECIPES, "debian-12")
    for step in recipe.steps:
        if step.spec.name in ("key-agent", "sshd"):
            script = render_script(step, recipe, base, arch, {})
            connection.put(io.BytesIO(script.encode()), "/tmp/step")  # noqa: S108 - a guest's
            connection.run("sudo sh /tmp/step", hide=True)


def test_the_key_agent_stays_hands_over_and_ends_the_machine(
    shared_tiny_cloud: TinyCloud, instance_id: str, connection: fabric.Connection
) -> None:
    """`instant-init key-agent` as the unit of systemd that recipe minimal writes."""
    cloud, pushed = shared_tiny_cloud, KeyPair.generate("pushed")
    install(connection, cloud.arch)

    def said(command: str) -> str:
        return str(connection.run(command, hide=True, warn=True).stdout).strip()

    # Started, and ready; it does not go away.
    said(f"sudo systemctl daemon-reload; sudo systemctl start {UNIT}; sudo systemctl restart ssh")
    shown = said(f"systemctl show -p ActiveState -p SubState -p NRestarts {UNIT}").split()
    assert set(shown) == {"ActiveState=active", "SubState=running", "NRestarts=0"}, "in systemd's order"
    assert "ttl_s 3000" in said(f"sudo journalctl -u {UNIT}")
    pid = said(f"systemctl show -P MainPID {UNIT}")
    assert int(said(f"awk '/VmRSS/ {{ print $2 }}' /proc/{pid}/status")) < MOST_RSS_KIB
    log_in(cloud, instance_id, WISHED, timeout_s=30).close()
    timeline = json.loads(said("/usr/sbin/instant-init timeline"))
    assert timeline["pid1"] is False
    assert {"imds_token", "key_written"} <= {mark["name"] for mark in timeline["marks"]}
    assert "denied" in said("/usr/sbin/instant-init key-agent 2>&1"), "by hand it says what it lacks"

    # Root is closed, and a key that is handed over opens.
    assert said("sudo sshd -T | grep -x 'permitrootlogin no'")
    starter.client(cloud.endpoint, "ec2-instance-connect").send_ssh_public_key(
        InstanceId=instance_id, InstanceOSUser="admin", SSHPublicKey=pushed.public_openssh
    )
    log_in(cloud, instance_id, pushed, timeout_s=30).close()

    # The tag shortens its life, and it ends in order.
    at = (datetime.now(UTC) + timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cloud.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at", "Value": at}])
    cloud.wait(instance_id, "stopped", timeout_s=200)
    assert "its time is up: the tag instant-env:expires-at says" in console(cloud, instance_id)
