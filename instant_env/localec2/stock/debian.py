"""Build bases from Debian's packages: debian-12, which is Debian's own EC2 image made again, and its like.

mmdebstrap makes the root file system as a tar archive (as root, or in a user namespace for anybody else);
it is unpacked and turned into ext4 or XFS inside the image file, so nothing is mounted and no loop device is
used. What a base is made of is its :class:`Description`.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from instant_env.arch import Arch
from instant_env.debian import foreign
from instant_env.debian.command import BuildError, Runner, require
from instant_env.debian.devices import own_devices
from instant_env.debian.mirrors import SUITE, Mirrors, check_keyring
from instant_env.files import replacing
from instant_env.localec2.stock import debian_contents as contents
from instant_env.localec2.stock import disk as disks
from instant_env.localec2.stock import xfs
from instant_env.localec2.stock.description import Description
from instant_env.localec2.stock.model import (
    StockImage,
    exclusive,
    image_stem,
    load_cached,
    save,
    stock_dir,
)
from instant_env.progress import Progress

BASE = "debian-12"
XFS_BASE = "debian-12-xfs"
#: Debian's account on EC2 (https://wiki.debian.org/Cloud/AmazonEC2Image/Bookworm).
OWNER_ID = "136693071363"
#: Raise it when the build changes in a way that the digest's inputs do not show.
_FORMAT = 2


#: Temporary files: the archive, the unpacked tree and the raw disk, about 1 GB each.
_NEEDED_BYTES = 4 * 1024**3

_TOOLS = disks.TOOLS | {"mmdebstrap": "mmdebstrap", "tar": "tar", "qemu-img": "qemu-utils"}
#: What mmdebstrap's unshare mode needs besides.
_USER_TOOLS = {"newuidmap": "uidmap", "newgidmap": "uidmap"}


def describe(arch: Arch, mirrors: Mirrors, filesystem: Literal["ext4", "xfs"] = "ext4") -> Description:
    """What debian-12 is made of, or debian-12-xfs: the same on XFS, with the programs for it.

    Debian has no such image. It is for seeing what XFS does to a bake without what else is different on
    Amazon Linux.
    """
    loader = contents.LOADERS[arch]
    packages = contents.packages(arch)
    return Description(
        base=BASE if filesystem == "ext4" else XFS_BASE,
        arch=arch,
        summary=f"Debian 12 (bookworm) for EC2, {arch.debian}, built from Debian's packages"
        + (", on XFS" if filesystem == "xfs" else ""),
        name_stem=f"{BASE if filesystem == 'ext4' else XFS_BASE}-{arch.debian}",
        owner_id=OWNER_ID,
        ssm_parameter=f"/aws/service/debian/release/12/latest/{arch.debian}"
        if filesystem == "ext4"
        else f"/aws/service/instant-env/{XFS_BASE}/{arch.value}",
        sources=mirrors.sources(),
        packages=packages if filesystem == "ext4" else tuple(sorted({*packages, "xfsprogs"})),
        early_files=contents.EARLY_FILES,
        late_files=partial(contents.late_files, arch, filesystem=filesystem),
        loader_files=loader.esp_files(arch.efi),
        grub_cfg=contents.esp_grub_cfg,
        grub_cfg_folders=("BOOT", "debian"),
        filesystem=filesystem,
        # The same on every host, since it is part of what the image's digest stands for.
        essential_commands=(contents.POSTPONE_INITRAMFS,) if arch is Arch.ARM64 else (),
    )


def digest_of_inputs(arch: Arch, mirrors: Mirrors) -> str:
    """Digest of debian-12: see :meth:`Description.digest`."""
    return describe(arch, mirrors).digest(_FORMAT)


def build(arch: Arch, cache_dir: Path, progress: Progress) -> StockImage:
    """The debian-12 image of ``arch``: from the cache, or built now.

    One to three minutes; for another architecture several times that, since maintainer scripts are emulated.

    Raises MissingToolError for programs that are not there, BuildError for everything else.
    """
    return build_described(describe(arch, Mirrors.from_environment()), cache_dir, progress)


def build_on_xfs(arch: Arch, cache_dir: Path, progress: Progress) -> StockImage:
    """The debian-12-xfs image of ``arch``, as :func:`build`."""
    return build_described(describe(arch, Mirrors.from_environment(), "xfs"), cache_dir, progress)


def cached_of(description: Description, cache_dir: Path) -> StockImage | None:
    """The image of that description, when it is in the cache."""
    return load_cached(cache_dir, description.base, description.arch, description.digest(_FORMAT))


def build_described(description: Description, cache_dir: Path, progress: Progress) -> StockImage:
    """The image of that description: from the cache, or built now. Raises as :func:`build`."""
    base, arch = description.base, description.arch
    digest = description.digest(_FORMAT)
    if cached := cached_of(description, cache_dir):
        return cached
    check_host(arch)
    if description.filesystem == "xfs":
        require(xfs.TOOLS)
    with exclusive(cache_dir, base, arch, progress):
        if cached := load_cached(cache_dir, base, arch, digest):
            return cached
        return _build(description, cache_dir, digest, progress)


def check_host(arch: Arch) -> None:
    """Raise MissingToolError when this machine cannot build: a missing program, key or emulator."""
    require(_TOOLS if os.geteuid() == 0 else _TOOLS | _USER_TOOLS)
    check_keyring()
    foreign.ensure(arch)


def _build(description: Description, cache_dir: Path, digest: str, progress: Progress) -> StockImage:
    started = time.monotonic()
    base, arch = description.base, description.arch

    def say(text: str) -> None:
        progress(f"{base}: {text} ({time.monotonic() - started:.0f} s)")

    directory = stock_dir(cache_dir)
    final = directory / f"{image_stem(base, arch, digest)}.qcow2"
    ids = disks.Identifiers.from_digest(digest)
    runner = Runner(directory / f"{base}-{arch.value}.log")
    say("building from Debian's packages")
    with replacing(final) as temporary, _workspace(runner, base) as work:
        _bootstrap(runner, work, description, ids, say)
        say("making the disk")
        _make_disk(runner, work, description, ids)
        runner.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", work / "disk.raw", temporary])
        shutil.copyfile(work / "packages", final.with_suffix(".manifest"))
    image = StockImage(
        base=base,
        arch=arch,
        name=f"{description.name_stem}-{digest}",
        description=description.summary,
        owner_id=description.owner_id,
        ssm_parameter=description.ssm_parameter,
        root_device_name="/dev/xvda",
        disk=final,
        size_gib=description.geometry.size_gib,
        boot_mode="uefi-preferred",
        digest=digest,
        created=datetime.now(UTC),
    )
    say("done")
    return save(image)


def _in_namespace() -> list[str]:
    """Prefix of commands that need the image's owners to be real: a user namespace unless we are root."""
    return [] if os.geteuid() == 0 else ["mmdebstrap", "--unshare-helper"]


