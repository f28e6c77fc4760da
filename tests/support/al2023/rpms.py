"""A stand-in for Amazon Linux 2023's packages: its names, empty, with dependencies that matter for stripping.

Built by the real rpmbuild and installed by the real dnf into a directory. It is good for showing what the
solver does with our script, and for nothing else: the dependencies are those of the table below, most of them
Enterprise Linux 9's, not read from AL2023's own packages, and there are no scriptlets.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

LIST = Path(__file__).with_name("packages.txt")
#: dnf loads what lies here, as AL2023's loads its own plugins: see talking_notification.
PLUGINS = Path(__file__).with_name("dnf_plugins")

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
#: Packages of other names than in AWS's list, which is of arm64. ec2-utils is amazon-ec2-utils from 2.2 on,
#: and the old name is only provided (its spec, 2026-04-02).
RENAMED = {"amazon-ec2-utils": "ec2-utils", "grub2-efi-x64-ec2": "grub2-efi-aa64-ec2"}
FILES: dict[str, tuple[str, ...]] = {
    "openssh": ("/usr/bin/ssh-keygen", "/usr/libexec/openssh/ssh-keysign"),
    "openssh-clients": ("/usr/bin/ssh", "/usr/bin/scp"),
    "openssh-server": (
        "/usr/sbin/sshd", "/usr/libexec/openssh/sshd-session", "/usr/libexec/openssh/sftp-server",
        "/usr/libexec/openssh/sshd-keygen",
    ),
}  # fmt: skip


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


def _section(name: str) -> tuple[str, str, str]:
    """What a package adds to %install, to the packages and to the files of the specification."""
    requires = "".join(f"Requires: {one}\n" for one in REQUIRES.get(name, "").split())
    files = list(FILES.get(name, ()))
    install = "".join(f"install -D -m 0755 /dev/null %{{buildroot}}{file}\n" for file in files)
    if name in PROTECTED:
        path = f"/etc/dnf/protected.d/{name}.conf"
        install += f"mkdir -p %{{buildroot}}/etc/dnf/protected.d\necho {name} >%{{buildroot}}{path}\n"
        files.append(path)
    package = f"%package -n {name}\nSummary: {name}\n{requires}%description -n {name}\n{name}\n"
    return install, package, f"%files -n {name}\n" + "".join(f"{file}\n" for file in files)


def build(repository: Path, packages: Iterable[str]) -> None:
    """Make the packages and their metadata, so that dnf can install from ``repository``."""
    installs, declared, files = zip(*(_section(name) for name in sorted(packages)), strict=True)
    spec = repository / "all.spec"
    repository.mkdir(parents=True)
    spec.write_text(
        "Name: stand-in\nVersion: 2023\nRelease: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n"
        "AutoReqProv: no\n"
        f"%description\nx\n{''.join(declared)}%install\n{''.join(installs)}{''.join(files)}"
    )
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {repository / 'build'}",
         "--define", f"_rpmdir {repository}", "--define", "_binary_payload w0.gzdio", spec],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["createrepo_c", "--quiet", repository], check=True, capture_output=True)


def dnf_options(root: Path, repository: Path) -> list[str]:
    """What makes the real dnf work on ``root`` instead of this machine."""
    return [
        f"--installroot={root}", "--releasever=2023", f"--repofrompath=stand-in,{repository}",
        "--repo=stand-in", "--nogpgcheck", "--setopt=install_weak_deps=False", "--setopt=keepcache=False",
        "--setopt=plugins=True", f"--setopt=pluginpath={PLUGINS}",
    ]  # fmt: skip


def install(root: Path, repository: Path, packages: Iterable[str]) -> None:
    """Install into ``root`` with the real dnf: what is named counts as asked for, as in AWS's own image."""
    root.mkdir(parents=True)
    subprocess.run(
        ["dnf", "--quiet", "--assumeyes", *dnf_options(root, repository), "install", *packages],
        check=True, capture_output=True,
    )  # fmt: skip
