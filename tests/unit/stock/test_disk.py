"""The disk, made for real from a small tree and read back with other tools."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.debian.command import Runner, search_path
from instant_env.localec2.stock import disk

IDS = disk.Identifiers.from_digest("test")


def read(*command: str | Path) -> str:
    return subprocess.run(
        command, env={"PATH": search_path()}, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with one file on the EFI system partition and a small root."""
    directory = tmp_path_factory.mktemp("disk")
    runner, path, tree = Runner(directory / "log"), directory / "disk.raw", directory / "root"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("hello\n")
    (tree / "link").symlink_to("etc/hostname")
    (directory / "loader").write_text("loader\n")
    disk.create(runner, path, Arch.X86_64, IDS)
    disk.fill_esp(runner, path, {"EFI/BOOT/BOOTX64.EFI": directory / "loader"})
    runner.run(disk.make_root_command(path, tree, IDS))
    return path


def test_partitions(image: Path) -> None:
    table = json.loads(read("sfdisk", "--json", image))["partitiontable"]
    assert table["label"] == "gpt"
    assert table["id"] == str(IDS.disk).upper()
    found = {
        part["node"].removeprefix(str(image)): (part["start"], part["size"]) for part in table["partitions"]
    }
    assert found == {"1": (262144, 3930112), "14": (2048, 6144), "15": (8192, 253952)}
    root = next(part for part in table["partitions"] if part["node"] == f"{image}1")
    assert root["uuid"] == str(IDS.root_partition).upper()
    assert root["type"] == "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
    assert image.stat().st_size == 2 * 1024**3


def test_efi_system_partition(image: Path) -> None:
    assert read("mtype", "-i", f"{image}@@{8192 * 512}", "::EFI/BOOT/BOOTX64.EFI") == "loader\n"
    with image.open("rb") as handle:
        handle.seek(8192 * 512)
        boot_sector = handle.read(512)
    assert boot_sector[54:59] == b"FAT16"
    assert int.from_bytes(boot_sector[28:32], "little") == 8192  # Hidden sectors: where it starts.


def test_root_file_system(image: Path) -> None:
    where = f"{image}?offset={262144 * 512}"
    header = read("dumpe2fs", "-h", where)
    assert f"Filesystem UUID:          {IDS.root_filesystem}\n" in header
    features = next(line for line in header.splitlines() if line.startswith("Filesystem features:"))
    assert "metadata_csum" in features
    assert "orphan_file" not in features
    assert "metadata_csum_seed" not in features
    assert "Block count:              491264\n" in header
    assert read("debugfs", "-R", "cat /etc/hostname", where) == "hello\n"
    read("e2fsck", "-fn", where)


def test_identifiers_follow_from_the_digest() -> None:
    assert disk.Identifiers.from_digest("test") == IDS
    other = disk.Identifiers.from_digest("other")
    assert {IDS.disk, IDS.root_partition, IDS.esp_partition, IDS.root_filesystem}.isdisjoint(
        {other.disk, other.root_partition, other.esp_partition, other.root_filesystem}
    )


def test_arm64_roots_have_a_type_of_their_own() -> None:
    assert "B921B045-1DF0-41C3-AF44-4C6F280D3FAE" in disk.partition_table(Arch.ARM64, IDS)
