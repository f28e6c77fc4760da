"""The user data that instant-init and the key agent read: one typed document, checked before it is sent.

docs/user-data.md describes the document; the rules here are those of its reader, init/internal/userdata. The
init ignores a field that is wrong and boots on, so a mistake that is not found here shows on a console only.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from instant_env.errors import UsageError
from instant_env.public_key import PublicKey, is_plain

#: The member of the JSON object that is ours. Others may stand beside it.
MEMBER = "instant-env"
#: A year, as in the init: a longer time is a slip.
MAX_TTL_S = 365 * 24 * 3600
#: EC2's limit, before base64 (EC2 User Guide, "Run commands when you launch an EC2 instance").
MAX_BYTES = 16 * 1024
FILESYSTEMS = ("ext4", "xfs")

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_HOSTNAME_MAX = 64  # the kernel's __NEW_UTS_LEN
_SERVICE = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,99}")
_VOLUME_ID = re.compile(r"vol-[A-Za-z0-9]+")


class UserDataError(UsageError):
    """A field of the user data breaks a rule of the init."""


@dataclass(frozen=True)
class Mount:
    """An extra volume. Raises UserDataError.

    ``device`` is a volume's id or a path below /dev. ``format_blank`` makes ``filesystem`` on the device when
    nothing is on it; an empty ``filesystem`` mounts whatever is there.
    """

    device: str
    path: str
    filesystem: str = ""
    format_blank: bool = False

    def __post_init__(self) -> None:
        is_path = self.device.startswith("/dev/") and _is_clean(self.device)
        if not is_path and not _VOLUME_ID.fullmatch(self.device):
            raise _error("mounts: device", self.device, "a volume's id or a path below /dev", "vol-0abc1234")
        if not self.path.startswith("/") or self.path == "/" or not _is_clean(self.path):
            raise _error("mounts: path", self.path, "a clean absolute path other than /", "/data")
        if self.filesystem and self.filesystem not in FILESYSTEMS:
            raise _error("mounts: filesystem", self.filesystem, f"one of {', '.join(FILESYSTEMS)}", "ext4")
        if self.format_blank and not self.filesystem:
            raise UserDataError(
                f"user data: mounts: {self.path}: formatting a blank volume needs a file system",
                hint=f"set filesystem to one of: {', '.join(FILESYSTEMS)}",
            )

    def document(self) -> dict[str, str]:
        fields = {"device": self.device, "path": self.path, "filesystem": self.filesystem}
        fields["format"] = "blank" if self.format_blank else ""
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class UserData:
    """What a launch tells our init or key agent. Raises UserDataError; the message names the field.

    ``ttl_s`` counts from each start of the kernel; ``expires_at`` must be aware, and is written in UTC
    without fractions of a second. The earlier of the two ends the machine.
    """

    ttl_s: int | None = None
    expires_at: datetime | None = None
    ssh_keys: tuple[PublicKey, ...] = ()
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    services: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ttl_s = self.ttl_s
        if ttl_s is not None and (type(ttl_s) is not int or not 1 <= ttl_s <= MAX_TTL_S):
            raise _error("ttl_s", ttl_s, f"a whole number of seconds, 1 to {MAX_TTL_S}", "3600")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise _error("expires_at", self.expires_at, "a time with a zone", "datetime.now(UTC)")
        if self.hostname and not _is_hostname(self.hostname):
            rule = f"labels of letters, digits and hyphens, {_HOSTNAME_MAX} characters at most"
            raise _error("hostname", self.hostname, rule, "build-7")
        for service in self.services:
            if not _SERVICE.fullmatch(service):
                rule = "a name of letters, digits and -_.@, without a dot in front"
                raise _error("services", service, rule, "docker")
        if (size := len(self.as_json())) > MAX_BYTES:
            raise UserDataError(
                f"user data has at most {MAX_BYTES} bytes, this document {size}",
                hint="pass fewer or shorter SSH keys",
            )

    def document(self) -> dict[str, Any]:
        """The JSON object, with our member alone; fields that say nothing are left out."""
        fields = {
            "ttl_s": self.ttl_s,
            "expires_at": self.expires_at and format_time(self.expires_at),
            "ssh_keys": [str(key) for key in self.ssh_keys],
            "hostname": self.hostname,
            "mounts": [mount.document() for mount in self.mounts],
            "services": list(self.services),
        }
        return {MEMBER: {name: value for name, value in fields.items() if value}}

    def as_json(self) -> str:
        """The text of the document: ASCII, on one line."""
        return json.dumps(self.document())


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC, as the init and our tags have it."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _is_hostname(name: str) -> bool:
    """RFC 1123, section 2.1: labels with dots between."""
    return len(name) <= _HOSTNAME_MAX and all(_LABEL.fullmatch(label) for label in name.split("."))


def _is_clean(path: str) -> bool:
    """As Go's filepath.Clean would write it; POSIX lets two slashes in front stand, Go does not."""
    return is_plain(path) and not path.startswith("//") and posixpath.normpath(path) == path


def _error(field: str, value: object, rule: str, example: str) -> UserDataError:
    return UserDataError(
        f"user data: {field}: {str(value)[:80]!r} is not {rule}", hint=f"for example: {example}"
    )
