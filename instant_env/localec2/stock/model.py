"""What a stock image is, and the cache it lives in.

One image is two files in ``<cache_dir>/stock``: ``<base>-<arch>-<digest>.qcow2`` and a ``.json`` with the
:class:`StockImage`. The JSON is written last, so an image without it does not exist; both are renamed into
place, so a reader never sees half a file.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from instant_env import files
from instant_env.arch import Arch
from instant_env.files import write_json
from instant_env.progress import Progress


class StockImage(BaseModel):
    """A base as its maker ships it, on a disk that boots under UEFI.

    ``disk`` is a qcow2 file without a backing file; ``size_gib`` its virtual size. ``owner_id``,
    ``ssm_parameter``, ``root_device_name`` and ``boot_mode`` are what EC2 says of the real AMI.
    ``nocloud``: its cloud-init does not look for EC2, and is given a NoCloud disk.
    """

    model_config = ConfigDict(frozen=True)

    base: str
    arch: Arch
    name: str
    description: str
    owner_id: str
    ssm_parameter: str
    root_device_name: str
    disk: Path
    size_gib: int
    boot_mode: str
    nocloud: bool = False
    digest: str
    created: datetime


def stock_dir(cache_dir: Path) -> Path:
    """The directory of the cache, made when it is not there."""
    directory = cache_dir / "stock"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def image_stem(base: str, arch: Arch, digest: str) -> str:
    """File name of an image without its suffix."""
    return f"{base}-{arch.value}-{digest}"


def load_cached(cache_dir: Path, base: str, arch: Arch, digest: str) -> StockImage | None:
    """The cached image of that digest, or None. A damaged record counts as none: it is made again.

    The path in the record is replaced by where the file is now, so that a cache may be moved.
    """
    disk = stock_dir(cache_dir) / f"{image_stem(base, arch, digest)}.qcow2"
    record = disk.with_suffix(".json")
    try:
        image = StockImage.model_validate_json(record.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return image.model_copy(update={"disk": disk}) if disk.is_file() else None


def save(image: StockImage) -> StockImage:
    """Write the record beside the disk, by rename; returns the image."""
    record = image.disk.with_suffix(".json")
    write_json(record, image.model_dump(mode="json"))
    return image


def exclusive(cache_dir: Path, base: str, arch: Arch, progress: Progress) -> AbstractContextManager[None]:
    """Hold the lock of one base and architecture, so that two builders do not do the same work twice."""
    path = stock_dir(cache_dir) / f"{base}-{arch.value}.lock"
    return files.exclusive(path, lambda: progress(f"{base}: another process is making it, waiting"))
