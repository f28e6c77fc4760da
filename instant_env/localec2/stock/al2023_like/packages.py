"""Amazon Linux 2023's packages by name, and what is known of how they depend on each other.

The names are AWS's list of its standard AMI (packages.txt). The dependencies are those that matter for
stripping, most of them Enterprise Linux 9's, not read from AL2023's own packages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LIST = Path(__file__).with_name("packages.txt")

#: package: what it requires.
REQUIRES: dict[str, str] = {
    "amazon-ec2-net-utils": "systemd-networkd systemd-resolved curl-minimal",
    "amazon-ssm-agent": "systemd",
    "aws-cfn-bootstrap": "python3 python-chevron python3-daemon",
    "awscli-2": "python3 python3-awscrt python3-colorama python3-ruamel-yaml python3-prompt-toolkit",
    "chrony": "systemd shadow-utils",
    "cloud-init": "python3 python3-jinja2 python3-jsonpatch python3-oauthlib python3-pyserial python3-pyyaml"
    " python3-requests python3-netifaces openssh-server sudo systemd cloud-init-cfg-ec2 cloud-utils-growpart"
    " net-tools",
    "cloud-utils-growpart": "gdisk util-linux",
    "dnf": "python3-dnf",
    "dnf-plugin-support-info": "python3-supportinfo dnf",
    "dnf-plugin-release-notification": "dnf",
    "dracut": "systemd systemd-udev kmod util-linux",
    "ec2-hibinit-agent": "systemd acpid python3",
    "ec2-instance-connect": "openssh-server openssl curl-minimal",
    "ec2-instance-connect-selinux": "ec2-instance-connect selinux-policy-targeted",
    "grub2-tools": "grub2-common grub2-tools-minimal os-prober",
    "grubby": "grub2-tools-minimal util-linux",
    "kernel": "dracut grubby systemd-udev",
    "nfs-utils": "rpcbind gssproxy systemd quota",
    "openssh-clients": "openssh",
    "openssh-server": "openssh systemd pam",
    "os-prober": "grub2-common",
    "python3-dnf": "python3 dnf-data",
    "python3-requests": "python3-urllib3 python3-idna",
    "sssd-kcm": "sssd-common",
    "sssd-client": "libsss_idmap",
    "sssd-common": "sssd-client libldb",
    "sudo": "pam",
    "sysstat": "systemd",
    "systemd": "systemd-libs dbus util-linux pam",
    "systemd-networkd": "systemd",
    "systemd-pam": "systemd",
    "systemd-resolved": "systemd",
    "systemd-udev": "systemd kmod",
    "update-motd": "systemd system-release",
    "vim-enhanced": "vim-common vim-data",
}
#: What dnf must not remove: the package itself ships the file that says so. As Enterprise Linux 9 has it, and
#: AL2023's EFI loader besides (amazon-linux-2023 #150 of 2022-08, #470 of 2023-09).
PROTECTED = (
    "dnf", "grub2-common", "grub2-efi-x64-ec2", "grub2-tools-minimal", "setup", "sudo", "systemd",
    "systemd-udev",
)  # fmt: skip
#: Packages of other names than in AWS's list. amazon-ec2-utils: ec2-utils from 2.2 on, and the old name is
#: only provided (its spec, 2026-04-02); the list is of arm64.
RENAMED = {"amazon-ec2-utils": "ec2-utils", "grub2-efi-x64-ec2": "grub2-efi-aa64-ec2"}


def names(*, minimal: bool) -> list[str]:
    """Packages of the standard AMI, or of the minimal one."""
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [line.split()[0] for line in lines if line.endswith("*") or not minimal]


def closure(packages: Iterable[str]) -> set[str]:
    """The packages, and all that they require."""
    members: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name not in members:
            members.add(name)
            waiting += REQUIRES.get(name, "").split()
    return members
