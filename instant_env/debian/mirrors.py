"""Where Debian's packages come from, and the keys that sign them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from instant_env.errors import MissingToolError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
SUITE = "bookworm"


@dataclass(frozen=True)
class Mirrors:
    """Where packages come from; the suites and keys are Debian's wherever that is."""

    archive: str
    security: str

    @classmethod
    def from_environment(cls) -> Mirrors:
        """INSTANT_ENV_DEBIAN_MIRROR and INSTANT_ENV_DEBIAN_SECURITY_MIRROR override deb.debian.org."""
        return cls(
            os.environ.get("INSTANT_ENV_DEBIAN_MIRROR") or DEFAULT_MIRROR,
            os.environ.get("INSTANT_ENV_DEBIAN_SECURITY_MIRROR") or DEFAULT_SECURITY_MIRROR,
        )

    def sources(self) -> str:
        """One-line sources for mmdebstrap; the key is named, so that an Ubuntu host trusts the right one."""
        option, suite = f"[signed-by={KEYRING}]", SUITE
        return (
            f"deb {option} {self.archive} {suite} main\n"
            f"deb {option} {self.archive} {suite}-updates main\n"
            f"deb {option} {self.security} {suite}-security main\n"
        )


def check_keyring() -> None:
    """Raise MissingToolError unless the keys that sign Debian's archive are there."""
    if not KEYRING.is_file():
        raise MissingToolError(
            f"Debian's archive keys are not there: {KEYRING}",
            hint="run: apt-get install debian-archive-keyring",
        )
