"""`invoke doctor`: is everything here that this project needs, and if not, which command brings it?

Programs and files come from the table in :mod:`instant_env.requirements`; this module adds what no package
brings: the state of the machine (KVM, the SSH port on loopback, user namespaces, disk space) and whether the
Go toolchain is new enough.
Checks only look. They start nothing that stays, install nothing and touch no cloud.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import boto3
import botocore.exceptions
from pydantic import BaseModel, computed_field

from instant_env import requirements, toolchain
from instant_env.arch import Arch
from instant_env.debian import foreign
from instant_env.errors import MissingToolError
from instant_env.programs.build import lacking
from instant_env.programs.program import PROGRAMS, load_program, program_names
from instant_env.requirements import Manager, Requirement, Scope
from instant_env.settings import AcceleratorChoice, CloudName, Settings

#: Seen after baking both recipes: 1.1 GiB of cache and 2.0 GiB of state. Machines that run, the copy for
#: an image and the base while it is built need as much again.
DISK_NEEDED_GIB = 8

#: Of the guests.
SSH_PORT = 22


class Status(StrEnum):
    """``missing`` is the only one that makes the whole report fail."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


class Item(BaseModel):
    """One line of the report. ``hint`` says what to do when it is not ``ok``."""

    name: str
    status: Status
    detail: str
    needed_for: str
    hint: str = ""


class Report(BaseModel):
    """What ``--json`` prints. ``install`` is one shell command for every missing package, or empty."""

    items: list[Item]
    manager: Manager | None
    install: str

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use; mypy has no model of it
    @property
    def ok(self) -> bool:
        return all(item.status is not Status.MISSING for item in self.items)

    def render(self) -> str:
        """The report for people: one line an item, hints below their item, the command last."""
        wide = max(len(item.name) for item in self.items)
        lines = []
        for item in self.items:
            lines.append(f"{item.status:<8} {item.name:<{wide}}  {item.detail}")
            if item.hint:
                lines.append(f"{'':<8} {'':<{wide}}  -> {item.hint}")
        if self.install:
            lines += ["", "To install what is missing:", f"  {self.install}"]
        lines += ["", "Ready." if self.ok else "Not ready: see the lines marked missing."]
        return "\n".join(lines)


def check(settings: Settings, table: Sequence[Requirement] = requirements.TABLE) -> Report:
    """Look at this machine as ``settings`` would use it. What only localec2 needs is no failure on AWS."""
    manager = requirements.detect_manager()
    rows = requirements.applicable(table)
    # The stand-in's own are a wish, with a command of its own: not part of what everybody is told to install.
    lacking = [row for row in rows if row.scope is not Scope.STAND_IN and row.where() is None]
    items = [python_item()]
    items += [requirement_item(row, settings.cloud, manager) for row in rows]
    items.append(go_item())
    items += program_items(settings.recipes_dir / PROGRAMS)
    if settings.cloud is CloudName.LOCAL:
        items += [
            kvm_item(settings.accelerator),
            ssh_port_item(),
            foreign_item(),
            disk_item(settings.cache_dir),
        ]
        if os.geteuid() != 0:
            items.append(user_namespace_item())
    else:
        items.append(credentials_item(settings.profile))
    packages = requirements.packages_for(lacking, manager) if manager else []
    install = requirements.install_command(manager, packages) if manager else ""
    return Report(items=items, manager=manager, install=install)


def python_item() -> Item:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 11)
    return Item(
        name="Python",
        status=Status.OK if fits else Status.MISSING,
        detail=f"{version} at {sys.executable}",
        needed_for="everything",
        hint="" if fits else "3.11 or later is needed",
    )


def requirement_item(row: Requirement, cloud: CloudName, manager: Manager | None) -> Item:
    """A row of the table. Missing only where the chosen cloud needs it; a warning otherwise."""
    where = row.where()
    essential = row.scope is Scope.CORE or (row.scope is Scope.LOCAL and cloud is CloudName.LOCAL)
    status = Status.OK if where else Status.MISSING if essential else Status.WARNING
    hint = ""
    if where is None and manager is not None and not row.packages(manager):
        hint = f"{manager} has no package of it: use a Debian, Ubuntu or Fedora machine for this part"
    elif where is None and manager is None:
        hint = f"Debian's package is {row.apt}"
    elif where is None and manager is not None and row.scope is Scope.STAND_IN:
        hint = f"only for make test-al2023: {requirements.install_command(manager, row.packages(manager))}"
    return Item(
        name=row.name,
        status=status,
        detail=where or f"not found; needed for {row.needed_for}",
        needed_for=row.needed_for,
        hint=hint,
    )


def go_item() -> Item:
    """The toolchain that builds would use."""
    use = "building the init and the image tools"
    try:
        return Item(name="Go", status=Status.OK, detail=toolchain.find_go(), needed_for=use)
    except MissingToolError as error:
        return Item(
            name="Go",
            status=Status.MISSING,
            detail=f"{error}; needed for {use}",
            needed_for=use,
            hint=error.hint,
        )


def program_items(programs_dir: Path, arch: Arch | None = None) -> list[Item]:
    """Whether this machine can build the programs that take more than Go, each for its own architecture."""
    host = arch or Arch.parse(platform.machine())
    items = []
    for program in [load_program(programs_dir, name) for name in program_names(programs_dir)]:
        if program.go is not None:
            continue
        name, use = program.program, f"recipes with {program.program}"
        error = lacking(programs_dir, name, host)
        items.append(
            Item(
                name=f"Building {name}",
                status=Status.WARNING if error else Status.OK,
                detail=f"{error}; needed for {use}" if error else "can be built here",
                needed_for=use,
                hint=error.hint if error else "",
            )
        )
    return items


