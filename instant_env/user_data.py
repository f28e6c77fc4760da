"""The user data that instant-init and the key agent read: one typed document, checked before it is sent.

docs/user-data.md describes the document; the rules here are those of its reader, init/internal/userdata. The
init ignores a field that is wrong and boots on, so a mistake that is not found here shows on a console only.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
#: The owner of a mount that stands for the image's login user, whose name depends on the base.
LOGIN_USER = "login_user"

#: Directories where a volume would hide files that the machine needs: the first ones with all below them.
_SYSTEM = frozenset(
    ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr")
)
_SYSTEM_PATHS = frozenset(
    ("/", "/root", "/tmp", "/var", "/var/lib", "/var/lib/instant-init", "/var/lock", "/var/run")  # noqa: S108
)

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_HOSTNAME_MAX = 64  # the kernel's __NEW_UTS_LEN
_SERVICE = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,99}")
_USER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_SETTING = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SETTING_MAX = 1024  # bytes of UTF-8
_VOLUME_ID = re.compile(r"vol-[A-Za-z0-9]+")


class UserDataError(UsageError):
    """A field of the user data breaks a rule of the init."""


@dataclass(frozen=True)
class Mount:
    """An extra volume. Raises UserDataError.

    ``device`` is a volume's id or a path below /dev. ``format_blank`` makes ``filesystem`` on the device when
    nothing is on it; an empty ``filesystem`` mounts whatever is there. ``owner``, an account of the image or
    LOGIN_USER, gets the root directory of the file system at each start.
    """

    device: str
    path: str
    filesystem: str = ""
    format_blank: bool = False
    owner: str = ""

    def __post_init__(self) -> None:
        is_path = self.device.startswith("/dev/") and _is_clean(self.device)
        if not is_path and not _VOLUME_ID.fullmatch(self.device):
            raise _error("mounts: device", self.device, "a volume's id or a path below /dev", "vol-0abc1234")
        if not self.path.startswith("/") or not _is_clean(self.path):
            raise _error("mounts: path", self.path, "a clean absolute path", "/data")
        if self.path.split("/")[1] in _SYSTEM or self.path in _SYSTEM_PATHS:
            raise _error("mounts: path", self.path, "outside the directories of the system", "/data")
        if self.filesystem and self.filesystem not in FILESYSTEMS:
            raise _error("mounts: filesystem", self.filesystem, f"one of {', '.join(FILESYSTEMS)}", "ext4")
        if self.format_blank and not self.filesystem:
            raise UserDataError(
                f"user data: mounts: {self.path}: formatting a blank volume needs a file system",
                hint=f"set filesystem to one of: {', '.join(FILESYSTEMS)}",
            )
        if self.owner and not _USER.fullmatch(self.owner):
            raise _error("mounts: owner", self.owner, "the name of a user", LOGIN_USER)

    def document(self) -> dict[str, str]:
        fields = {"device": self.device, "path": self.path, "filesystem": self.filesystem}
        fields |= {"format": "blank" if self.format_blank else "", "owner": self.owner}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class UserData:
    """What a launch tells our init or key agent. Raises UserDataError; the message names the field.

    ``ttl_s`` counts from each start of the kernel; ``expires_at`` must be aware, and is written in UTC
    without fractions of a second. The earlier of the two ends the machine. ``settings`` are for the image's
    recipe: each is a line of text, and becomes a file below /run/instant-env/settings. Every process of the
    machine can read user data, so none of it may be a secret.
    """

    ttl_s: int | None = None
    expires_at: datetime | None = None
    ssh_keys: tuple[PublicKey, ...] = ()
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    services: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._check_times()
        if self.hostname and not _is_hostname(self.hostname):
            rule = f"labels of letters, digits and hyphens, {_HOSTNAME_MAX} characters at most"
            raise _error("hostname", self.hostname, rule, "build-7")
        paths = [mount.path for mount in self.mounts]
        for path in paths:
            if paths.count(path) > 1:
                raise _error("mounts: path", path, "the path of one volume", "/data, and /data/cache")
        for service in self.services:
            if not _SERVICE.fullmatch(service):
                rule = "a name of letters, digits and -_.@, without a dot in front"
                raise _error("services", service, rule, "docker")
        self._check_settings()
        if (size := len(self.as_json())) > MAX_BYTES:
            raise UserDataError(
                f"user data has at most {MAX_BYTES} bytes, this document {size}",
                hint="pass fewer or shorter SSH keys and settings",
            )

    def _check_times(self) -> None:
        ttl_s = self.ttl_s
        if ttl_s is not None and (type(ttl_s) is not int or not 1 <= ttl_s <= MAX_TTL_S):
            raise _error("ttl_s", ttl_s, f"a whole number of seconds, 1 to {MAX_TTL_S}", "3600")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise _error("expires_at", self.expires_at, "a time with a zone", "datetime.now(UTC)")

    def _check_settings(self) -> None:
        for name, value in self.settings.items():
            if not _SETTING.fullmatch(name):
                raise _error("settings", name, "a name of at most 100 letters, digits, - and _", "image")
            if not isinstance(value, str) or not is_plain(value) or len(value.encode()) > _SETTING_MAX:
                rule = f"one line of text, {_SETTING_MAX} bytes at most"
                raise _error(f"settings: {name}", value, rule, '"8080:80"')

    def document(self) -> dict[str, Any]:
        """The JSON object, with our member alone; fields that say nothing are left out."""
        fields = {
            "ttl_s": self.ttl_s,
            "expires_at": self.expires_at and format_time(self.expires_at),
            "ssh_keys": [str(key) for key in self.ssh_keys],
            "hostname": self.hostname,
            "mounts": [mount.document() for mount in self.mounts],
            "services": list(self.services),
            "settings": dict(self.settings),
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
