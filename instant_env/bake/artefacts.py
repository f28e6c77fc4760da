"""Files that recipes upload: our own static binaries, and systemd's EFI stub."""

from __future__ import annotations

from pathlib import Path

from instant_env.arch import Arch
from instant_env.bake import stub
from instant_env.toolchain import go_build

#: Where distributions put systemd's EFI stubs (Debian and Fedora: systemd-boot-efi, systemd-boot-unsigned).
_STUB_DIRS = (Path("/usr/lib/systemd/boot/efi"),)
_STUB_NAMES = {Arch.X86_64: "linuxx64.efi.stub", Arch.ARM64: "linuxaa64.efi.stub"}


def efi_stub(arch: Arch, cache_dir: Path) -> Path:
    """Path of the stub for ``arch``: this machine's own, or one fetched from Debian (see stub.fetch)."""
    for directory in _STUB_DIRS:
        if (path := directory / _STUB_NAMES[arch]).is_file():
            return path
    return stub.fetch(_STUB_NAMES[arch], arch, cache_dir)


def build(names: set[str], arch: Arch, cache_dir: Path) -> dict[str, Path]:
    """Make what a recipe uploads. ``names`` are those of StepSpec.upload, ``cache_dir`` keeps the stub."""
    makers = {
        "instant-init": lambda: go_build("init", arch),
        "instant-ssm": lambda: go_build("init/ssm", arch),
        "imagetool": lambda: go_build("cmd/imagetool", arch),
        "efi-stub": lambda: efi_stub(arch, cache_dir),
    }
    return {name: makers[name]() for name in sorted(names)}
