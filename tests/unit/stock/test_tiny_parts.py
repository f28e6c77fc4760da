"""The parts of the tiny base that need no network: modules, the digest, the disk, the scripts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.debian.command import BuildError
from instant_env.debian.mirrors import Mirrors
from instant_env.localec2.stock import disk, modules, tiny, tiny_contents
from instant_env.localec2.stock.debian_contents import File

MIRRORS = Mirrors("http://one/debian", "http://one/debian-security")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Modules as the kernel's: card needs bus and ring, bus needs ring."""
    source = tmp_path / "6.1"
    strings = {
        "net/the-card.ko": b"\x7fELF\0license=GPL\0depends=the_ring,bus\0alias=virtio:d00000001v*\0",
        "bus.ko": b"\x7fELF\0depends=the-ring\0alias=pci:v00001AF4d*\0alias=pci:v1*\0",
        "the_ring.ko": b"\x7fELF\0depends=\0retpoline=Y\0",
        "other.ko": b"\x7fELF\0depends=\0alias=pci:v2*\0",
    }
    for name, content in strings.items():
        (source / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "kernel" / name).write_bytes(content)
    (source / "modules.builtin").write_text("kernel/drivers/acpi/button.ko\n")
    return source


def test_modules_come_with_what_they_need(kernel: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    modules.install(kernel, target, ("the_card", "button"))
    # As depmod has it: to be loaded from right to left.
    assert (target / "modules.dep").read_text() == (
        "kernel/bus.ko: kernel/the_ring.ko\n"
        "kernel/net/the-card.ko: kernel/bus.ko kernel/the_ring.ko\n"
        "kernel/the_ring.ko:\n"
    )
    assert (target / "modules.alias").read_text().splitlines()[1:] == [
        "alias pci:v00001AF4d* bus",
        "alias pci:v1* bus",
        "alias virtio:d00000001v* the_card",
    ]
    copied = {path.name for path in target.rglob("*.ko")}
    assert copied == {"the-card.ko", "bus.ko", "the_ring.ko"}


def test_a_module_that_is_nowhere_is_an_error(kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no module floppy"):
        modules.install(kernel, tmp_path / "out", ("floppy",))


def test_the_digest_follows_what_goes_in() -> None:
    digests = {
        tiny.digest_of_inputs(Arch.X86_64, MIRRORS, "1"),
        tiny.digest_of_inputs(Arch.ARM64, MIRRORS, "1"),
        tiny.digest_of_inputs(Arch.X86_64, MIRRORS, "2"),
        tiny.digest_of_inputs(Arch.X86_64, Mirrors("http://two", "http://two"), "1"),
    }
    assert len(digests) == 4
    assert tiny.digest_of_inputs(Arch.X86_64, MIRRORS, "1") in digests


def test_partitions_lie_one_after_another() -> None:
    geometry = tiny_contents.GEOMETRY
    assert geometry.swap is not None
    assert geometry.esp.start + geometry.esp.sectors <= geometry.swap.start
    assert geometry.swap.start + geometry.swap.sectors <= geometry.root.start
    # The backup GPT takes 33 sectors at the end.
    assert geometry.root.start + geometry.root.sectors <= geometry.size_bytes // disk.SECTOR - 33


def test_the_kernel_finds_root_and_hibernation_image_by_their_partitions() -> None:
    ids = disk.Identifiers.from_digest("test")
    arguments = tiny_contents.kernel_arguments(Arch.ARM64, ids).split()
    table = disk.partition_table(Arch.ARM64, ids, tiny_contents.GEOMETRY)
    for name in ("root", "resume"):
        (value,) = [word.split("=", 2)[2] for word in arguments if word.startswith(f"{name}=PARTUUID=")]
        assert f"uuid={value}" in table
    assert "console=ttyAMA0" in arguments


def test_an_applet_is_not_also_a_file_of_ours() -> None:
    ours = {Path(file.path).name for file in tiny_contents.FILES if file.mode == 0o755}
    assert ours.isdisjoint(tiny_contents.APPLETS)


@pytest.mark.parametrize(
    "file", [f for f in tiny_contents.FILES if f.text.startswith("#!")], ids=lambda f: f.path
)
def test_scripts_pass_shellcheck(file: File) -> None:
    subprocess.run(["shellcheck", "-"], input=file.text, text=True, check=True)