def kvm_item(accelerator: AcceleratorChoice, device: Path = Path("/dev/kvm")) -> Item:
    """KVM is a convenience unless the settings retry_cleanup on it: without it, machines are emulated."""
    insisted = accelerator is AcceleratorChoice.KVM
    otherwise = Status.MISSING if insisted else Status.WARNING
    use = "machines at the processor's own speed"
    hint = "set accelerator to auto or tcg" if insisted else ""
    if not device.exists():
        status, detail = otherwise, f"no {device}: machines are emulated in software, several times slower"
    elif not os.access(device, os.R_OK | os.W_OK):
        status, detail = otherwise, f"no permission for {device}: machines are emulated in software"
        hint = "sudo usermod -aG kvm $USER, then log in again"
    elif accelerator is AcceleratorChoice.TCG:
        status, detail = Status.OK, f"{device} opens, but the accelerator is set to tcg"
    else:
        # Opening it proves little: under nested virtualisation guests may still hang.
        status, detail = Status.OK, f"{device} opens; `auto` uses it only after a probe guest has booted"
    return Item(name="KVM", status=status, detail=detail, needed_for=use, hint=hint)


def foreign_item(arch: Arch = Arch.ARM64, registry: Path = foreign.REGISTRY) -> Item:
    """Does the kernel hand programs of ``arch`` to an emulator? x86_64 works without: a warning at most."""
    use = f"building the debian-12 base for {arch}"
    if foreign.runs(arch, registry):
        return Item(name=f"Programs for {arch}", status=Status.OK, detail="run here", needed_for=use)
    # As root the build registers the handler itself.
    hint = "" if os.geteuid() == 0 else foreign.advice(arch)
    return Item(
        name=f"Programs for {arch}", status=Status.WARNING,
        detail=f"no handler in {registry}; needed for {use}", needed_for=use,
        hint=hint or "root's first build registers the handler of qemu-user-static",
    )  # fmt: skip


def ssh_port_item(port: int = SSH_PORT, address: str | None = None) -> Item:
    """Can a machine's SSH port be forwarded to an address of its own in 127/8? localec2 moves it if not."""
    use = "reaching machines of the embedded EC2 at their own addresses"
    host = address or f"127.{random.randint(64, 127)}.{random.randint(0, 255)}.{random.randint(2, 254)}"  # noqa: S311
    status, detail, hint = Status.OK, f"port {port} can be bound on 127/8", ""
    with socket.socket() as listener:
        # As QEMU binds it: a connection still in TIME_WAIT is no obstacle, a listener is.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            status = Status.WARNING
            detail = f"port {port} on 127/8: {reason}; machines answer at another (local.status shows it)"
            if error.errno == errno.EACCES:
                hint = f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
            elif error.errno == errno.EADDRINUSE:
                hint = "another server (sshd?) listens there on all addresses; nothing needs to be done"
    return Item(name="SSH port", status=status, detail=detail, needed_for=use, hint=hint)


def disk_item(directory: Path, needed_gib: float = DISK_NEEDED_GIB) -> Item:
    free = requirements.disk_free_gib(directory)
    enough = free >= needed_gib
    return Item(
        name="Disk space",
        status=Status.OK if enough else Status.WARNING,
        detail=f"{free:.1f} GiB free for {directory}",
        needed_for="base images, baked images and volumes",
        hint=""
        if enough
        else f"{needed_gib:.0f} GiB are advised; set cache_dir and state_dir to a larger disk",
    )


def user_namespace_item(apparmor_profiles: Path = Path("/etc/apparmor.d")) -> Item:
    """mmdebstrap without root unpacks inside a user namespace, with a range of subordinate ids."""
    use = "building the debian-12 base without root"
    user = pwd.getpwuid(os.geteuid()).pw_name
    status, detail, hint = Status.OK, "allowed", ""
    command = ["unshare", "--user", "--map-root-user", "true"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        refusal = result.stderr.strip() if result.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal and (apparmor_profiles / "mmdebstrap").exists():
        # Ubuntu 24.04 forbids them to every program without a profile; mmdebstrap has one.
        detail = "allowed for mmdebstrap by its AppArmor profile"
    elif refusal:
        status, detail = Status.MISSING, f"not allowed ({refusal}); needed for {use}"
        hint = "run as root, or: sudo sysctl kernel.unprivileged_userns_clone=1"
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").exists():
            hint = "run as root, or: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    elif not has_subordinate_ids(user):
        status, detail = (
            Status.MISSING,
            f"{user} has no range in /etc/subuid and /etc/subgid; needed for {use}",
        )
        hint = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    return Item(name="User namespaces", status=status, detail=detail, needed_for=use, hint=hint)


def has_subordinate_ids(
    user: str, files: Sequence[Path] = (Path("/etc/subuid"), Path("/etc/subgid"))
) -> bool:
    """True when each file gives the user a range (subuid(5): ``name:first:count``)."""

    def has_range(file: Path) -> bool:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines)

    return all(has_range(file) for file in files)


def credentials_item(profile: str | None) -> Item:
    """Are there AWS credentials at all? (Whether AWS accepts them is not asked here.)"""
    use = "every call to AWS"
    try:
        credentials = boto3.Session(profile_name=profile).get_credentials()
        detail = f"found ({credentials.method})" if credentials else f"none found; needed for {use}"
        status = Status.OK if credentials else Status.MISSING
    except botocore.exceptions.BotoCoreError as error:
        status, detail = Status.MISSING, str(error)
    hint = "" if status is Status.OK else "aws configure, aws sso login, or set AWS_PROFILE"
    return Item(name="AWS credentials", status=status, detail=detail, needed_for=use, hint=hint)
