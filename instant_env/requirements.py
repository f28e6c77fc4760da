"""What this project needs from the machine it runs on, in one table.

`scripts/bootstrap.py` installs from this table before any Python package is there, and `invoke doctor`
checks against it afterwards; so this module uses the standard library only. A requirement is met when its
programs are found or one of its files exists, whatever they came from: a QEMU built from source counts.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

#: mkfs.* and sfdisk live there, and Debian leaves these directories out of an ordinary user's PATH.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class Manager(StrEnum):
    """The package managers whose package names we know."""

    APT = "apt"
    DNF = "dnf"
    BREW = "brew"


class Scope(StrEnum):
    """Which part of the project stops working when the requirement is not met."""

    CORE = "core"
    LOCAL = "local"
    ARM64 = "arm64"
    TESTS = "tests"
    STAND_IN = "stand-in"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One program or file of the system.

    Met when all of ``programs`` are found, all files of one group in ``files`` exist, and all of ``modules``
    can be imported (each only when given). ``apt``, ``dnf`` and ``brew`` name the packages that bring it,
    separated by spaces; empty means that the manager has none. ``rootless_only`` requirements do not concern
    root, those with a ``host`` only machines that call themselves so (`uname -m`), and ``not_on`` names a
    distribution (os-release's ID) that has no such package.
    """

    name: str
    needed_for: str
    scope: Scope
    apt: str
    dnf: str = ""
    brew: str = ""
    programs: tuple[str, ...] = ()
    files: tuple[tuple[str, ...], ...] = ()
    modules: tuple[str, ...] = ()
    rootless_only: bool = False
    host: str = ""
    not_on: str = ""

    def packages(self, manager: Manager) -> list[str]:
        return str(getattr(self, manager.value)).split()

    def where(self) -> str | None:
        """What meets the requirement (paths, for people), or None when it is not met."""
        programs = [find_program(program) for program in self.programs]
        groups = [group for group in self.files if all(os.access(path, os.R_OK) for path in group)]
        if None in programs or (self.files and not groups):
            return None
        if any(find_spec(module) is None for module in self.modules):
            return None
        paths = [path for path in (*programs, *(groups[0] if groups else ())) if path]
        return ", ".join(paths) or f"in {sys.base_prefix}"


#: Ubuntu has Chromium as a snap only (`snap install chromium`), which no package manager of ours installs.
BROWSER = Requirement(
    name="Chromium", needed_for="looking at reports in the tests", scope=Scope.TESTS,
    programs=("chromium", "chromedriver"), apt="chromium chromium-driver", dnf="chromium chromedriver",
    not_on="ubuntu",
)  # fmt: skip

