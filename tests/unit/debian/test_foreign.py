"""Which programs of another architecture run here, as the kernel's registry says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.debian import foreign
from instant_env.errors import MissingToolError

#: As Linux shows the handler of Debian 12's qemu-user-static.
ENTRY = """enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""
OTHER = Arch.ARM64 if os.uname().machine == "x86_64" else Arch.X86_64


def test_our_header_is_what_programs_begin_with() -> None:
    native = Arch.parse(os.uname().machine)
    program = Path("/bin/sh").read_bytes()[:20]
    header = foreign.elf_header(native)
    assert (header[:8], header[18:]) == (program[:8], program[18:])


@pytest.mark.parametrize(
    ("entry", "arch", "answer"),
    [
        (ENTRY, Arch.ARM64, True),
        (ENTRY, Arch.X86_64, False),
        (ENTRY.replace("enabled", "disabled"), Arch.ARM64, False),
        (ENTRY.replace("POF", "PO"), Arch.ARM64, False),  # the interpreter is not in the chroot
        ("enabled\ninterpreter /usr/bin/jar\nflags: F\nextension .jar\n", Arch.ARM64, False),
        ("enabled\n", Arch.ARM64, False),
        ("", Arch.ARM64, False),
    ],
)
def test_handlers_are_read_as_the_kernel_shows_them(entry: str, arch: Arch, answer: bool) -> None:
    assert foreign.handles(entry, foreign.elf_header(arch)) is answer


def test_any_handler_will_do_and_our_own_needs_none(tmp_path: Path) -> None:
    assert foreign.runs(Arch.parse(os.uname().machine), tmp_path)
    assert not foreign.runs(OTHER, tmp_path)
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "any-name").write_text(ENTRY)
    assert foreign.runs(Arch.ARM64, tmp_path)


def test_without_the_package_the_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError) as caught:
        foreign.ensure(OTHER, tmp_path, tmp_path)
    assert caught.value.hint == "run: apt-get install qemu-user-static"


def test_an_ordinary_user_is_told_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / f"qemu-{OTHER.machine}.conf").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingToolError) as caught:
        foreign.ensure(OTHER, tmp_path / "registry", tmp_path)
    assert "mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc" in caught.value.hint
    assert f"/qemu-{OTHER.machine}.conf >/proc/sys/fs/binfmt_misc/register" in caught.value.hint


def test_root_registers_the_handler_that_the_package_ships(tmp_path: Path) -> None:
    """A registry of plain files: what the kernel would be told lies in `register`."""
    registry = tmp_path / "registry"
    registry.mkdir()
    (registry / "register").touch()
    (tmp_path / f"qemu-{OTHER.machine}.conf").write_text(":qemu:M::magic:mask:/interpreter:F\n")
    subprocess.run(foreign.registration(OTHER, registry, tmp_path), check=True)
    assert (registry / "register").read_text() == ":qemu:M::magic:mask:/interpreter:F\n"
