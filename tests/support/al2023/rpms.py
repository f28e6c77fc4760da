"""A stand-in for Amazon Linux 2023's packages: its names, empty, with dependencies that matter for stripping.

Built by the real rpmbuild and installed by the real dnf into a directory. It is good for showing what the
solver does with our script, and for nothing else: the dependencies are those of the table below, most of them
Enterprise Linux 9's, not read from AL2023's own packages, and there are no scriptlets.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from instant_env.localec2.stock.al2023_like.packages import PROTECTED, REQUIRES
from support.moved_machine import AS_ROOT

#: dnf loads what lies here, as AL2023's loads its own plugins: see talking_notification.
PLUGINS = Path(__file__).with_name("dnf_plugins")

FILES: dict[str, tuple[str, ...]] = {
    "openssh": ("/usr/bin/ssh-keygen", "/usr/libexec/openssh/ssh-keysign"),
    "openssh-clients": ("/usr/bin/ssh", "/usr/bin/scp"),
    "openssh-server": (
        "/usr/sbin/sshd", "/usr/libexec/openssh/sshd-session", "/usr/libexec/openssh/sftp-server",
        "/usr/libexec/openssh/sshd-keygen",
    ),
}  # fmt: skip


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
        "--setopt=plugins=True", f"--setopt=pluginpath={_plugins(root)}",
    ]  # fmt: skip


def _plugins(root: Path) -> Path:
    """Where dnf finds them: its option is a list, which a blank in the checkout's path would split."""
    link = root.with_name("dnf-plugins")
    if not link.is_symlink():
        link.symlink_to(PLUGINS)
    return link


def install(root: Path, repository: Path, packages: Iterable[str]) -> None:
    """Install into ``root`` with the real dnf: what is named counts as asked for, as in AWS's own image."""
    root.mkdir(parents=True)
    subprocess.run(
        [*AS_ROOT, "dnf", "--quiet", "--assumeyes", *dnf_options(root, repository), "install", *packages],
        check=True, capture_output=True,
    )  # fmt: skip
