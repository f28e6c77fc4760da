"""Files that recipes upload: our own static binaries, and systemd's EFI stub from the host."""

from __future__ import annotations

from pathlib import Path

from instant_env.arch import Arch
from instant_env.errors import MissingToolError
from instant_env.toolchain import go_build

#: Where distributions put systemd's EFI stubs (Debian and Fedora: systemd-boot-efi, systemd-boot-unsigned).
_STUB_DIRS = (Path("/usr/lib/systemd/boot/efi"),)
_STUB_NAMES = {Arch.X86_64: "linuxx64.efi.stub", Arch.ARM64: "linuxaa64.efi.stub"}


def efi_stub(arch: Arch) -> Path:
    """Path of the stub for ``arch``; raises MissingToolError with the package to install."""
    for directory in _STUB_DIRS:
        if (path := directory / _STUB_NAMES[arch]).is_file():
            return path
    raise MissingToolError(
        f"no EFI stub {_STUB_NAMES[arch]} on this machine",
        hint=f"apt-get install systemd-boot-efi:{arch.debian} (dnf: systemd-boot-unsigned)",
    )


def build(names: set[str], arch: Arch) -> dict[str, Path]:
    """Make what a recipe uploads. ``names`` are those of StepSpec.upload."""
    makers = {
        "instant-init": lambda: go_build("init", arch),
        "imagetool": lambda: go_build("instant_env/bake/imagetool", arch),
        "efi-stub": lambda: efi_stub(arch),
    }
    return {name: makers[name]() for name in sorted(names)}