TABLE: tuple[Requirement, ...] = (
    Requirement(
        name="venv", needed_for="making .venv", scope=Scope.CORE,
        modules=("venv", "ensurepip"), apt="python3-venv", dnf="python3", brew="python",
    ),
    Requirement(
        name="CA certificates", needed_for="downloads by TLS", scope=Scope.CORE,
        files=(
            ("/etc/ssl/certs/ca-certificates.crt",),
            ("/etc/pki/tls/certs/ca-bundle.crt",),
            ("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",),
            ("/etc/ssl/cert.pem",),
        ),
        apt="ca-certificates", dnf="ca-certificates", brew="ca-certificates",
    ),
    Requirement(
        name="QEMU", needed_for="machines of the embedded EC2", scope=Scope.LOCAL,
        programs=("qemu-system-x86_64",), apt="qemu-system-x86", dnf="qemu-system-x86-core", brew="qemu",
    ),
    Requirement(
        name="qemu-img", needed_for="disks, volumes and snapshots", scope=Scope.LOCAL,
        programs=("qemu-img",), apt="qemu-utils", dnf="qemu-img", brew="qemu",
    ),
    Requirement(
        name="UEFI firmware", needed_for="booting machines as EC2 does", scope=Scope.LOCAL,
        files=(
            ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
            ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
            ("/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"),
        ),
        apt="ovmf", dnf="edk2-ovmf", brew="qemu",
    ),
    # arm64 machines, which are emulated on an x86_64 host: set-up installs them, since the tests bake one.
    Requirement(
        name="QEMU for arm64", needed_for="arm64 machines of the embedded EC2", scope=Scope.ARM64,
        programs=("qemu-system-aarch64",), apt="qemu-system-arm", dnf="qemu-system-aarch64-core", brew="qemu",
    ),
    Requirement(
        name="UEFI firmware for arm64", needed_for="booting arm64 machines as EC2 does", scope=Scope.ARM64,
        files=(
            ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
            (
                "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
                "/usr/share/edk2/aarch64/vars-template-pflash.raw",
            ),
            ("/opt/homebrew/share/qemu/edk2-aarch64-code.fd", "/opt/homebrew/share/qemu/edk2-arm-vars.fd"),
        ),
        apt="qemu-efi-aarch64", dnf="edk2-aarch64", brew="qemu",
    ),
    Requirement(
        name="QEMU's user emulation", needed_for="building the debian-12 base for arm64", scope=Scope.ARM64,
        programs=("qemu-aarch64-static",), apt="qemu-user-static", dnf="qemu-user-static-aarch64",
        host="x86_64",
    ),
    Requirement(
        name="mmdebstrap", needed_for="building the debian-12 base", scope=Scope.LOCAL,
        programs=("mmdebstrap",), apt="mmdebstrap", dnf="mmdebstrap",
    ),
    Requirement(
        name="Debian's archive keys", needed_for="checking what mmdebstrap fetches", scope=Scope.LOCAL,
        files=(("/usr/share/keyrings/debian-archive-keyring.gpg",),),
        apt="debian-archive-keyring", dnf="debian-keyring",
    ),
    Requirement(
        name="uidmap", needed_for="mmdebstrap without root", scope=Scope.LOCAL,
        programs=("newuidmap", "newgidmap"), apt="uidmap", dnf="shadow-utils", rootless_only=True,
    ),
    Requirement(
        name="mkfs.vfat", needed_for="EFI partitions", scope=Scope.LOCAL,
        programs=("mkfs.vfat",), apt="dosfstools", dnf="dosfstools", brew="dosfstools",
    ),
    Requirement(
        name="mtools", needed_for="filling EFI partitions", scope=Scope.LOCAL,
        programs=("mcopy", "mmd"), apt="mtools", dnf="mtools", brew="mtools",
    ),
    Requirement(
        name="mkfs.ext4", needed_for="root file systems", scope=Scope.LOCAL,
        programs=("mkfs.ext4",), apt="e2fsprogs", dnf="e2fsprogs", brew="e2fsprogs",
    ),
    Requirement(
        name="sfdisk", needed_for="partition tables", scope=Scope.LOCAL,
        programs=("sfdisk",), apt="fdisk", dnf="util-linux",
    ),
    Requirement(
        name="systemd's EFI stub", needed_for="kernel images that the firmware starts", scope=Scope.LOCAL,
        files=(("/usr/lib/systemd/boot/efi/linuxx64.efi.stub",),),
        apt="systemd-boot-efi", dnf="systemd-boot-unsigned",
    ),
    Requirement(
        name="mkfs.xfs", needed_for="a volume with XFS in the tests of init/", scope=Scope.TESTS,
        programs=("mkfs.xfs",), apt="xfsprogs", dnf="xfsprogs",
    ),
    # Debian's dnf and rpm, on packages of the test's own; they do not touch this machine's.
    Requirement(
        name="dnf", needed_for="stripping packages by the real solver in the tests", scope=Scope.TESTS,
        programs=("dnf", "rpm"), apt="dnf rpm", dnf="dnf",
    ),
    Requirement(
        name="rpmbuild", needed_for="packages for those tests", scope=Scope.TESTS,
        programs=("rpmbuild", "createrepo_c"), apt="rpm createrepo-c", dnf="rpm-build createrepo_c",
    ),
    Requirement(
        name="curl and unzip", needed_for="running a recipe's downloads in the tests", scope=Scope.TESTS,
        programs=("curl", "unzip"), apt="curl unzip", dnf="curl unzip", brew="curl unzip",
    ),
    Requirement(
        name="shellcheck", needed_for="checking shell scripts in the tests", scope=Scope.TESTS,
        programs=("shellcheck",), apt="shellcheck", dnf="ShellCheck", brew="shellcheck",
    ),
    Requirement(
        name="OpenSSH's clients", needed_for="logging in as people do in the tests", scope=Scope.TESTS,
        programs=("ssh", "scp", "sftp"), apt="openssh-client", dnf="openssh-clients", brew="openssh",
    ),
    # dnsmasq-base is the program without a service that would answer this machine's own network.
    Requirement(
        name="dnsmasq", needed_for="a real DHCP server in the tests", scope=Scope.TESTS,
        programs=("dnsmasq",), apt="dnsmasq-base", dnf="dnsmasq",
    ),
    Requirement(
        name="iproute2", needed_for="network namespaces in the tests", scope=Scope.TESTS,
        programs=("ip",), apt="iproute2", dnf="iproute",
    ),
    BROWSER,
    # Set-up installs these for `make test-al2023` only; only a kernel that is not in the cache needs them.
    Requirement(
        name="a kernel's build", needed_for="the kernel of the al2023-like base, built once",
        scope=Scope.STAND_IN, programs=("make", "gcc", "ld", "flex", "bison", "bc", "perl", "xz"),
        files=(("/usr/include/libelf.h",),),
        apt="make gcc libc6-dev binutils flex bison bc perl xz-utils libelf-dev",
        dnf="make gcc glibc-devel binutils flex bison bc perl xz elfutils-libelf-devel", host="x86_64",
    ),
)  # fmt: skip