@contextmanager
def _workspace(runner: Runner, base: str) -> Iterator[Path]:
    """A temporary directory that a user namespace can reach and nobody can list; gone on every path.

    ``inside`` in it is for the files of the namespace, whose owners an ordinary user cannot remove from
    outside. /var/tmp, since /tmp may be in memory.
    """
    parent = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 (mkdtemp below)
    free = shutil.disk_usage(parent).free
    if free < _NEEDED_BYTES:
        raise BuildError(
            f"{parent} has {free / 1024**3:.1f} GiB free, {base} takes {_NEEDED_BYTES / 1024**3:.0f}",
            hint="make room, or set TMPDIR to a directory with more",
        )
    work = Path(tempfile.mkdtemp(prefix="instant-env-stock.", dir=parent))
    try:
        work.chmod(0o711)
        inside = work / "inside"
        inside.mkdir()
        inside.chmod(0o1777)
        yield work
    finally:
        # What is left there on the way out of a failure; a second failure must not hide the first.
        with suppress(BuildError):
            runner.run([*_in_namespace(), "rm", "-rf", "--one-file-system", *(work / "inside").iterdir()])
        shutil.rmtree(work, ignore_errors=True)


def overlay(path: Path, files: tuple[contents.File, ...]) -> None:
    """Write ``files`` as a tar archive, owned by root, for mmdebstrap to unpack in the chroot."""
    with tarfile.open(path, "w") as archive:
        for file in files:
            data = file.text.encode()
            member = tarfile.TarInfo(file.path.lstrip("/"))
            member.size, member.mode, member.mtime = len(data), file.mode, int(time.time())
            archive.addfile(member, io.BytesIO(data))


