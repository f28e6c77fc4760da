"""The al2023 base for localec2: Amazon's own KVM image, fetched and checked, used as it is.

``https://cdn.amazonlinux.com/al2023/os-images/<version>/kvm/`` (``kvm-arm64/`` for arm64) holds the image and
``SHA256SUMS``; ``latest`` serves as a version. INSTANT_ENV_AL2023_MIRROR replaces the address up to
``os-images``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian import download
from instant_env.debian.command import BuildError, require, search_path
from instant_env.localec2.stock.model import (
    StockImage,
    exclusive,
    image_stem,
    load_cached,
    save,
    stock_dir,
)
from instant_env.progress import Progress

BASE = "al2023"
#: Amazon's account for its own AMIs.
OWNER_ID = "137112412989"
DEFAULT_MIRROR = "https://cdn.amazonlinux.com/al2023/os-images"
#: Facts about the image hold for this kernel; the images of later kernels have other names.
KERNEL = "6.1"

_FOLDER = {Arch.X86_64: "kvm", Arch.ARM64: "kvm-arm64"}
#: Report progress this often, in seconds.
_REPORT_S = 5.0


def build(arch: Arch, cache_dir: Path, progress: Progress, *, mirror: str | None = None) -> StockImage:
    """The newest official KVM image of ``arch``, from the cache when its checksum is the mirror's.

    ``mirror`` is the address of ``os-images`` (default: INSTANT_ENV_AL2023_MIRROR, then Amazon's CDN).
    When the mirror cannot be asked, the newest image in the cache serves, and ``progress`` hears so.
    Raises BuildError in one line when there is neither.
    """
    require({"qemu-img": "qemu-utils"})
    mirror = (mirror or os.environ.get("INSTANT_ENV_AL2023_MIRROR") or DEFAULT_MIRROR).rstrip("/")
    folder = f"{mirror}/latest/{_FOLDER[arch]}"
    with exclusive(cache_dir, BASE, arch, progress):
        try:
            file_name, sha256 = find_image(download.get_text(f"{folder}/SHA256SUMS"), arch)
        except BuildError as error:
            if cached := newest_cached(cache_dir, arch):
                progress(f"{BASE}: {error.message}; using {cached.name}, fetched {cached.created:%Y-%m-%d}")
                return _as_today(cached)
            raise _unreachable(error) from error
        if cached := load_cached(cache_dir, BASE, arch, sha256[:16]):
            return _as_today(cached)
        disk = stock_dir(cache_dir) / f"{image_stem(BASE, arch, sha256[:16])}.qcow2"
        for stale in disk.parent.glob(f"{BASE}-{arch.value}-*.part"):
            if stale.name != f"{disk.name}.part":
                stale.unlink()  # Of a version that the mirror no longer calls the latest.
        try:
            download.fetch(f"{folder}/{file_name}", disk, sha256, on_bytes=_reporter(progress))
        except download.ChecksumError:
            raise
        except download.DownloadError as error:
            raise _unreachable(error) from error
        return save(_describe(arch, disk, file_name, sha256))


def _unreachable(error: BuildError) -> BuildError:
    return BuildError(
        f"the official al2023 image cannot be fetched here: {error.message}",
        hint="use --base debian-12, or set INSTANT_ENV_AL2023_MIRROR to a mirror of os-images",
    )


def find_image(sums: str, arch: Arch) -> tuple[str, str]:
    """(file name, SHA-256) of the image of ``arch`` in the text of SHA256SUMS. Raises BuildError."""
    name_end = re.escape(f"-kernel-{KERNEL}-{arch.value}.xfs.gpt.qcow2")
    pattern = re.compile(rf"^([0-9a-fA-F]{{64}}) [ *](al2023-kvm-[0-9.]+{name_end})$", re.MULTILINE)
    names = pattern.findall(sums)
    if len(names) != 1:
        raise BuildError(f"SHA256SUMS names {len(names)} images for kernel {KERNEL} on {arch}, not one")
    digest, name = names[0]
    return name, digest.lower()


def newest_cached(cache_dir: Path, arch: Arch) -> StockImage | None:
    """The image fetched last, or None."""
    images = [
        image
        for record in stock_dir(cache_dir).glob(f"{BASE}-{arch.value}-*.json")
        if (image := load_cached(cache_dir, BASE, arch, record.stem.rpartition("-")[2]))
    ]
    return max(images, key=lambda image: image.created, default=None)


def _as_today(cached: StockImage) -> StockImage:
    """A record of the cache may be older than what it says now."""
    return cached.model_copy(update={"nocloud": True})


def _reporter(progress: Progress) -> download.OnBytes:
    """Tell ``progress`` of the bytes, at most every _REPORT_S seconds."""
    last = time.monotonic()

    def report(have: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_S:
            last = time.monotonic()
            of = f" of {total / 1e6:.0f}" if total else ""
            progress(f"{BASE}: {have / 1e6:.0f}{of} MB fetched")

    return report


def _describe(arch: Arch, disk: Path, file_name: str, sha256: str) -> StockImage:
    """The record of a fetched image; its virtual size is read from the file."""
    command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(disk)]
    environment = os.environ | {"PATH": search_path()}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        disk.unlink()
        raise BuildError(f"{file_name} is not a qcow2 image: {result.stderr.strip()}")
    size = int(json.loads(result.stdout)["virtual-size"])
    version = file_name.removeprefix("al2023-kvm-").partition("-")[0]
    return StockImage(
        base=BASE,
        arch=arch,
        name=f"al2023-ami-{version}-kernel-{KERNEL}-{arch.value}",
        description=f"Amazon Linux 2023 {version}, official KVM image, kernel {KERNEL}, {arch.value}",
        owner_id=OWNER_ID,
        ssm_parameter=f"/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-{KERNEL}-{arch.value}",
        root_device_name="/dev/xvda",
        disk=disk,
        size_gib=-(-size // 1024**3),
        boot_mode="uefi-preferred",
        nocloud=True,
        digest=sha256[:16],
        created=datetime.now(UTC),
    )
