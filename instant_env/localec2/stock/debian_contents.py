"""What is in the debian-12 base: packages, files and the script that finishes it. Data, no actions.

Everything follows Debian's own build of its EC2 image, debian-cloud-images by the Debian cloud team
(https://salsa.debian.org/cloud-team/debian-cloud-images; FAI classes DEBIAN, BOOKWORM, CLOUD, EC2,
SYSTEM_BOOT, EXTRAS, LINUX_VARIANT_CLOUD, TIME_SYSTEMD, GRUB_CLOUD). docs/bases.md lists every difference
and the direction in which it biases a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instant_env.arch import Arch
from instant_env.debian.mirrors import SUITE
from instant_env.localec2.stock.disk import Identifiers

#: By FAI class. Debian installs them without recommended packages on top of debootstrap's minbase.
PACKAGES = {
    "CLOUD": ("openssh-server", "ssh-import-id", "cloud-initramfs-growroot"),
    "EC2": ("awscli", "cloud-init", "cloud-guest-utils", "amazon-ec2-utils"),
    "SYSTEM_BOOT": (
        "sudo", "libpam-systemd", "systemd-resolved", "libnss-myhostname", "netplan.io", "polkitd",
        "unattended-upgrades", "apparmor", "zstd", "apt-utils", "init", "iptables", "iputils-ping", "less",
        "nano", "netbase", "vim-tiny", "whiptail",
    ),
    "TIME_SYSTEMD": ("systemd-timesyncd",),
    "EXTRAS": (
        "apt-listchanges", "bash-completion", "bind9-host", "man-db", "manpages", "socat", "pciutils",
        "reportbug", "traceroute", "vim", "psmisc", "tcpdump", "ca-certificates", "curl", "ethtool",
        "uuid-runtime", "screen", "xz-utils",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """Boot loader of an architecture: packages, and the signed files that grub-install would copy."""

    packages: tuple[str, ...]
    grub_target: str
    shim: str
    grub: str
    mok_manager: str
    fallback: str
    fallback_list: str

    def esp_files(self, efi_name: str) -> dict[str, str]:
        """Path on the EFI system partition -> path in the root tree, for the files that packages ship.

        As `grub-install --uefi-secure-boot --force-extra-removable`: under EFI/debian, and again where
        firmware without a boot entry looks. Fallback is left out there: it would write a boot entry to
        each machine's fresh variable store.
        """
        shim_dir, grub_dir = "usr/lib/shim", f"usr/lib/grub/{self.grub_target}-signed"
        return {
            f"EFI/BOOT/{efi_name}": f"{shim_dir}/{self.shim}.signed",
            f"EFI/BOOT/{self.grub}": f"{grub_dir}/{self.grub}.signed",
            f"EFI/BOOT/{self.mok_manager}": f"{shim_dir}/{self.mok_manager}.signed",
            f"EFI/debian/{self.shim}": f"{shim_dir}/{self.shim}.signed",
            f"EFI/debian/{self.grub}": f"{grub_dir}/{self.grub}.signed",
            f"EFI/debian/{self.mok_manager}": f"{shim_dir}/{self.mok_manager}.signed",
            f"EFI/debian/{self.fallback}": f"{shim_dir}/{self.fallback}.signed",
            f"EFI/debian/{self.fallback_list}": f"{shim_dir}/{self.fallback_list}",
        }


LOADERS = {
    Arch.X86_64: Loader(
        packages=("linux-image-cloud-amd64", "grub-cloud-amd64"),
        grub_target="x86_64-efi",
        shim="shimx64.efi",
        grub="grubx64.efi",
        mok_manager="mmx64.efi",
        fallback="fbx64.efi",
        fallback_list="BOOTX64.CSV",
    ),
    Arch.ARM64: Loader(
        packages=("linux-image-cloud-arm64", "grub-efi-arm64", "grub-efi-arm64-signed", "shim-signed"),
        grub_target="arm64-efi",
        shim="shimaa64.efi",
        grub="grubaa64.efi",
        mok_manager="mmaa64.efi",
        fallback="fbaa64.efi",
        fallback_list="BOOTAA64.CSV",
    ),
}


def packages(arch: Arch) -> tuple[str, ...]:
    """All packages to install, sorted."""
    return tuple(sorted({*LOADERS[arch].packages, *(name for names in PACKAGES.values() for name in names)}))


@dataclass(frozen=True)
class File:
    """A file of the image; the path is absolute inside it."""

    path: str
    text: str
    mode: int = 0o644


#: In place before the packages, because the initramfs is made while they are configured.
EARLY_FILES = (
    File("/etc/modprobe.d/blacklist.conf", "blacklist floppy\nblacklist pcspkr\n"),
    File(
        "/etc/initramfs-tools/scripts/init-top/no-v6-dad.sh",
        """#!/bin/sh
