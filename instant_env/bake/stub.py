"""systemd's EFI stub for the other architecture, from Debian, when this machine has only its own.

Debian keeps it in systemd-boot-efi. Installing that for arm64 would mean `dpkg --add-architecture` on the
user's machine; instead apt fetches the package with lists of its own, checked against Debian's keys, and one
file is taken out of it. It stays in the cache: the same stub, the same plan.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian import apt, mirrors
from instant_env.debian.command import Runner, require
from instant_env.errors import InstantEnvError, MissingToolError

PACKAGE = "systemd-boot-efi"
#: Where the package has it (systemd-stub(7)).
DIRECTORY = "usr/lib/systemd/boot/efi"


class StubError(InstantEnvError):
    """The stub cannot be fetched."""


def fetch(name: str, arch: Arch, cache_dir: Path) -> Path:
    """The stub called ``name`` for ``arch``: from the cache, or from Debian (some 10 MB of lists, once).

    Raises MissingToolError without apt or Debian's keys, StubError when the mirror or the package fails.
    """
    stub = cache_dir / "efi-stub" / arch.value / name
    if stub.is_file():
        return stub
    hint = f"apt-get install {PACKAGE}:{arch.debian}, or put its {DIRECTORY}/{name} at {stub}"
    try:
        require(apt.TOOLS)
        mirrors.check_keyring()
    except MissingToolError as error:
        raise MissingToolError(f"no EFI stub {name} here, and {error.message}", hint=hint) from error
    stub.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=stub.parent) as directory:
        work = Path(directory)
        try:
            archive = apt.Archive(
                Runner(stub.with_suffix(".log")),
                work / "apt",
                arch,
                mirrors.Mirrors.from_environment().sources(),
            )
            archive.update()
            archive.unpack([PACKAGE], work / "tree")
            # Two bakes may fetch it at once; whoever renames last, it is the same file.
            (work / "tree" / DIRECTORY / name).replace(stub)
        except (InstantEnvError, OSError) as error:
            raise StubError(f"no EFI stub for {arch}: {error}", hint=hint) from error
    return stub
