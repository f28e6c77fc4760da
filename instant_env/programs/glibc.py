"""Which glibc a binary needs: one that was linked on a newer system than an image's does not start there."""

from __future__ import annotations

import re
from pathlib import Path

from instant_env.debian.command import BuildError

#: A version of a symbol, as the dynamic string table has it: NUL-terminated, like all of its texts.
_VERSION = re.compile(rb"GLIBC_2\.(\d+)(?:\.\d+)?\0")


def check(binary: Path, oldest: str) -> None:
    """Raise BuildError when ``binary`` asks for a glibc newer than ``oldest`` (as ``2.34``)."""
    minors = [int(minor) for minor in _VERSION.findall(binary.read_bytes())]
    if minors and max(minors) > int(oldest.partition(".")[2]):
        raise BuildError(
            f"{binary.name}, as built here, needs glibc 2.{max(minors)}, and images have {oldest}",
            hint="build it on an older distribution, as Debian 12",
        )
