"""The stand-in's kernel: Debian's source of 6.1 with Amazon Linux 2023's configuration, cut down.

kernel.config is AL2023's published x86_64 configuration of 6.1.141-165.249, as `make savedefconfig` writes
it,
without modules and drivers that a machine of localec2 has no use for; its head says what is left out. The
part that decides how a machine boots is AL2023's: NVMe, XFS, GPT, EFI stub, 8250 and devtmpfs are built in,
while the network card, ext4, vfat and the power button are modules. Amazon's own drivers (ENA) and patches
are not in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian import apt
from instant_env.debian.command import BuildError, Runner, search_path
from instant_env.debian.mirrors import Mirrors, check_keyring
from instant_env.errors import MissingToolError
from instant_env.files import replacing
from instant_env.localec2.stock.model import exclusive, stock_dir
from instant_env.progress import Progress

CONFIG = Path(__file__).with_name("kernel.config")
PACKAGE = "linux-source-6.1"
#: Raise it when the build changes in a way that kernel.config does not show.
_FORMAT = 1

#: Programs that make it, with the Debian packages that have them.
TOOLS = apt.TOOLS | {
    "make": "make", "gcc": "gcc", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc",
    "xz": "xz-utils",
    "perl": "perl",
}  # fmt: skip
#: objtool's.
LIBELF = Path("/usr/include/libelf.h")

#: What the recipes ask of AL2023's kernel, and what a boot without initramfs needs (CONFIG_ left out).
BUILT_IN = (
    "AUDIT", "BLK_DEV_INITRD", "BLK_DEV_NVME", "DEVTMPFS", "DEVTMPFS_MOUNT", "EFI_PARTITION", "EFI_STUB",
    "INPUT_EVDEV",
    "IPV6", "MAGIC_SYSRQ", "PACKET", "SERIAL_8250_CONSOLE", "UNIX", "XFS_FS",
)  # fmt: skip
MODULES = ("ACPI_BUTTON", "BRIDGE", "EXT4_FS", "OVERLAY_FS", "VETH", "VFAT_FS", "VIRTIO_NET", "VIRTIO_PCI")

#: The same source gives the same bytes, wherever and whenever.
_ENVIRONMENT = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "instant-env",
    "KBUILD_BUILD_HOST": "stand-in",
    "KBUILD_BUILD_VERSION": "1",
}

#: Temporary files: the source, its objects and the packed result.
_NEEDED_BYTES = 5 * 1024**3


def archive(cache_dir: Path) -> Path:
    """Where the kernel is, or will be: the name has a digest of the configuration."""
    text = CONFIG.read_text(encoding="utf-8")
    digest = hashlib.sha256(f"{_FORMAT}\n{text}".encode()).hexdigest()[:16]
    return stock_dir(cache_dir) / f"al2023-like-kernel-{digest}.tar"


def require_tools() -> None:
    """Raise MissingToolError unless all is there that builds a kernel: one line names all that is not."""
    missing = {name: package for name, package in TOOLS.items() if not shutil.which(name, path=search_path())}
    if not LIBELF.is_file():
        missing[str(LIBELF)] = "libelf-dev"
    if missing:
        raise MissingToolError(
            "not installed, and needed to build the kernel of the al2023-like base: "
            + ", ".join(sorted(missing)),
            hint=f"run: apt-get install {' '.join(sorted(set(missing.values())))}",
        )


def build(cache_dir: Path, mirrors: Mirrors, progress: Progress) -> Path:
    """An archive of /boot and /usr/lib/modules: from the cache, or built now, by all processors.

    The version is Debian's at the time of the build. Raises MissingToolError, BuildError.
    """
    final = archive(cache_dir)
    if final.is_file():
        return final
    require_tools()
    check_keyring()
    with exclusive(cache_dir, "al2023-like-kernel", Arch.X86_64, progress):
        if final.is_file():
            return final
        parent = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 (mkdtemp below)
        if (free := shutil.disk_usage(parent).free) < _NEEDED_BYTES:
            raise BuildError(
                f"{parent} has {free / 1024**3:.1f} GiB free, the kernel's build takes "
                f"{_NEEDED_BYTES / 1024**3:.0f}",
                hint="make room, or set TMPDIR to a directory with more",
            )
        with tempfile.TemporaryDirectory(prefix="instant-env-kernel.", dir=parent) as work:
            _build(Path(work), final, mirrors, progress)
    return final


def _build(work: Path, final: Path, mirrors: Mirrors, progress: Progress) -> None:
    started = time.monotonic()

    def say(text: str) -> None:
        progress(f"al2023-like: {text} ({time.monotonic() - started:.0f} s)")

    runner = Runner(final.with_suffix(".log"), _ENVIRONMENT)
    say("fetching the kernel's source")
    directory = work / "apt"
    directory.mkdir()
    packages = apt.Archive(runner, directory, Arch.X86_64, mirrors.sources())
    packages.update()
    packages.unpack([PACKAGE], work / "package")
    runner.run(
        ["tar", "--extract", "--file", work / f"package/usr/src/{PACKAGE}.tar.xz", "--directory", work]
    )
    shutil.rmtree(work / "package")
    say("building the kernel")
    release = make(runner, work / PACKAGE, work / "objects", work / "root", final)
    say(f"kernel {release} is built")


def make(runner: Runner, source: Path, output: Path, root: Path, final: Path) -> str:
    """Build ``source`` in ``output``, install it below ``root``, pack that; returns the kernel's release."""
    output.mkdir(exist_ok=True)
    shutil.copyfile(CONFIG, output / ".config")
    command: list[str | Path] = ["make", "--silent", "-C", source, f"O={output}", f"-j{os.cpu_count() or 1}"]
    runner.run([*command, "olddefconfig"])
    check((output / ".config").read_text(encoding="utf-8"))
    runner.run([*command, "bzImage", "modules"])
    runner.run(
        [*command, f"INSTALL_MOD_PATH={root}/usr", "INSTALL_MOD_STRIP=1", "DEPMOD=true", "modules_install"]
    )
    release = (output / "include/config/kernel.release").read_text(encoding="utf-8").strip()
    for link in ("build", "source"):
        (root / "usr/lib/modules" / release / link).unlink(missing_ok=True)
    (root / "boot").mkdir()
    shutil.copyfile(output / "arch/x86/boot/bzImage", root / f"boot/vmlinuz-{release}")
    shutil.copyfile(output / ".config", root / f"boot/config-{release}")
    with replacing(final) as temporary, tarfile.open(temporary, "w") as packed:
        for name in ("boot", "usr"):
            packed.add(root / name, arcname=name, filter=_of_root)
    return release


def check(config: str) -> None:
    """Raise BuildError unless the kernel to be built is like AL2023's in what decides a boot."""
    lines = set(config.splitlines())
    wanted = [f"CONFIG_{name}=y" for name in BUILT_IN] + [f"CONFIG_{name}=m" for name in MODULES]
    if missing := [line for line in wanted if line not in lines]:
        raise BuildError(
            f"the kernel's configuration lacks {', '.join(missing)}",
            hint="kernel.config has to follow Debian's source: see its head",
        )


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
