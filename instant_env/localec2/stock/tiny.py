"""Build the tiny base: kernel, instant-init, sshd and busybox on a disk of less than 40 MB.

For contract and fault tests, so that a machine takes seconds. Nothing of the image runs while it is made, so
any architecture is built on any host: packages are fetched and unpacked, a few files picked.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from instant_env import toolchain
from instant_env.arch import Arch
from instant_env.debian import apt
from instant_env.debian.command import BuildError, Runner, require
from instant_env.debian.mirrors import Mirrors, check_keyring
from instant_env.files import replacing
from instant_env.localec2.stock import disk, modules
from instant_env.localec2.stock import tiny_contents as contents
from instant_env.localec2.stock.model import (
    StockImage,
    exclusive,
    image_stem,
    load_cached,
    save,
    stock_dir,
)
from instant_env.progress import Progress

BASE = "tiny"
#: No account of EC2: the image is published nowhere.
OWNER_ID = "000000000000"
#: The image has to stay small enough to copy without a thought.
MOST_BYTES = 40 * 1000 * 1000
#: Raise it when the build changes in a way that the digest's inputs do not show.
_FORMAT = 1

_TOOLS = disk.TOOLS | apt.TOOLS | {"debugfs": "e2fsprogs", "qemu-img": "qemu-utils"}


def digest_of_inputs(arch: Arch, mirrors: Mirrors, init_sha256: str) -> str:
    """16 hexadecimal digits over what decides the build, our init included; not the packages' versions."""
    ids = disk.Identifiers.from_digest("placeholder")
    inputs = {
        "format": _FORMAT,
        "sources": mirrors.sources(),
        "kernel": [contents.KERNELS[arch], contents.MODULES, contents.kernel_arguments(arch, ids)],
        "take": [contents.PROGRAMS, contents.LIBRARIES, contents.LINKERS[arch], contents.APPLETS],
        "files": [(file.path, file.mode, file.text) for file in contents.FILES],
        "directories": contents.DIRECTORIES,
        "table": disk.partition_table(arch, ids, contents.GEOMETRY),
        "root": _make_root(Path("disk"), Path("root"), ids),
        "init": init_sha256,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def build(arch: Arch, cache_dir: Path, progress: Progress) -> StockImage:
    """The tiny image of ``arch`` with the init of this checkout: from the cache, or built now.

    Raises MissingToolError for programs that are not there, GoBuildError, BuildError.
    """
    init = toolchain.go_build("init", arch)
    mirrors = Mirrors.from_environment()
    digest = digest_of_inputs(arch, mirrors, hashlib.sha256(init.read_bytes()).hexdigest())
    if cached := load_cached(cache_dir, BASE, arch, digest):
        return cached
    require(_TOOLS)
    check_keyring()
    with exclusive(cache_dir, BASE, arch, progress):
        if cached := load_cached(cache_dir, BASE, arch, digest):
            return cached
        with tempfile.TemporaryDirectory(prefix="instant-env-tiny.", dir="/var/tmp") as work:
            return _build(arch, stock_dir(cache_dir), digest, mirrors, init, Path(work), progress)


def _build(
    arch: Arch, directory: Path, digest: str, mirrors: Mirrors, init: Path, work: Path, progress: Progress
) -> StockImage:
    started = time.monotonic()
    final = directory / f"{image_stem(BASE, arch, digest)}.qcow2"
    ids = disk.Identifiers.from_digest(digest)
    runner = Runner(directory / f"{BASE}-{arch.value}.log")
    progress(f"{BASE}: building from Debian's packages and our init")
    packages = work / "unpacked"
    names = _fetch(runner, work, arch, mirrors, packages)
    tree, raw, small = work / "root", work / "disk.raw", work / "disk.qcow2"
    release = _pick(packages, tree, arch, init)
    uki = _make_uki(runner, work, packages, arch, contents.kernel_arguments(arch, ids), release)
    disk.create(runner, raw, arch, ids, contents.GEOMETRY)
    disk.fill_esp(runner, raw, {f"EFI/BOOT/{arch.efi}": uki}, contents.GEOMETRY)
    runner.run(_make_root(raw, tree, ids))
    _settle_root(runner, raw, tree)
    # Compressed: arm64's kernel alone is 27 MB. What a machine reads of it is unpacked once.
    runner.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, small])
    if (size := small.stat().st_size) > MOST_BYTES:
        raise BuildError(f"the image has {size} bytes, more than {MOST_BYTES}", hint=f"see {runner.log}")
    final.with_suffix(".manifest").write_text("\n".join([*names, ""]), encoding="utf-8")
    with replacing(final) as temporary:
        shutil.copyfile(small, temporary)
    progress(f"{BASE}: {size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")
    return save(
        StockImage(
            base=BASE,
            arch=arch,
            name=f"{BASE}-{arch.value}-{digest}",
            description=f"Linux {release}, instant-init, sshd and busybox, for tests",
            owner_id=OWNER_ID,
            ssm_parameter=f"/aws/service/instant-env/{BASE}/{arch.value}",
            root_device_name="/dev/xvda",
            disk=final,
            size_gib=contents.GEOMETRY.size_gib,
            boot_mode="uefi",
            digest=digest,
            created=datetime.now(UTC),
        )
    )


