"""Build the debian-12 base: Debian's own EC2 image, made again from Debian's packages.

mmdebstrap makes the root file system as a tar archive (as root, or in a user namespace for anybody else);
it is unpacked and turned into ext4 inside the image file, so nothing is mounted and no loop device is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian import foreign
from instant_env.debian.command import BuildError, Runner, require
from instant_env.debian.devices import own_devices
from instant_env.debian.mirrors import SUITE, Mirrors, check_keyring
from instant_env.files import replacing
from instant_env.localec2.stock import debian_contents as contents
from instant_env.localec2.stock import disk as disks
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
#: Debian's account on EC2 (https://wiki.debian.org/Cloud/AmazonEC2Image/Bookworm).
OWNER_ID = "136693071363"
#: Raise it when the build changes in a way that the digest's inputs do not show.
_FORMAT = 2


#: Temporary files: the archive, the unpacked tree and the raw disk, about 1 GB each.
_NEEDED_BYTES = 4 * 1024**3

_TOOLS = disks.TOOLS | {"mmdebstrap": "mmdebstrap", "tar": "tar", "qemu-img": "qemu-utils"}
#: What mmdebstrap's unshare mode needs besides.
_USER_TOOLS = {"newuidmap": "uidmap", "newgidmap": "uidmap"}


def digest_of_inputs(arch: Arch, mirrors: Mirrors) -> str:
    """16 hexadecimal digits over everything that decides what is built, except the packages' versions.

    Those are Debian's at the time of the build, and kept in the manifest beside the image: asking the
    mirror each time would make every command depend on the network.
    """
    # The identifiers follow from the digest, so the digest sees the files with others in their place.
    ids = disks.Identifiers.from_digest("placeholder")
    files = [*contents.EARLY_FILES, *contents.late_files(arch, ids)]
    inputs = {
        "format": _FORMAT,
        "sources": mirrors.sources(),
        "packages": contents.packages(arch),
        "files": [(file.path, file.mode, file.text) for file in files],
        "esp": [contents.LOADERS[arch].esp_files(arch.efi), contents.esp_grub_cfg(ids)],
        "disk": [disks.partition_table(arch, ids), disks.make_root_command(Path("disk"), Path("root"), ids)],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def build(arch: Arch, cache_dir: Path, progress: Progress) -> StockImage:
    """The debian-12 image of ``arch``: from the cache, or built now.

    One to three minutes; for another architecture several times that, since maintainer scripts are emulated.

    Raises MissingToolError for programs that are not there, BuildError for everything else.
    """
    mirrors = Mirrors.from_environment()
    digest = digest_of_inputs(arch, mirrors)
    if cached := load_cached(cache_dir, BASE, arch, digest):
        return cached
    check_host(arch)
    with exclusive(cache_dir, BASE, arch, progress):
        if cached := load_cached(cache_dir, BASE, arch, digest):
            return cached
        return _build(arch, cache_dir, digest, mirrors, progress)


def check_host(arch: Arch) -> None:
    """Raise MissingToolError when this machine cannot build: a missing program, key or emulator."""
    require(_TOOLS if os.geteuid() == 0 else _TOOLS | _USER_TOOLS)
    check_keyring()
    foreign.ensure(arch)


def _build(arch: Arch, cache_dir: Path, digest: str, mirrors: Mirrors, progress: Progress) -> StockImage:
    started = time.monotonic()

    def say(text: str) -> None:
        progress(f"{BASE}: {text} ({time.monotonic() - started:.0f} s)")

    directory = stock_dir(cache_dir)
    final = directory / f"{image_stem(BASE, arch, digest)}.qcow2"
    ids = disks.Identifiers.from_digest(digest)
    runner = Runner(directory / f"{BASE}-{arch.value}.log")
    say("building from Debian's packages")
    with replacing(final) as temporary, _workspace(runner) as work:
        _bootstrap(runner, work, arch, ids, mirrors, say)
        say("making the disk")
        _make_disk(runner, work, arch, ids)
        runner.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", work / "disk.raw", temporary])
        shutil.copyfile(work / "packages", final.with_suffix(".manifest"))
    image = StockImage(
        base=BASE,
        arch=arch,
        name=f"debian-12-{arch.debian}-{digest}",
        description=f"Debian 12 (bookworm) for EC2, {arch.debian}, built from Debian's packages",
        owner_id=OWNER_ID,
        ssm_parameter=f"/aws/service/debian/release/12/latest/{arch.debian}",
        root_device_name="/dev/xvda",
        disk=final,
        size_gib=disks.SIZE_GIB,
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
def _workspace(runner: Runner) -> Iterator[Path]:
    """A temporary directory that a user namespace can reach and nobody can list; gone on every path.

    ``inside`` in it is for the files of the namespace, whose owners an ordinary user cannot remove from
    outside. /var/tmp, since /tmp may be in memory.
    """
    parent = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 (mkdtemp below)
    free = shutil.disk_usage(parent).free
    if free < _NEEDED_BYTES:
        raise BuildError(
            f"{parent} has {free / 1024**3:.1f} GiB free, {BASE} takes {_NEEDED_BYTES / 1024**3:.0f}",
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
    runner: Runner,
    work: Path,
    arch: Arch,
    ids: disks.Identifiers,
    mirrors: Mirrors,
    say: Progress,
) -> None:
    """Make ``root.tar`` and the list ``packages`` in ``work``."""
    early, late = work / "early.tar", work / "late.tar"
    overlay(early, contents.EARLY_FILES)
    overlay(late, contents.late_files(arch, ids))
    scratch = contents.SCRATCH

    # The same on every host, since it is part of what the image's digest stands for.
    postpone = [f'--essential-hook=chroot "$1" sh -c {shlex.quote(contents.POSTPONE_INITRAMFS)}']

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
        f"--architectures={arch.debian}",
        f"--include={','.join(contents.packages(arch))}",
        f"--essential-hook=tar-in {shlex.quote(str(early))} /",
        *(postpone if arch is Arch.ARM64 else ()),
        f"--customize-hook=tar-in {shlex.quote(str(late))} /",
        f'--customize-hook=chroot "$1" {scratch}/finish',
        f"--customize-hook=download {scratch}/packages {shlex.quote(str(work / 'packages'))}",
        f'--customize-hook=rm -r "$1"{scratch}',
        SUITE,
        work / "root.tar",
        "-",
    ]
    runner.run(command, stdin=mirrors.sources(), on_line=on_line, prefix=own_devices())


def _make_disk(runner: Runner, work: Path, arch: Arch, ids: disks.Identifiers) -> None:
    """Make ``disk.raw`` in ``work`` from ``root.tar``."""
    disk, tree = work / "disk.raw", work / "inside" / "root"
    prefix = _in_namespace()
    disks.create(runner, disk, arch, ids)
    disk.chmod(0o666)  # The namespace writes it under another user id; nobody else can find it.
    runner.run([*prefix, "mkdir", tree])
    # Without /dev: a user namespace cannot make device nodes, and the kernel mounts its own there anyway.
    runner.run(
        [*prefix, "tar", "--extract", "--file", work / "root.tar", "--directory", tree, "--exclude=./dev/*",
         "--numeric-owner", "--same-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]
    )  # fmt: skip
    (work / "root.tar").unlink()
    grub_cfg = work / "grub.cfg"
    grub_cfg.write_text(contents.esp_grub_cfg(ids), encoding="utf-8")
    shipped = contents.LOADERS[arch].esp_files(arch.efi)
    files = {name: tree / source for name, source in shipped.items()}
    disks.fill_esp(runner, disk, files | {f"EFI/{place}/grub.cfg": grub_cfg for place in ("BOOT", "debian")})
    runner.run([*prefix, *disks.make_root_command(disk, tree, ids)])
