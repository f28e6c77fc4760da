"""What is in the stand-in for Amazon Linux 2023: packages, and who owns which files. Data.

The userland is Debian 12's, which has AL2023's versions of systemd (252) and dnf (4.14); sshd is that of
bookworm-backports, which has ``sshd-session`` as AL2023's 9.9 has. What the recipes touch is laid out as
published facts have it for AL2023: ``tree`` has files by their paths, ``finish.sh`` does the rest in the
chroot. Nothing here comes from Amazon.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from instant_env.localec2.stock.al2023_like import packages
from instant_env.localec2.stock.debian_contents import SCRATCH, File
from instant_env.localec2.stock.disk import MIB, SECTOR, Extent, Geometry, Identifiers

HERE = Path(__file__).parent

#: Sectors as fdisk shows them for AL2023's KVM image (2024-06-24) and lsblk for an AMI (2023.11.20260514): p1
#: is last on the disk. 2 GiB in place of 8, which the seal has to fill.
SIZE_GIB = 2
GEOMETRY = Geometry(
    SIZE_GIB,
    esp=Extent(2048, 20480),
    bios=Extent(22528, 2048),
    root=Extent(24576, SIZE_GIB * 1024 * MIB // SECTOR - 24576 - MIB // SECTOR),
    bios_number=127,
    esp_number=128,
)

PACKAGES = (
    "acct", "acpid", "at", "auditd", "bind9-host", "ca-certificates", "chrony", "cloud-guest-utils",
    "cloud-init", "curl", "dbus", "dnf", "dosfstools", "dracut", "e2fsprogs", "ethtool", "gdisk",
    "grub-common", "grub-efi-amd64-bin", "init", "iproute2", "iputils-ping", "isc-dhcp-client", "kmod",
    "less", "libnss-myhostname", "libpam-systemd", "openssh-client", "openssh-server",
    "openssl", "pciutils", "procps", "psmisc", "rpcbind", "rpm", "screen", "sudo", "sysstat",
    "systemd-resolved", "tcpdump", "traceroute", "vim-tiny", "xfsprogs", "xz-utils", "zstd",
)  # fmt: skip

#: AL2023's package: Debian's packages whose files it owns here. All others of AWS's list are there by name
#: and by dependencies, and own nothing.
OWNS: dict[str, tuple[str, ...]] = {
    "acpid": ("acpid",),
    "at": ("at",),
    "audit": ("auditd",),
    "bind-utils": ("bind9-host",),
    "ca-certificates": ("ca-certificates",),
    "chrony": ("chrony",),
    "cloud-init": ("cloud-init",),
    "cloud-utils-growpart": ("cloud-guest-utils",),
    "dnf": ("dnf",),
    "dnf-data": ("dnf-data",),
    "dosfstools": ("dosfstools",),
    "dracut": ("dracut", "dracut-core"),
    "e2fsprogs": ("e2fsprogs",),
    "ethtool": ("ethtool",),
    "gdisk": ("gdisk",),
    "grub2-tools": ("grub-common",),
    "iproute": ("iproute2",),
    "iputils": ("iputils-ping",),
    "kmod": ("kmod",),
    "less": ("less",),
    "openssh-clients": ("openssh-client",),
    "openssh-server": ("openssh-server", "openssh-sftp-server"),
    "openssl": ("openssl",),
    "pciutils": ("pciutils",),
    "procps-ng": ("procps",),
    "psacct": ("acct",),
    "psmisc": ("psmisc",),
    "python3-configobj": ("python3-configobj",),
    "python3-dnf": ("python3-dnf",),
    "python3-idna": ("python3-idna",),
    "python3-jinja2": ("python3-jinja2",),
    "python3-jsonpatch": ("python3-jsonpatch",),
    "python3-jsonpointer": ("python3-json-pointer",),
    "python3-jsonschema": ("python3-jsonschema",),
    "python3-markupsafe": ("python3-markupsafe",),
    "python3-netifaces": ("python3-netifaces",),
    "python3-oauthlib": ("python3-oauthlib",),
    "python3-pyserial": ("python3-serial",),
    "python3-pyyaml": ("python3-yaml",),
    "python3-requests": ("python3-requests",),
    "python3-urllib3": ("python3-urllib3",),
    "rpcbind": ("rpcbind",),
    "rpm": ("rpm", "rpm-common"),
    "screen": ("screen",),
    "setup": ("base-passwd",),
    "shadow-utils": ("passwd",),
    "sudo": ("sudo",),
    "sysstat": ("sysstat",),
    "systemd": ("systemd",),
    "systemd-pam": ("libpam-systemd",),
    "systemd-resolved": ("systemd-resolved",),
    "systemd-udev": ("udev",),
    "tcpdump": ("tcpdump",),
    "traceroute": ("traceroute",),
    "util-linux": ("util-linux",),
    "vim-minimal": ("vim-tiny",),
    "xfsprogs": ("xfsprogs",),
}
_UNITS = "/usr/lib/systemd/system"
_HELPERS = "/usr/libexec/openssh"
#: Files besides, by globs.
PATHS: dict[str, tuple[str, ...]] = {
    "amazon-chrony-config": ("/etc/chrony/sources.d/link-local.sources",),
    "amazon-ec2-net-utils": (
        "/usr/lib/systemd/network/80-ec2.network",
        f"{_UNITS}/policy-routes@.service",
        f"{_UNITS}/refresh-policy-routes@.service",
        f"{_UNITS}/refresh-policy-routes@.timer",
        "/usr/bin/setup-policy-routes",
    ),
    "amazon-linux-repo-s3": ("/etc/yum.repos.d/amazonlinux.repo",),
    "cloud-init": (
        "/etc/systemd/system/sshd-keygen@.service.d/disable-sshd-keygen-if-cloud-init-active.conf",
    ),
    "ec2-instance-connect": ("/opt/aws/bin/eic_run_authorized_keys",),
    "grub2-efi-x64-ec2": ("/boot/grub2/x86_64-efi/*.mod", "/usr/lib/al2023-like/BOOTX64.EFI"),
    "grub2-tools": ("/usr/sbin/grub2-mkconfig",),
    "grub2-tools-minimal": ("/usr/bin/grub2-editenv",),
    "grubby": ("/usr/sbin/grubby",),
    "kernel": ("/boot/vmlinuz-*", "/boot/config-*", "/usr/lib/modules/*/kernel/**/*.ko"),
    "openssh": ("/usr/bin/ssh-keygen", f"{_HELPERS}/ssh-keysign"),
    "openssh-clients": (f"{_HELPERS}/ssh-pkcs11-helper", f"{_HELPERS}/ssh-sk-helper"),
    "openssh-server": (
        f"{_HELPERS}/sshd-session",
        f"{_HELPERS}/sftp-server",
        f"{_HELPERS}/sshd-keygen",
        f"{_UNITS}/sshd.service",
        f"{_UNITS}/sshd-keygen@.service",
        f"{_UNITS}/sshd-keygen.target",
    ),
    "selinux-policy": ("/etc/selinux/config",),
    "system-release": ("/usr/lib/os-release",),
    "systemd-networkd": (
        "/usr/lib/systemd/systemd-networkd",
        f"{_UNITS}/systemd-networkd.service",
        f"{_UNITS}/systemd-networkd.socket",
    ),
    "update-motd": ("/etc/update-motd.d/*", f"{_UNITS}/update-motd.service", f"{_UNITS}/update-motd.timer"),
}
#: After Amazon's published specification: %preun takes the drop-in of sshd's unit away and starts sshd anew,
#: %postun deletes the user.
PREUN = {
    "ec2-instance-connect": "if [ $1 -eq 0 ]; then\n"
    f"    rm -f {_UNITS}/sshd.service.d/ec2-instance-connect.conf\n"
    "    systemctl daemon-reload || :\n"
    "    systemctl try-restart sshd.service || :\n"
    "fi\n",
}
POSTUN = {
    "ec2-instance-connect": "if [ $1 -eq 0 ]; then userdel ec2-instance-connect >/dev/null 2>&1 || :; fi\n"
}


#: Asked for by path, or by dnf, which takes its release from there.
PROVIDES = {"bash": ("/bin/sh",), "system-release": ("system-release(releasever) = 2023",)}


def package_table() -> list[dict[str, Any]]:
    """What rpm_database.py makes: AWS's list for the standard AMI, and what its packages require."""
    renamed = {old: new for new, old in packages.RENAMED.items()}
    listed = {renamed.get(name, name) for name in packages.names(minimal=False)}
    every = packages.closure({*listed, *packages.REQUIRES, *packages.PROTECTED, *OWNS, *PATHS})
    return [
        {
            "name": name,
            "requires": packages.REQUIRES.get(name, "").split(),
            "provides": PROVIDES.get(name, ()),
            "debian": OWNS.get(name, ()),
            "paths": PATHS.get(name, ()),
            "protected": name in packages.PROTECTED,
            "preun": PREUN.get(name, ""),
            "postun": POSTUN.get(name, ""),
        }
        for name in sorted(every)
    ]