# EC2 hands out IPv6 addresses that nobody else has: do not wait for duplicate address detection.
if [ "$1" = prereqs ]; then
    exit 0
fi
. /scripts/functions
for scope in all default; do
    echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad
done
log_success_msg "Disabled IPv6 DAD"
""",
        0o755,
    ),
)

#: Where the files of the build lie in the chroot; removed at its end.
SCRATCH = "/tmp/stock"  # noqa: S108 (inside the chroot)

#: The kernel's package and later a trigger both make an initramfs; where programs are emulated each takes
#: minutes (docs/arm64.md). A stand-in waits for both, and _MAKE_INITRAMFS makes the one that stays.
POSTPONE_INITRAMFS = (
    "dpkg-divert --quiet --local --rename --divert /usr/sbin/update-initramfs.real --add"
    " /usr/sbin/update-initramfs && printf '#!/bin/sh\\nexit 0\\n' >/usr/sbin/update-initramfs"
    " && chmod 0755 /usr/sbin/update-initramfs"
)
_MAKE_INITRAMFS = """rm /usr/sbin/update-initramfs
dpkg-divert --quiet --local --rename --remove /usr/sbin/update-initramfs
update-initramfs -c -k all
"""

#: Without what xfs.py cannot keep: bytecode that goes by the time of its source, and ping's capability, of
#: which it has no need: systemd opens net.ipv4.ping_group_range to everybody.
FOR_XFS = """python3 -m compileall -q -f --invalidation-mode unchecked-hash \\
    /usr/lib/python3 /usr/lib/python3.11 || true
cp /usr/bin/ping /usr/bin/ping.plain
chmod 0755 /usr/bin/ping.plain
mv /usr/bin/ping.plain /usr/bin/ping
"""

_NETPLAN = """network:
    version: 2
    ethernets:
        all-en:
            match:
                name: en*
            dhcp4: true
            dhcp4-overrides:
                use-domains: true
            dhcp6: true
            dhcp6-overrides:
                use-domains: true
        all-eth:
            match:
                name: eth*
            dhcp4: true
            dhcp4-overrides:
                use-domains: true
            dhcp6: true
            dhcp6-overrides:
                use-domains: true
"""

_CLOUD_CFG = """apt:
  generate_mirrorlists: true

system_info:
  default_user:
    name: admin
    gecos: Debian
    shell: /bin/bash
    lock_passwd: True
    groups: [adm, audio, cdrom, dialout, dip, floppy, netdev, plugdev, sudo, video]
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
  package_mirrors:
    - arches: [default]
      failsafe:
        primary: https://cdn-aws.deb.debian.org/debian
        security: https://cdn-aws.deb.debian.org/debian-security
"""

_SOURCES = f"""Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: {SUITE} {SUITE}-updates {SUITE}-backports
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: {SUITE}-security
Components: main
"""

#: Answers for grub-mkconfig, which would ask the kernel about mounted devices: in a chroot there are none.
_GRUB_PROBE = """#!/bin/sh
for argument; do
    case "$argument" in
    --target=device) echo "PARTUUID={root_partition}" ;;
    --target=partuuid) echo "{root_partition}" ;;
    --target=fs_uuid) echo "{root_filesystem}" ;;
    --target=fs) echo {grub_filesystem} ;;
    --target=partmap) echo gpt ;;
    --target=compatibility_hint) echo hd0,gpt1 ;;
    --target=hints_string) echo "--hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1 --hint-baremetal=ahci0,gpt1" ;;
    esac
done
"""

_FINISH = """#!/bin/sh
set -eu

