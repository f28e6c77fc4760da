"""The disk of a stock image: GPT, EFI system partition, root, made inside one file.

No loop device and no mount: each tool is told the offset inside the file. The geometry is by default that of
Debian's debian-cloud-images (hook ``partition``): root is partition 1 and lies last, so that it can grow.
Here root is ext4; xfs.py makes the other kind.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian.command import Runner

SECTOR = 512
MIB = 1024 * 1024
SIZE_GIB = 2

BIOS_START, BIOS_SECTORS = 2048, 6144
ESP_START, ESP_SECTORS = 8192, 253952
ROOT_START = 262144
#: The last MiB belongs to the backup GPT.
ROOT_SECTORS = SIZE_GIB * 1024 * MIB // SECTOR - ROOT_START - MIB // SECTOR

#: What mke2fs of Debian 12 makes by default, spelt out: Ubuntu 24.04's adds orphan_file and
#: metadata_csum_seed, which GRUB 2.06 in the image cannot read.
EXT4_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
#: Inode tables written now: otherwise whether the kernel zeroes them at first boot would depend on the host.
EXT4_EXTENDED = "lazy_itable_init=0,lazy_journal_init=0"

#: GUIDs of the Discoverable Partitions Specification; sfdisk of Debian 12 has no short names for all.
_ROOT_TYPE = {
    Arch.X86_64: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
    Arch.ARM64: "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
}
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_BIOS_TYPE = "21686148-6449-6E6F-744E-656564454649"
_SWAP_TYPE = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"

#: Tools used here, with the Debian packages that have them.
TOOLS = {
    "sfdisk": "fdisk",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mcopy": "mtools",
}


@dataclass(frozen=True)
class Extent:
    """Where a partition lies, in sectors of 512 bytes."""

    start: int
    sectors: int


@dataclass(frozen=True)
class Geometry:
    """The partitions of a disk of ``size_gib``: root is number 1, swap 2; the others' numbers are fields."""

    size_gib: int
    esp: Extent
    root: Extent
    bios: Extent | None = None
    swap: Extent | None = None
    bios_number: int = 14
    esp_number: int = 15

    @property
    def size_bytes(self) -> int:
        return self.size_gib * 1024 * MIB


DEBIAN = Geometry(
    SIZE_GIB,
    esp=Extent(ESP_START, ESP_SECTORS),
    root=Extent(ROOT_START, ROOT_SECTORS),
    bios=Extent(BIOS_START, BIOS_SECTORS),
)


@dataclass(frozen=True)
class Identifiers:
    """The UUIDs of one image. They follow from its digest: the same description gives the same disk."""

    disk: uuid.UUID
    root_partition: uuid.UUID
    esp_partition: uuid.UUID
    root_filesystem: uuid.UUID
    hash_seed: uuid.UUID
    swap_partition: uuid.UUID

    @classmethod
    def from_digest(cls, digest: str) -> Identifiers:
        names = ("disk", "root_partition", "esp_partition", "root_filesystem", "hash_seed",
                 "swap_partition")  # fmt: skip
        return cls(**{name: uuid.uuid5(uuid.NAMESPACE_OID, f"instant-env/{digest}/{name}") for name in names})

    @property
    def esp_volume(self) -> str:
        """FAT volume serial, 8 hexadecimal digits."""
        return self.esp_partition.hex[:8]


def partition_table(arch: Arch, ids: Identifiers, geometry: Geometry = DEBIAN) -> str:
    """Input of sfdisk."""
    lines = ["label: gpt", f"label-id: {ids.disk}", "unit: sectors"]
    if geometry.bios is not None:
        lines.append(f"{geometry.bios_number} : {_place(geometry.bios)}, type={_BIOS_TYPE}")
    lines.append(
        f"{geometry.esp_number} : {_place(geometry.esp)}, type={_ESP_TYPE}, uuid={ids.esp_partition}"
    )
    if geometry.swap is not None:
        lines.append(f"2 : {_place(geometry.swap)}, type={_SWAP_TYPE}, uuid={ids.swap_partition}")
    lines.append(f"1 : {_place(geometry.root)}, type={_ROOT_TYPE[arch]}, uuid={ids.root_partition}")
    return "\n".join([*lines, ""])


def _place(extent: Extent) -> str:
    return f"start={extent.start}, size={extent.sectors}"


def create(runner: Runner, disk: Path, arch: Arch, ids: Identifiers, geometry: Geometry = DEBIAN) -> None:
    """Make the (sparse) file with its partition table and an empty FAT on the EFI system partition."""
    with disk.open("wb") as handle:
        handle.truncate(geometry.size_bytes)
    runner.run(
        ["sfdisk", "--no-reread", "--no-tell-kernel", "--quiet", disk],
        stdin=partition_table(arch, ids, geometry),
    )
    # mkfs.vfat counts blocks of 1 KiB and offsets in sectors. FAT16 and the hidden sectors are what it would
    # choose for a partition of this size; here it sees the size of the whole file.
    esp = geometry.esp
    blocks = esp.sectors * SECTOR // 1024
    runner.run(
        ["mkfs.vfat", "-F", "16", "-h", str(esp.start), "-i", ids.esp_volume, f"--offset={esp.start}", disk,
         str(blocks)]
    )  # fmt: skip


def fill_esp(runner: Runner, disk: Path, files: dict[str, Path], geometry: Geometry = DEBIAN) -> None:
    """Copy ``files`` (path inside the partition -> file here) to the EFI system partition."""
    image = f"{disk}@@{geometry.esp.start * SECTOR}"
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    runner.run(["mmd", "-i", image, *(f"::{folder}" for folder in sorted(folders))])
    for name, source in files.items():
        runner.run(["mcopy", "-i", image, source, f"::{name}"])


def make_root_command(disk: Path, tree: Path, ids: Identifiers, geometry: Geometry = DEBIAN) -> list[str]:
    """The mkfs.ext4 that fills the root partition from ``tree``, owners and extended attributes included.

    A command rather than an action: it must run where the owners of ``tree`` are the real ones, which for
    an ordinary user is inside a user namespace.
    """
    root = geometry.root
    extended = f"offset={root.start * SECTOR},hash_seed={ids.hash_seed},{EXT4_EXTENDED}"
    return [
        "mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-U", str(ids.root_filesystem),
        "-O", EXT4_FEATURES, "-E", extended, "-d", str(tree), str(disk), f"{root.sectors * SECTOR // 1024}k",
    ]  # fmt: skip
