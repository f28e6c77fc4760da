"""Running programs of another architecture: QEMU's user emulation, by way of the kernel's binfmt_misc.

Building a base for another architecture runs its maintainer scripts. The kernel hands such programs to the
handler registered for their ELF header. Debian's qemu-user-static registers one when it is installed, where
systemd-binfmt or binfmt-support runs; in a container neither does, so root registers it here, from the file
that the package ships for that purpose, and everybody else is told the command.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from instant_env.arch import Arch
from instant_env.errors import MissingToolError

#: Where the kernel shows handlers (Documentation/admin-guide/binfmt-misc.rst); empty until it is mounted.
REGISTRY = Path("/proc/sys/fs/binfmt_misc")
#: Handlers as packages ship them: binfmt.d(5), one line in the kernel's own format.
HANDLERS = Path("/usr/lib/binfmt.d")

#: Byte 18 of an ELF header (e_machine, little endian; elf.h), which tells the architectures apart.
_E_MACHINE_OFFSET = 18
_E_MACHINE = {Arch.X86_64: 62, Arch.ARM64: 183}


def elf_header(arch: Arch) -> bytes:
    """The first 20 bytes of a program: 64 bit, little endian, System V, executable."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + _E_MACHINE[arch].to_bytes(2, "little")


def handles(entry: str, header: bytes) -> bool:
    """Whether a handler (the text of its file in the registry) takes programs with this header anywhere.

    Only with flag F does the kernel keep the interpreter open from the registration on; without it, it would
    look for the interpreter inside the chroot.
    """
    lines = entry.splitlines()
    fields = dict(line.split(" ", 1) for line in lines if " " in line)
    if "enabled" not in lines or "F" not in fields.get("flags:", "") or "magic" not in fields:
        return False
    offset = int(fields.get("offset", "0"))
    magic = bytes.fromhex(fields["magic"])
    mask = bytes.fromhex(fields["mask"]) if "mask" in fields else b"\xff" * len(magic)
    there = header[offset : offset + len(magic)]
    return len(there) == len(magic) and all(
        a & m == b & m for a, b, m in zip(there, magic, mask, strict=True)
    )


def runs(arch: Arch, registry: Path = REGISTRY) -> bool:
    """Whether programs of ``arch`` run on this computer, in a chroot of theirs."""
    if os.uname().machine == arch.machine:
        return True
    return any(handles(_text(file), elf_header(arch)) for file in sorted(registry.glob("*")))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:  # `register` cannot be read, and a handler may just be going
        return ""


def registration(arch: Arch, registry: Path = REGISTRY, handlers: Path = HANDLERS) -> list[str]:
    """The command that makes them run, for root: mounts the registry if need be, and adds the handler."""
    mount = f"[ -e {registry}/register ] || mount -t binfmt_misc binfmt_misc {registry}"
    return ["sh", "-ec", f"{mount}; cat {handlers}/qemu-{arch.machine}.conf >{registry}/register"]


def ensure(arch: Arch, registry: Path = REGISTRY, handlers: Path = HANDLERS) -> None:
    """Make programs of ``arch`` run here. Raises MissingToolError: what to install or to run."""
    if runs(arch, registry):
        return
    if not (handlers / f"qemu-{arch.machine}.conf").is_file():
        raise MissingToolError(
            f"programs for {arch} cannot run here: QEMU's user emulation is not installed",
            hint="run: apt-get install qemu-user-static",
        )
    if os.geteuid() != 0:
        raise MissingToolError(
            f"programs for {arch} cannot run here: no handler for them in {registry}", hint=advice(arch)
        )
    command = registration(arch, registry, handlers)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not runs(arch, registry):
        reason = result.stderr.strip().replace("\n", " / ") or "the kernel did not take the handler"
        raise MissingToolError(
            f"programs for {arch} cannot run here: {reason}",
            hint="in a container: register the handler on the host (with flag F), or run it privileged",
        )


def advice(arch: Arch) -> str:
    """What an ordinary user is told to run."""
    command = shlex.join(registration(arch))
    return f"run: sudo {command}" if shutil.which("sudo") else f"run as root: {command}"
