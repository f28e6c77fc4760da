"""The debian-12 base boots as EC2 would boot it: firmware, GRUB, initramfs, systemd, cloud-init, SSH.

One boot of the cached image under QEMU, with IMDS behind user-mode networking; every test looks at that
machine, or at the image's own bytes. The image is built when it is not cached (one to three minutes).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from instant_env.arch import Arch
from instant_env.localec2 import stock
from instant_env.localec2.stock import disk
from instant_env.localec2.stock.command import search_path
from instant_env.settings import load
from instant_env.toolchain import go_build

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

OVMF = Path("/usr/share/OVMF")
ADDRESS, MAC = "172.31.5.10", "02:00:ac:1f:05:0a"
HOST_NAME = "ip-172-31-5-10"
INSTANCE_ID = "i-0123456789abcdef0"
BOOT_TIMEOUT_S = 300
#: Larger than the image, as a volume may be: root has to grow into it.
VOLUME_GIB = 3


@dataclass
class Machine:
    """A running guest: where its SSH is forwarded to, who may log in, what its console said."""

    port: int
    key: asyncssh.SSHKey
    serial: Path
    login_s: float = 0.0

    async def connect(self) -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            "127.0.0.1", self.port, username="admin", client_keys=[self.key], known_hosts=None, config=None,
            agent_path=None, connect_timeout=10, login_timeout=60,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """Standard output of ``command``, run as admin; its failure is the test's."""

        async def once() -> str:
            async with await self.connect() as connection:
                result = await connection.run(command, check=True)
            return str(result.stdout).strip()

        return asyncio.run(once())

    async def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Return when admin got in; fail when QEMU ends or the time is over."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            assert process.poll() is None, "QEMU ended"
            try:
                async with await self.connect():
                    return
            except (OSError, asyncssh.Error):
                await asyncio.sleep(0.2)
        pytest.fail(f"no login within {BOOT_TIMEOUT_S} s; console:\n{self.serial.read_text()[-2000:]}")


def metadata(key: asyncssh.SSHKey) -> dict[str, object]:
    """The imds helper's file: what Debian's cloud-init asks for."""
    fqdn = f"{HOST_NAME}.ec2.internal"
    interface = {
        "device-number": "0", "interface-id": "eni-0123456789abcdef0", "local-hostname": fqdn,
        "local-ipv4s": ADDRESS, "mac": MAC, "owner-id": "123456789012", "security-groups": "default",
        "subnet-id": "subnet-1", "subnet-ipv4-cidr-block": "172.31.0.0/20", "vpc-id": "vpc-1",
        "vpc-ipv4-cidr-block": "172.31.0.0/16", "vpc-ipv4-cidr-blocks": "172.31.0.0/16",
    }  # fmt: skip
    tree = {
        "ami-id": "ami-0123456789abcdef0", "ami-launch-index": "0", "ami-manifest-path": "(unknown)",
        "hostname": fqdn, "instance-id": INSTANCE_ID, "instance-type": "t3.micro", "local-hostname": fqdn,
        "local-ipv4": ADDRESS, "mac": MAC, "network": {"interfaces": {"macs": {MAC: interface}}},
        "placement": {"availability-zone": "us-east-1a", "region": "us-east-1"},
        "public-keys": {"0": {"openssh-key": key.export_public_key().decode().strip()}},
        "reservation-id": "r-0123456789abcdef0", "security-groups": "default",
        "services": {"domain": "amazonaws.com", "partition": "aws"},
    }  # fmt: skip
    document = {"accountId": "123456789012", "architecture": "x86_64", "instanceId": INSTANCE_ID}
    return {
        "version": 1, "token_key": secrets.token_hex(32), "http_tokens": "required",
        "http_endpoint": "enabled", "instance_tags": False, "tags": {}, "user_data_base64": None,
        "tree": tree, "key_names": ["test"], "document": document | {"region": "us-east-1"},
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def qemu(directory: Path, port: int, imds: Path) -> list[str]:
    """A machine like a t3.micro: UEFI, NVMe root, EC2's SMBIOS identity, IMDS at its address."""
    identity = "ec2e1916-9099-7caf-fd21-012345abcdef"
    network = (
        f"user,id=n,net=160.0.0.0/4,host=172.31.0.1,dns=172.31.0.2,dhcpstart={ADDRESS},restrict=on,"
        f"hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:22,"
        f"guestfwd=tcp:169.254.169.254:80-cmd:{imds} --metadata {directory / 'metadata.json'}"
    )
    return [
        "nice", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35",
        "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}",
        "-drive", f"if=pflash,format=raw,unit=1,file={directory / 'vars.fd'}",
        "-drive", f"if=none,id=d,format=qcow2,file={directory / 'root.qcow2'},discard=unmap",
        "-device", "nvme,drive=d,serial=vol0123456789abcdef0",
        "-netdev", network, "-device", f"virtio-net-pci,netdev=n,mac={MAC},romfile=",
        "-device", "virtio-rng-pci", "-serial", f"file:{directory / 'serial.log'}",
        "-smbios", f"type=1,manufacturer=Amazon EC2,uuid={identity},serial={identity}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def image() -> stock.StockImage:
    return stock.build("debian-12", Arch.X86_64, load().cache_dir, print)


@pytest.fixture(scope="module")
def machine(image: stock.StockImage) -> Iterator[Machine]:
    imds = go_build("instant_env/localec2/imds/cmd/imds", Arch.X86_64)
    directory = Path(tempfile.mkdtemp(prefix="stock-boot."))
    machine = Machine(free_port(), asyncssh.generate_private_key("ssh-ed25519"), directory / "serial.log")
    (directory / "metadata.json").write_text(json.dumps(metadata(machine.key)))
    shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", directory / "vars.fd")
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk)]
    subprocess.run([*overlay, str(directory / "root.qcow2"), f"{VOLUME_GIB}G"], check=True)
    started = time.monotonic()
    process = subprocess.Popen(qemu(directory, machine.port, imds))
    try:
        asyncio.run(machine.wait(process))
        machine.login_s = time.monotonic() - started
        yield machine
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def test_login_with_the_key_from_imds(machine: Machine) -> None:
    print(f"QEMU start to SSH authenticated: {machine.login_s:.1f} s")
    assert machine.run("id -un; sudo -n id -un") == "admin\nroot"
    assert machine.run("hostname") == HOST_NAME