def _fetch(runner: Runner, work: Path, arch: Arch, mirrors: Mirrors, tree: Path) -> list[str]:
    """Unpack all packages into ``tree``; returns their files' names."""
    directory = work / "apt"
    directory.mkdir()
    archive = apt.Archive(runner, directory, arch, mirrors.sources())
    archive.update()
    kernel = archive.dependency(*contents.KERNELS[arch])
    return archive.unpack([kernel, contents.STUB_PACKAGE, *contents.PROGRAMS, *contents.LIBRARIES], tree)


def _pick(packages: Path, tree: Path, arch: Arch, init: Path) -> str:
    """Make the root file system; returns the kernel's release."""
    for name, mode in contents.DIRECTORIES.items():
        (tree / name).mkdir(parents=True)
        (tree / name).chmod(mode)
    for name in ("bin", "sbin", "lib", "lib64"):  # merged /usr, as in Debian 12
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for program in (path for paths in contents.PROGRAMS.values() for path in paths):
        _take(packages / program, tree / program)
    triplet = contents.TRIPLETS[arch]
    for library in (name for names in contents.LIBRARIES.values() for name in names):
        places = [packages / folder / triplet / library for folder in ("usr/lib", "lib")]
        source = next((path for path in places if path.exists()), places[0])
        _take(source, tree / "usr/lib" / triplet / library)
    linker = contents.LINKERS[arch]
    _take(packages / "lib" / triplet / Path(linker).name, tree / linker)
    _take(init, tree / "usr/sbin/instant-init")
    for applet in contents.APPLETS:
        (tree / "usr/bin" / applet).symlink_to("busybox")
    for file in contents.FILES:
        path = tree / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
        path.chmod(file.mode)
    (kernel,) = (packages / "lib/modules").iterdir()
    modules.install(kernel, tree / "usr/lib/modules" / kernel.name, contents.MODULES)
    return kernel.name


def _take(source: Path, target: Path) -> None:
    """Copy a program or library, links followed: its name in the image is the one it is asked for by."""
    if not source.is_file():
        raise BuildError(f"no {source.name} in its package", hint="tiny_contents.py has to follow Debian")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _make_uki(runner: Runner, work: Path, packages: Path, arch: Arch, arguments: str, release: str) -> Path:
    """One EFI binary of stub, command line and kernel."""
    tool = toolchain.go_build("cmd/imagetool", Arch.parse(platform.machine()))
    uki = work / "uki.efi"
    stub = packages / "usr/lib/systemd/boot/efi" / contents.STUBS[arch]
    kernel = packages / f"boot/vmlinuz-{release}"
    runner.run([tool, "uki", "--stub", stub, "--kernel", kernel, "--cmdline", arguments, "--output", uki])
    return uki


def _make_root(raw: Path, tree: Path, ids: disk.Identifiers) -> list[str]:
    return disk.make_root_command(raw, tree, ids, contents.GEOMETRY)


def _settle_root(runner: Runner, raw: Path, tree: Path) -> None:
    """Give everything to root, and make the two nodes that process 1 needs before it mounts /dev.

    debugfs writes them into the file system, so this takes no rights either.
    """
    paths = sorted("/" + str(path.relative_to(tree)) for path in tree.rglob("*"))
    script = [f"sif {path} {field} 0" for path in ["/", *paths] for field in ("uid", "gid")]
    script += ["cd /dev", "mknod console c 5 1", "mknod null c 1 3", "sif null mode 020666"]
    commands = raw.with_suffix(".debugfs")
    commands.write_text("\n".join([*script, ""]), encoding="utf-8")
    offset = contents.GEOMETRY.root.start * disk.SECTOR
    runner.run(["debugfs", "-w", "-f", commands, f"{raw}?offset={offset}"])
    # debugfs exits 0 whatever happens; what it made has to be a file system.
    runner.run(["e2fsck", "-fn", f"{raw}?offset={offset}"])