def find_program(name: str) -> str | None:
    """Path of a program, looking in the sbin directories too."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))
    return shutil.which(name, path=path)


def applicable(
    table: Iterable[Requirement] = TABLE,
    *,
    root: bool | None = None,
    host: str | None = None,
    distribution: str | None = None,
) -> list[Requirement]:
    """The rows that concern this user on this machine (the rest: by default, what runs now)."""
    as_root = os.geteuid() == 0 if root is None else root
    machine = host or platform.machine()
    name = running_distribution() if distribution is None else distribution
    return [
        row
        for row in table
        if not (row.rootless_only and as_root)
        and row.host in ("", machine)
        and not (row.not_on and row.not_on == name)
    ]


def running_distribution() -> str:
    """os-release(5)'s ID of this system; empty where there is no such file."""
    try:
        return platform.freedesktop_os_release().get("ID", "")
    except OSError:
        return ""


def detect_manager() -> Manager | None:
    """The package manager of this machine; a distribution's own goes before Homebrew on Linux."""
    commands = {Manager.APT: "apt-get", Manager.DNF: "dnf", Manager.BREW: "brew"}
    return next((manager for manager, command in commands.items() if find_program(command)), None)


def packages_for(requirements: Iterable[Requirement], manager: Manager) -> list[str]:
    """Package names, each once, in the table's order."""
    return list(dict.fromkeys(name for item in requirements for name in item.packages(manager)))


def install_command(manager: Manager, packages: Sequence[str], *, root: bool | None = None) -> str:
    """The line to paste into a shell. Empty when there is nothing to install."""
    if not packages:
        return ""
    as_root = os.geteuid() == 0 if root is None else root
    sudo = "" if as_root or manager is Manager.BREW else "sudo "
    names = " ".join(packages)
    if manager is Manager.APT:
        return f"{sudo}apt-get update && {sudo}apt-get install --no-install-recommends {names}"
    if manager is Manager.DNF:
        return f"{sudo}dnf install --setopt=install_weak_deps=False {names}"
    return f"brew install {names}"


def disk_free_gib(path: Path) -> float:
    """Free space, in GiB, where ``path`` is or would be made."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free / 2**30
