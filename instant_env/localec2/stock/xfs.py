"""An XFS root made from an archive, without a mount: mkfs.xfs and its prototype file (mkfs.xfs(8), -p).

A prototype has owners, modes, links and contents. It has no hard links (each becomes a file of its own), no
sticky bit (set afterwards by xfs_db), no access control lists, no other extended attributes and no names with
blanks: an archive that has such is refused, so that nothing is lost in silence. Its files get the time of the
making; a base that has Python in it compiles by content, not by time.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from instant_env.debian.command import BuildError, Runner
from instant_env.localec2.stock.disk import MIB, SECTOR, Geometry, Identifiers

#: Tools used here, with the Debian packages that have them.
TOOLS = {"mkfs.xfs": "xfsprogs", "xfs_db": "xfsprogs"}

#: What mkfs.xfs of Debian 12 and of AL2023's time makes by default, spelt out: later ones add large extent
#: counters (nrext64), which GRUB 2.06 does not read.
FEATURES = (
    "-m", "crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1", "-i", "sparse=1,nrext64=0",
)  # fmt: skip

_KINDS = {
    tarfile.REGTYPE: "-",
    tarfile.AREGTYPE: "-",
    tarfile.LNKTYPE: "-",
    tarfile.DIRTYPE: "d",
    tarfile.SYMTYPE: "l",
    tarfile.FIFOTYPE: "p",
    tarfile.CHRTYPE: "c",
    tarfile.BLKTYPE: "b",
}


#: Debian's only access control list is that of /var/log/journal, which systemd-tmpfiles sets at each boot.
_ACL = ".system.posix_acl_"


@dataclass
class _Node:
    member: tarfile.TarInfo | None = None
    children: dict[str, _Node] = field(default_factory=dict)


def make_root(
    runner: Runner, disk: Path, archive: Path, tree: Path, ids: Identifiers, geometry: Geometry,
    prefix: list[str],
) -> None:  # fmt: skip
    """Make the XFS of the root partition inside ``disk``, with what ``archive`` holds.

    ``tree`` is where the archive is unpacked: contents come from there, all else from the archive.
    ``prefix`` is what runs a command where ``tree`` can be read. Raises BuildError.
    """
    image, prototype = disk.with_suffix(".xfs"), disk.with_suffix(".prototype")
    sticky: list[tuple[str, int]] = []
    with tarfile.open(archive) as opened:
        root = _tree_of(opened)
    lines = ["/dev/null", "0 0", *_lines(root, tree, "", sticky)]
    prototype.write_text("\n".join([*lines, ""]), encoding="utf-8")
    prototype.chmod(0o644)
    with image.open("wb") as handle:
        handle.truncate(geometry.root.sectors * SECTOR)
    image.chmod(0o666)  # The namespace writes it under another user id; nobody else can find it.
    runner.run([*prefix, "mkfs.xfs", "-q", "-f", *FEATURES[:2], "-m", f"uuid={ids.root_filesystem}",
                *FEATURES[2:], "-p", prototype, image])  # fmt: skip
    commands = [
        part
        for path, mode in sticky
        for part in ("-c", f"path {path}", "-c", f"write core.mode 0{stat.S_IFDIR | mode:o}")
    ]
    if commands:
        runner.run(["xfs_db", "-x", *commands, image])
    _copy_data(image, disk, geometry.root.start * SECTOR)
    image.unlink()


def _copy_data(source: Path, target: Path, offset: int) -> None:
    """Copy what ``source`` has in it, and none of its holes, to ``offset`` of ``target``."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        at = 0
        while True:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # no data behind it
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < end:
                block = os.pread(reader.fileno(), min(end - at, MIB), at)
                os.pwrite(writer.fileno(), block, offset + at)
                at += len(block)


def _tree_of(archive: tarfile.TarFile) -> _Node:
    """The members by their place. Raises BuildError for what a prototype cannot hold."""
    root = _Node()
    for member in archive:
        name = member.name.removeprefix("./").strip("/")
        if member.name.startswith("./dev/"):
            continue  # The kernel mounts its own there, and an ordinary user cannot unpack device nodes.
        if any(character.isspace() for character in name + member.linkname):
            raise BuildError(f"{member.name!r} has a blank in its name, which mkfs.xfs -p does not read")
        lost = [key for key in member.pax_headers if key.startswith("SCHILY.xattr.") and _ACL not in key]
        if lost:
            raise BuildError(f"{member.name} has {', '.join(lost)}, which mkfs.xfs -p does not keep")
        node = root
        for part in filter(None, name.split("/")) if name != "." else ():
            node = node.children.setdefault(part, _Node())
        node.member = member
    return root


def _lines(node: _Node, tree: Path, path: str, sticky: list[tuple[str, int]]) -> Iterator[str]:
    """The prototype's lines for ``path`` of the image; ``sticky`` gets directories with that bit."""
    member = node.member
    if member is None:
        raise BuildError(f"the archive has files in {path or '/'}, and not the directory")
    kind = _KINDS[member.type]
    mode = member.mode
    special = ("u" if mode & stat.S_ISUID else "-") + ("g" if mode & stat.S_ISGID else "-")
    line = f"{kind}{special}{mode & 0o777:03o} {member.uid} {member.gid}"
    if path:
        line = f"{path.rpartition('/')[2]} {line}"
    if kind == "-":
        yield f"{line} {tree}{path}"
    elif kind == "l":
        yield f"{line} {member.linkname}"
    elif kind in "cb":
        yield f"{line} {member.devmajor} {member.devminor}"
    elif kind == "p":
        yield line
    else:
        if mode & stat.S_ISVTX:
            sticky.append((path or "/", mode & 0o7777))
        yield line
        for name, child in sorted(node.children.items()):
            yield from _lines(child, tree, f"{path}/{name}", sticky)
        yield "$"
