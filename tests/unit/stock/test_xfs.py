"""An XFS root made from an archive, read back by xfsprogs and by the kernel's own rules of the format."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from instant_env.debian.command import BuildError, Runner, search_path
from instant_env.localec2.stock import disk, xfs

IDS = disk.Identifiers.from_digest("test")
#: mkfs.xfs makes nothing smaller than 300 MiB.
GEOMETRY = disk.Geometry(1, esp=disk.Extent(2048, 20480), root=disk.Extent(24576, 304 * 2048))


def read(*command: str | Path) -> str:
    return subprocess.run(
        command, env={"PATH": search_path()}, capture_output=True, text=True, check=True
    ).stdout


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as packed:
        for member, content in members:
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    return member, b""


def file(name: str, content: bytes = b"", mode: int = 0o644, owner: int = 0) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = mode, owner, owner
    return member, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, target, 0o777
    return member, b""


def make(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """The file system alone, cut out of the disk that it was made in."""
    runner, whole, tree = Runner(tmp_path / "log"), tmp_path / "disk.raw", tmp_path / "tree"
    tree.mkdir()
    packed = archive(tmp_path / "root.tar", *members)
    read("tar", "-xf", packed, "-C", tree, "--no-same-owner", "--exclude=./dev/*")
    with whole.open("wb") as handle:
        handle.truncate((GEOMETRY.root.start + GEOMETRY.root.sectors) * disk.SECTOR)
        handle.write(b"before")
    xfs.make_root(runner, whole, packed, tree, IDS, GEOMETRY, [])
    with whole.open("rb") as handle:
        assert handle.read(6) == b"before", "what is in front of the partition is not touched"
    alone = tmp_path / "alone.xfs"
    read("dd", f"if={whole}", f"of={alone}", "bs=1M", "skip=12", "conv=sparse", "status=none")
    with alone.open("r+b") as handle:
        handle.truncate(GEOMETRY.root.sectors * disk.SECTOR)
    return alone


def inode(image: Path, path: str) -> dict[str, str]:
    lines = read("xfs_db", "-r", "-c", f"path {path}", "-c", "print", image).splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def test_what_is_in_the_archive_is_in_the_file_system(tmp_path: Path) -> None:
    image = make(
        tmp_path, directory("."), directory("./etc"), file("./etc/hostname", b"hello\n", owner=7),
        link("./etc/name", "hostname"), directory("./sticky", 0o1777), file("./etc/su", b"x", 0o4755),
        link("./etc/again", "./etc/hostname", tarfile.LNKTYPE), directory("./dev"), file("./dev/left-out"),
    )  # fmt: skip
    read("xfs_repair", "-n", image)
    assert str(IDS.root_filesystem) in read("xfs_db", "-r", "-c", "uuid", image)
    name = inode(image, "/etc/hostname")
    assert (name["core.uid"], name["core.gid"], name["core.size"]) == ("7", "7", "6")
    assert (name["core.mode"], name["core.nlinkv2"]) == ("0100644", "1")
    assert inode(image, "/etc/su")["core.mode"] == "0104755"
    assert inode(image, "/sticky")["core.mode"] == "041777"
    assert inode(image, "/etc/name")["core.mode"].startswith("012")
    left_out = subprocess.run(
        ["xfs_db", "-r", "-c", "path /dev/left-out", image], env={"PATH": search_path()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "No such file" in left_out.stdout + left_out.stderr


def test_grub_2_06_and_kernel_6_1_read_its_features(tmp_path: Path) -> None:
    image = make(tmp_path, directory("."))
    features = read("xfs_db", "-r", "-c", "version", image)
    assert {"CRC", "BIGTIME", "INOBTCNT", "REFLINK", "SPARSE_INODES"} <= set(
        features.replace("\n", ",").split(",")
    )
    assert "NREXT64" not in features


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (file("./a name"), "blank"),
        (link("./name", "a target"), "blank"),
    ],
)
def test_what_a_prototype_cannot_hold_is_refused(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        make(tmp_path, directory("."), member)


def test_capabilities_are_not_lost_in_silence(tmp_path: Path) -> None:
    ping = file("./ping")
    ping[0].pax_headers = {"SCHILY.xattr.security.capability": "x"}
    with pytest.raises(BuildError, match=r"security\.capability"):
        make(tmp_path, directory("."), ping)


def test_the_access_control_list_of_the_journal_is_left_to_systemd(tmp_path: Path) -> None:
    journal = directory("./journal")
    journal[0].pax_headers = {"SCHILY.xattr.system.posix_acl_default": "x"}
    assert inode(make(tmp_path, directory("."), journal), "/journal")["core.mode"] == "040755"
