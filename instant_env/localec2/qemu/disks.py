"""Disk images: copy-on-write volumes, self-contained snapshots. All of it through qemu-img.

Results appear under their name only when they are whole: written beside it, synced, renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from instant_env.errors import InstantEnvError, MissingToolError

GIB = 1024**3
#: Copying an image under load of other guests, with room to spare.
COPY_TIMEOUT_S = 1800


class DiskError(InstantEnvError):
    """qemu-img failed."""


def _qemu_img(*arguments: str, timeout_s: float = 60) -> str:
    program = shutil.which("qemu-img")
    if program is None:
        raise MissingToolError("qemu-img is not installed", hint="sudo apt-get install qemu-utils")
    try:
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DiskError(f"qemu-img {arguments[0]} took longer than {timeout_s:g} s") from error
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise DiskError(f"qemu-img {arguments[0]}: {lines[-1]}")
    return result.stdout


def virtual_size_gib(path: Path) -> int:
    """The size a guest sees, rounded up to whole GiB."""
    size = int(json.loads(_qemu_img("info", "--output=json", "-U", str(path)))["virtual-size"])
    return -(-size // GIB)


def grow(path: Path, size_gib: int) -> None:
    """Make a volume that no machine has at least as large as this."""
    if virtual_size_gib(path) < size_gib:
        _qemu_img("resize", "-f", "qcow2", str(path), f"{size_gib}G")


def recorded_backing(path: Path) -> Path | None:
    """The file that ``path`` names as the one behind it, whether or not that is there."""
    name = json.loads(_qemu_img("info", "--output=json", "-U", str(path))).get("backing-filename")
    return Path(name) if name else None


def set_backing(path: Path, backing: Path) -> None:
    """Name another file with the same content as the one behind ``path``."""
    _qemu_img("rebase", "-u", "-F", "qcow2", "-b", str(backing), str(path))


def create(path: Path, size_gib: int, backing: Path | None = None) -> None:
    """A blank volume, or an overlay of ``backing`` of at least that size."""
    part = create_part(path, size_gib, backing)
    part.replace(path)


def create_part(path: Path, size_gib: int, backing: Path | None = None) -> Path:
    """The same beside its place, for somebody who fills it first: see :func:`finish`."""
    arguments = ["create", "-q", "-f", "qcow2"]
    if backing is not None:
        arguments += ["-F", "qcow2", "-b", str(backing.resolve())]
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        _qemu_img(*arguments, str(part), f"{size_gib}G")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def finish(part: Path, path: Path) -> None:
    """Put a part in its place, synced."""
    _sync(part)
    part.replace(path)


def flatten(source: Path, target: Path) -> None:
    """A self-contained copy of ``source`` and everything under it. Unused clusters take no room."""
    _convert(source, target)


def copy_layer(source: Path, target: Path, backing: Path) -> None:
    """A copy of what ``source`` has over ``backing``, the file that it is an overlay of."""
    _convert(source, target, "-B", str(backing.resolve()), "-F", "qcow2")


def from_raw(source: Path, target: Path) -> None:
    """A self-contained qcow2 of a raw disk. Zeros take no room."""
    _convert(source, target, source_format="raw")


def open_raw(source: Path, scratch: Path) -> int:
    """A descriptor on the bytes that a guest would see; they lie at ``scratch``, without a name soon.

    The room they take is given back when the descriptor is closed, and at the latest with the process.
    """
    scratch.unlink(missing_ok=True)
    try:
        _qemu_img(
            "convert", "-q", "-W", "-U", "-f", "qcow2", "-O", "raw", str(source), str(scratch),
            timeout_s=COPY_TIMEOUT_S,
        )  # fmt: skip
        return os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        scratch.unlink(missing_ok=True)


def extents(path: Path) -> list[tuple[int, int]]:
    """(offset, length) in bytes of what the disk and everything under it hold; the rest reads as zeros."""
    entries = json.loads(_qemu_img("map", "--output=json", "-U", "-f", "qcow2", str(path)))
    return [(item["start"], item["length"]) for item in entries if item["data"] and not item["zero"]]


def _convert(source: Path, target: Path, *options: str, source_format: str = "qcow2") -> None:
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        # -W: clusters may be written out of order, which is faster; the copy's layout does not matter.
        arguments = [
            "convert",
            "-q",
            "-W",
            "-f",
            source_format,
            "-O",
            "qcow2",
            *options,
            str(source),
            str(part),
        ]
        _qemu_img(*arguments, timeout_s=COPY_TIMEOUT_S)
        finish(part, target)
    finally:
        part.unlink(missing_ok=True)


def check_self_contained(path: Path) -> None:
    """Raises DiskError unless ``path`` is a qcow2 that needs no other file."""
    information = json.loads(_qemu_img("info", "--output=json", "-U", str(path)))
    if information.get("format") != "qcow2":
        raise DiskError(f"{path} is not a qcow2 image")
    if "backing-filename" in information:
        raise DiskError(f"{path} needs {information['backing-filename']}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_sparse(source: Path, target: Path) -> None:
    """A copy in which zeros are holes: arm64's 64 MiB of firmware variables come as zeros only."""
    zeros = bytes(1 << 20)
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(len(zeros)):
            if block == zeros:
                writer.seek(len(block), os.SEEK_CUR)
            else:
                writer.write(block)
        writer.truncate(reader.tell())


def copy(source: Path, target: Path) -> None:
    """A copy of the file as it is; shares blocks where the file system can."""
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        shutil.copyfile(source, part)  # copy_file_range or sendfile in the kernel
        _sync(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