def _bootstrap(
    runner: Runner, work: Path, description: Description, ids: disks.Identifiers, say: Progress
) -> None:
    """Make ``root.tar`` and the list ``packages`` in ``work``."""
    early, late = work / "early.tar", work / "late.tar"
    overlay(early, description.early_files)
    overlay(late, description.late_files(ids))
    scratch = contents.SCRATCH

    def on_line(line: str) -> None:
        if line.startswith("I: ") and any(word in line for word in ("downloading", "installing", "tarball")):
            say(line.removeprefix("I: ").rstrip("."))

    runner.environment["TMPDIR"] = str(work / "inside")
    command: list[str | Path] = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=minbase",
        "--format=tar",
        # Its check wants the program arch-test; ours (foreign.py) has looked at the kernel's handlers.
        "--skip=check/qemu",
        f"--architectures={description.arch.debian}",
        f"--include={','.join(description.packages)}",
        f"--essential-hook=tar-in {shlex.quote(str(early))} /",
        *(
            f'--essential-hook=chroot "$1" sh -c {shlex.quote(line)}'
            for line in description.essential_commands
        ),
        *(f"--customize-hook=tar-in {shlex.quote(str(path))} /" for path in (*description.archives, late)),
        f'--customize-hook=chroot "$1" {scratch}/finish',
        f"--customize-hook=download {scratch}/packages {shlex.quote(str(work / 'packages'))}",
        f'--customize-hook=rm -r "$1"{scratch}',
        SUITE,
        work / "root.tar",
        "-",
    ]
    runner.run(command, stdin=description.sources, on_line=on_line, prefix=own_devices())


def _make_disk(runner: Runner, work: Path, description: Description, ids: disks.Identifiers) -> None:
    """Make ``disk.raw`` in ``work`` from ``root.tar``."""
    disk, tree, geometry = work / "disk.raw", work / "inside" / "root", description.geometry
    prefix = _in_namespace()
    disks.create(runner, disk, description.arch, ids, geometry)
    disk.chmod(0o666)  # The namespace writes it under another user id; nobody else can find it.
    runner.run([*prefix, "mkdir", tree])
    # Without /dev: a user namespace cannot make device nodes, and the kernel mounts its own there anyway.
    runner.run(
        [*prefix, "tar", "--extract", "--file", work / "root.tar", "--directory", tree, "--exclude=./dev/*",
         "--numeric-owner", "--same-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]
    )  # fmt: skip
    esp = {name: tree / source for name, source in description.loader_files.items()}
    texts = {f"EFI/{folder}/grub.cfg": description.grub_cfg(ids) for folder in description.grub_cfg_folders}
    for number, (name, text) in enumerate((texts | description.loader_texts).items()):
        file = work / f"esp-{number}"
        file.write_text(text, encoding="utf-8")
        esp[name] = file
    disks.fill_esp(runner, disk, esp, geometry)
    if description.filesystem == "xfs":
        xfs.make_root(runner, disk, work / "root.tar", tree, ids, geometry, prefix)
    else:
        (work / "root.tar").unlink()
        runner.run([*prefix, *disks.make_root_command(disk, tree, ids, geometry)])
