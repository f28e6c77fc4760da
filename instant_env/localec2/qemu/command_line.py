"""QEMU's command line, as a pure function of what the machine is.

An EC2-like machine: UEFI firmware with variables of its own, the root volume on NVMe with the volume's id as
serial number, virtio network card without a boot ROM, EC2's SMBIOS identity, the serial console in a file. A
few empty PCIe slots take volumes that are attached while it runs.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instant_env.arch import Arch
from instant_env.errors import MissingToolError

#: Empty slots for volumes beside the root.
VOLUME_SLOTS = 4
#: Scheduling priority: the machines must not starve the program that measures them.
NICE = 10
#: Empty slots for network interfaces beside the primary one.
NIC_SLOTS = 1
#: Cache of translated code under emulation, MiB. With 128 a boot of Debian empties it over and over, and took
#: longer in the runs we saw. QEMU's own choice is 1 GiB, of which several machines at once make much.
TRANSLATION_CACHE_MIB = 512

_SYSTEM = {Arch.X86_64: "qemu-system-x86_64", Arch.ARM64: "qemu-system-aarch64"}
_PACKAGES = {
    Arch.X86_64: "qemu-system-x86 qemu-utils ovmf",
    Arch.ARM64: "qemu-system-arm qemu-utils qemu-efi-aarch64",
}
#: (code, variables) in Debian and Ubuntu, Fedora, Homebrew's QEMU.
_FIRMWARE = {
    Arch.X86_64: (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"),
    ),
    Arch.ARM64: (
        ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
        ("/opt/homebrew/share/qemu/edk2-aarch64-code.fd", "/opt/homebrew/share/qemu/edk2-arm-vars.fd"),
    ),
}


@dataclass(frozen=True)
class Platform:
    """What this computer has for one architecture."""

    arch: Arch
    system: str
    firmware_code: Path
    firmware_variables: Path


def find_platform(arch: Arch) -> Platform:
    """The emulator and firmware. Raises MissingToolError that names what is missing."""
    hint = f"sudo apt-get install {_PACKAGES[arch]}"
    for program in (_SYSTEM[arch], "qemu-img"):
        if shutil.which(program) is None:
            raise MissingToolError(f"{program} is not installed", hint=hint)
    for code, variables in _FIRMWARE[arch]:
        if Path(code).is_file() and Path(variables).is_file():
            return Platform(arch, str(shutil.which(_SYSTEM[arch])), Path(code), Path(variables))
    raise MissingToolError(f"no UEFI firmware for {arch} machines", hint=hint)


@dataclass(frozen=True)
class Disk:
    """A volume as a machine sees it."""

    volume_id: str
    path: Path

    @property
    def node(self) -> str:
        """Name of the block device; QEMU allows letters, digits and dashes, 31 characters."""
        return self.volume_id

    @property
    def serial(self) -> str:
        """NVMe serial number: the volume's id without its dash, as on EC2."""
        return self.volume_id.replace("-", "")

    def block_device(self) -> dict[str, Any]:
        """Arguments of blockdev-add, the same on the command line and in QMP."""
        return {
            "driver": "qcow2", "node-name": self.node, "discard": "unmap",
            # Cleared free space stays sparse.
            "detect-zeroes": "unmap",
            # A guest's flush ends in the host's page cache: it survives whatever happens to QEMU, but not a
            # power failure of this host. Each of dpkg's many would otherwise wait for the host's disk.
            "cache": {"direct": False, "no-flush": True},
            "file": {"driver": "file", "filename": str(self.path), "discard": "unmap"},
        }  # fmt: skip

    def device(self, bus: str) -> dict[str, Any]:
        """Arguments of device_add."""
        return {
            "driver": "nvme",
            "id": f"dev-{self.node}",
            "drive": self.node,
            "serial": self.serial,
            "bus": bus,
        }


@dataclass(frozen=True)
class Nic:
    """A network interface as a machine sees it: a virtio card whose cable is a Unix socket of netd."""

    interface_id: str
    mac_address: str
    socket: Path

    @property
    def netdev(self) -> dict[str, Any]:
        """Arguments of netdev_add."""
        address = {"type": "unix", "path": str(self.socket)}
        return {"type": "stream", "id": f"net-{self.interface_id}", "server": False, "addr": address}

    def device(self, bus: str) -> dict[str, Any]:
        """Arguments of device_add.

        romfile: without it the card's boot ROM adds seconds of network boot to a machine that boots from its
        disk.
        """
        return {
            "driver": "virtio-net-pci", "id": f"dev-{self.interface_id}", "netdev": self.netdev["id"],
            "mac": self.mac_address, "bus": bus, "romfile": "",
        }  # fmt: skip


