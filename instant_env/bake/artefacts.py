"""Files that recipes upload: our own static binaries, systemd's EFI stub, and programs built for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from instant_env.arch import Arch
from instant_env.bake import stub
from instant_env.bake.recipe import PROGRAM_PREFIX, ResolvedRecipe
from instant_env.programs.build import build as build_program
from instant_env.programs.program import load_program
from instant_env.progress import Progress, quiet
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


def _build_program(programs_dir: Path, name: str, arch: Arch, cache_dir: Path, progress: Progress) -> Path:
    return build_program(programs_dir, name, arch, cache_dir, progress).path


def names(recipe: ResolvedRecipe) -> set[str]:
    """Of all that a recipe uploads (StepSpec.artefact)."""
    return {step.spec.artefact for step in recipe.steps if step.spec.artefact is not None}


def build(
    names: set[str], arch: Arch, cache_dir: Path, programs_dir: Path | None = None, progress: Progress = quiet
) -> dict[str, Path]:
    """Make what a recipe uploads, by the names that `names` gives. ``cache_dir`` keeps the stub and programs;
    these are pinned in ``programs_dir``, and all have to be there before the first is built."""
    makers: dict[str, Callable[[], Path]] = {
        "instant-init": lambda: go_build("init", arch),
        "instant-ssm": lambda: go_build("init/ssm", arch),
        "imagetool": lambda: go_build("cmd/imagetool", arch),
        "container-host": lambda: go_build("cmd/container-host", arch),
        "efi-stub": lambda: efi_stub(arch, cache_dir),
    }
    if programs_dir is not None:
        wanted = sorted(
            name.removeprefix(PROGRAM_PREFIX) for name in names if name.startswith(PROGRAM_PREFIX)
        )
        for program in [load_program(programs_dir, name) for name in wanted]:
            key, name = PROGRAM_PREFIX + program.program, program.program
            makers[key] = partial(_build_program, programs_dir, name, arch, cache_dir, progress)
    return {name: makers[name]() for name in sorted(names)}
