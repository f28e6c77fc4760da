"""Stock images: the bases that localec2 registers as AMIs of their real owners.

`build` makes or fetches one; everything is cached under ``<cache_dir>/stock``.
"""

from __future__ import annotations

from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian.command import BuildError
from instant_env.errors import UsageError
from instant_env.localec2.stock import al2023, al2023_like, debian, tiny
from instant_env.localec2.stock.model import StockImage
from instant_env.progress import Progress

__all__ = ["BASES", "BuildError", "StockImage", "build"]

_BUILDERS = {
    debian.BASE: debian.build,
    debian.XFS_BASE: debian.build_on_xfs,
    al2023.BASE: al2023.build,
    al2023_like.BASE: al2023_like.build,
    tiny.BASE: tiny.build,
}
#: Names that `build` knows.
BASES = tuple(_BUILDERS)


def build(base: str, arch: Arch, cache_dir: Path, progress: Progress) -> StockImage:
    """The stock image of ``base``: from the cache, or made now. ``progress`` gets a line per step.

    Raises UsageError for an unknown base, MissingToolError for programs that are not installed,
    BuildError when the image cannot be made or fetched.
    """
    try:
        builder = _BUILDERS[base]
    except KeyError:
        raise UsageError(f"unknown base {base!r}", hint=f"use one of: {', '.join(BASES)}") from None
    return builder(arch, cache_dir, progress)