{prelude}# The rest of what grub-install does, except the EFI system partition: that is filled outside.
mkdir -p /boot/efi /boot/grub/{grub_target} /boot/grub/fonts
cp /usr/lib/grub/{grub_target}/*.mod /usr/lib/grub/{grub_target}/*.lst /boot/grub/{grub_target}/
cp /usr/share/grub/unicode.pf2 /boot/grub/fonts/
grub-editenv /boot/grub/grubenv create
pkgdatadir={scratch} grub-mkconfig -o /boot/grub/grub.cfg

sed -i -e 's/^#PasswordAuthentication yes/PasswordAuthentication no/' /etc/ssh/sshd_config
echo 'ClientAliveInterval 120' >>/etc/ssh/sshd_config

systemctl enable systemd-networkd.service systemd-resolved.service
passwd --quiet --lock root

dpkg-query --show --showformat='${{Package}} ${{Version}} ${{Architecture}}\\n' >{scratch}/packages

# No machine's identity, no trace of the build.
rm -rf /etc/ssh/ssh_host_* /etc/mailname /etc/.resolv.conf.systemd-resolved.bak /etc/apt/sources.list \\
    /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/log/alternatives.log /var/log/apt \\
    /var/log/bootstrap.log /var/log/dpkg.log /var/cache/apt/* /var/tmp/*
: >/etc/machine-id
: >/etc/hostname
: >/var/lib/dpkg/available
ln -sf /run/systemd/resolve/resolv.conf /etc/resolv.conf
"""


def late_files(arch: Arch, ids: Identifiers, filesystem: Literal["ext4", "xfs"] = "ext4") -> tuple[File, ...]:
    """Configuration of the finished system, and under SCRATCH what finishes it."""
    postponed = arch is Arch.ARM64
    values = {
        "scratch": SCRATCH,
        "prelude": (_MAKE_INITRAMFS if postponed else "") + (FOR_XFS if filesystem == "xfs" else ""),
        "grub_target": LOADERS[arch].grub_target,
        "root_partition": str(ids.root_partition),
        "root_filesystem": str(ids.root_filesystem),
        "grub_filesystem": {"ext4": "ext2", "xfs": "xfs"}[filesystem],
    }
    options = {"ext4": "rw,discard,errors=remount-ro", "xfs": "rw,discard"}[filesystem]
    return (
        File(
            "/etc/fstab",
            f"PARTUUID={ids.root_partition} / {filesystem} {options},x-systemd.growfs 0 1\n"
            f"PARTUUID={ids.esp_partition} /boot/efi vfat defaults 0 0\n",
        ),
        # Without it cloud-init 22.4 tries to generate en_US.UTF-8, and fails.
        File("/etc/default/locale", "LANG=C.UTF-8\n"),
        File("/etc/netplan/90-default.yaml", _NETPLAN),
        File("/etc/cloud/cloud.cfg.d/01_debian_cloud.cfg", _CLOUD_CFG),
        File(
            "/etc/default/grub.d/10_cloud.cfg",
            "# root= names the partition\nGRUB_DISABLE_LINUX_UUID=true\nGRUB_DISABLE_LINUX_PARTUUID=\n",
        ),
        File("/etc/default/grub.d/15_timeout.cfg", "GRUB_TIMEOUT=0\n"),
        File(
            "/etc/systemd/timesyncd.conf.d/01_debian_cloud.conf",
            "# Amazon Time Sync Service\n[Time]\nFallbackNTP=169.254.169.123 fd00:ec2::123\n",
        ),
        File("/etc/apt/sources.list.d/debian.sources", _SOURCES),
        File("/etc/apt/mirrors/debian.list", "https://cdn-aws.deb.debian.org/debian\n"),
        File("/etc/apt/mirrors/debian-security.list", "https://cdn-aws.deb.debian.org/debian-security\n"),
        File(f"{SCRATCH}/grub-probe", _GRUB_PROBE.format(**values), 0o755),
        File(
            f"{SCRATCH}/grub-mkconfig_lib",
            f"grub_probe={SCRATCH}/grub-probe\nexport grub_probe\n. /usr/share/grub/grub-mkconfig_lib\n",
        ),
        File(f"{SCRATCH}/finish", _FINISH.format(**values), 0o755),
    )


def esp_grub_cfg(ids: Identifiers) -> str:
    """The grub.cfg beside GRUB on the EFI system partition: it leads to the one on the root partition."""
    return (
        f"search.fs_uuid {ids.root_filesystem} root hd0,gpt1 \n"
        "set prefix=($root)'/boot/grub'\n"
        "configfile $prefix/grub.cfg\n"
    )