#: Before the packages: sshd from backports.
EARLY_FILES = (
    File(
        "/etc/apt/preferences.d/sshd-session",
        "Package: openssh-server openssh-client openssh-sftp-server\n"
        "Pin: release n=bookworm-backports\nPin-Priority: 900\n",
    ),
)

#: The arguments of a stock AMI (/proc/cmdline of 6.1.97), without the root.
ARGUMENTS = (
    "console=tty0 console=ttyS0,115200n8 nvme_core.io_timeout=4294967295 rd.emergency=poweroff rd.shell=0"
    " selinux=1 security=selinux quiet"
)
#: As two how-tos for AL2023 quote it: everything in _DEFAULT, and no line beside it.
_DEFAULT_GRUB = f"""GRUB_CMDLINE_LINUX_DEFAULT="{ARGUMENTS}"
GRUB_TIMEOUT=0
GRUB_DISABLE_RECOVERY="true"
GRUB_TERMINAL="ec2-console"
GRUB_X86_USE_32BIT="true"
"""
#: In the entry's name: of the machine that the image was made on, and of no other.
_ENTRY_ID = "2fed00000000000000000000000a2023"
#: Modules of dracut for what no machine here has.
_OMITTED = (
    "plymouth crypt dm lvm mdraid multipath nfs network network-legacy network-manager iscsi nbd i18n"
    " qemu-net kernel-network-modules btrfs lunmask"
)