@dataclass(frozen=True)
class MachineSpec:
    """Everything that decides a machine's command line."""

    instance_id: str
    instance_type: str
    platform: Platform
    accelerator: str
    vcpus: int
    memory_mib: int
    disks: tuple[Disk, ...]  # the root first, then one per slot
    nics: tuple[Nic, ...]  # the primary one first, then one per slot
    variables: Path
    console: Path
    qmp: Path
    seed: Path | None = None  # a raw disk that tells a guest what others ask the metadata service for

    @property
    def uuid(self) -> str:
        """EC2's system UUID begins with ec2; here the instance's id makes the rest, so it never changes."""
        digits = ("ec2" + self.instance_id.removeprefix("i-") + "0" * 32)[:32]
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def slot(index: int) -> str:
    """Name of the PCIe slot with this number, counted from 1."""
    return f"slot{index}"


def nic_slot(index: int) -> str:
    """Name of the PCIe slot for the network interface with this device index, counted from 1."""
    return f"nicslot{index}"


def command(spec: MachineSpec) -> list[str]:
    """The whole command line."""
    if not 1 <= len(spec.disks) <= 1 + VOLUME_SLOTS:
        raise ValueError(f"{len(spec.disks)} disks for {1 + VOLUME_SLOTS} places")
    line = ["nice", "-n", str(NICE), spec.platform.system, "-name", spec.instance_id]
    line += ["-nodefaults", "-no-user-config", "-display", "none"]
    line += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    line += ["-machine", machine_type(spec.platform.arch), "-accel", _accelerator(spec.accelerator)]
    line += ["-cpu", _cpu(spec), "-smp", str(spec.vcpus), "-m", f"{spec.memory_mib}M"]
    line += [
        "-drive",
        f"if=pflash,unit=0,format=raw,readonly=on,file={_escaped(spec.platform.firmware_code)}",
    ]
    line += ["-drive", f"if=pflash,unit=1,format=raw,file={_escaped(spec.variables)}"]
    line += ["-smbios", "type=0,vendor=Amazon EC2,version=1.0"]
    line += [
        "-smbios",
        f"type=1,manufacturer=Amazon EC2,product={spec.instance_type},uuid={spec.uuid},serial={spec.uuid}",
    ]
    line += ["-smbios", f"type=2,manufacturer=Amazon EC2,asset={spec.instance_id}"]
    root_bus = "pcie.0"
    for index in range(1, VOLUME_SLOTS + 1):
        line += ["-device", f"pcie-root-port,id={slot(index)},bus={root_bus},chassis={index},slot={index}"]
    for index in range(1, NIC_SLOTS + 1):
        number = VOLUME_SLOTS + index
        line += [
            "-device", f"pcie-root-port,id={nic_slot(index)},bus={root_bus},chassis={number},slot={number}"
        ]  # fmt: skip
    for index, disk in enumerate(spec.disks):
        device = disk.device(slot(index) if index else root_bus)
        if index == 0:
            device["bootindex"] = 0
        line += ["-blockdev", json.dumps(disk.block_device()), "-device", json.dumps(device)]
    for index, nic in enumerate(spec.nics):
        device = nic.device(nic_slot(index) if index else root_bus)
        line += ["-netdev", json.dumps(nic.netdev), "-device", json.dumps(device)]
    if spec.seed is not None:
        line += _seed(spec.seed, root_bus)
    line += ["-device", "virtio-rng-pci"]
    line += ["-chardev", f"file,id=console,path={_escaped(spec.console)}", "-serial", "chardev:console"]
    line += ["-chardev", f"socket,id=qmp,path={_escaped(spec.qmp)},server=on,wait=off"]
    return [*line, "-mon", "chardev=qmp,mode=control"]


def _seed(path: Path, bus: str) -> list[str]:
    """A read-only NVMe disk, whose driver every guest has: cloud-init looks for it before udev has run."""
    drive = {
        "driver": "raw", "node-name": "seed", "read-only": True,
        "file": {"driver": "file", "filename": str(path)},
    }  # fmt: skip
    device = {"driver": "nvme", "id": "dev-seed", "drive": "seed", "serial": "cidata", "bus": bus}
    return ["-blockdev", json.dumps(drive), "-device", json.dumps(device)]


def machine_type(arch: Arch) -> str:
    """QEMU's board."""
    return {Arch.X86_64: "q35", Arch.ARM64: "virt,gic-version=3"}[arch]


def _accelerator(name: str) -> str:
    return f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}" if name == "tcg" else name


def _cpu(spec: MachineSpec) -> str:
    # m6g's core. Kernel to cloud-init's first word, twice each in one run on two busy cores: 34.6 and 36.0 s;
    # max, whose emulated extensions (SVE, pointer authentication) the guest then uses, 41.7 s and over 60 s
    # (docs/arm64.md). `max` without pauth-impdef=on crawls altogether.
    return "neoverse-n1" if spec.platform.arch is Arch.ARM64 and spec.accelerator == "tcg" else "max"


def _escaped(path: Path) -> str:
    """QEMU's option syntax doubles commas in values."""
    return str(path).replace(",", ",,")