def test_cloud_init_found_ec2_and_is_content(machine: Machine) -> None:
    status = json.loads(machine.run("cloud-init status --wait --format json"))
    assert (status["status"], status["errors"]) == ("done", [])
    result = json.loads(machine.run("cat /run/cloud-init/result.json"))
    assert result["v1"]["datasource"] == "DataSourceEc2Local"
    assert machine.run("cloud-init query instance_id") == INSTANCE_ID


def test_the_system_is_up_without_failed_units(machine: Machine) -> None:
    assert (
        machine.run("systemctl is-system-running --wait; systemctl --failed --plain --no-legend") == "running"
    )


def test_it_runs_what_debian_runs(machine: Machine) -> None:
    units = (
        "ssh",
        "systemd-networkd",
        "systemd-resolved",
        "systemd-timesyncd",
        "unattended-upgrades",
        "apparmor",
    )
    assert machine.run(f"systemctl is-active {' '.join(units)}").split() == ["active"] * len(units)
    assert "-cloud-amd64" in machine.run("uname -r")
    assert "root=PARTUUID=" in machine.run("cat /proc/cmdline")
    assert "10-netplan" in machine.run("networkctl status 'en*' | grep 'Network File'")


def test_grub_started_it_without_waiting(machine: Machine) -> None:
    console = machine.serial.read_text(errors="replace")
    assert "Booting `Debian GNU/Linux'" in console
    assert "Loading initial ramdisk" in console
    assert machine.run("sudo grep -c '^  *set timeout=0' /boot/grub/grub.cfg") != "0"


def test_root_grew_to_the_end_of_the_volume(machine: Machine) -> None:
    size = int(machine.run("df --output=size --block-size=1 / | tail -1"))
    assert size > (VOLUME_GIB - 0.25) * 1024**3
    assert machine.run("findmnt -no FSTYPE /boot/efi") == "vfat"


def test_identity_was_made_on_this_machine(machine: Machine) -> None:
    assert len(machine.run("cat /etc/machine-id")) == 32
    keys = machine.run("stat --format=%Y /etc/ssh/ssh_host_ed25519_key; awk '/btime/ {print $2}' /proc/stat")
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