def late_files(ids: Identifiers) -> tuple[File, ...]:
    """Configuration of the finished system, and under SCRATCH what finishes it."""
    values = {
        "scratch": SCRATCH,
        "root_uuid": str(ids.root_filesystem),
        "arguments": ARGUMENTS,
        "entry_id": _ENTRY_ID,
        "omitted": _OMITTED,
    }
    volume = ids.esp_volume.upper()
    return (
        *_tree(),
        File(
            "/etc/fstab",
            f"UUID={ids.root_filesystem} / xfs defaults,noatime 1 1\n"
            f"UUID={volume[:4]}-{volume[4:]} /boot/efi vfat defaults,noatime,uid=0,gid=0,umask=0077,"
            "shortname=winnt,x-systemd.automount 0 2\n",
        ),
        File("/etc/default/grub", _DEFAULT_GRUB),
        File("/usr/sbin/grubby", "#!/usr/bin/python3\n" + _read("grubby.py"), 0o755),
        File("/usr/sbin/grub2-mkconfig", "#!/usr/bin/python3\n" + _read("grub2_mkconfig.py"), 0o755),
        File(f"{SCRATCH}/rpm_database.py", _read("rpm_database.py")),
        File(f"{SCRATCH}/packages.json", json.dumps(package_table())),
        File(
            f"{SCRATCH}/finish",
            "#!/bin/sh\n"
            + "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
            + _read("finish.sh"),
            0o755,
        ),
    )


def _tree() -> list[File]:
    """The files below ``tree``, programs by their first line."""
    paths = sorted(path for path in (HERE / "tree").rglob("*") if path.is_file())
    files = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        mode = 0o755 if text.startswith("#!") else 0o644
        files.append(File(f"/{path.relative_to(HERE / 'tree')}", text, mode))
    return files


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def esp_grub_cfg(ids: Identifiers) -> str:
    """EFI/amzn/grub.cfg: AL2023's four lines, after the one that stands for GRUB's module blscfg."""
    return (
        "source $prefix/blscfg.cfg\n"
        f"search.fs_uuid {ids.root_filesystem} root\n"
        "set no_modules=y\n"
        "set prefix=($root)'/boot/grub2'\n"
        "configfile $prefix/grub.cfg\n"
    )
