"""How to log in to a lease: which key is one's own, and which host key is the machine's from the start."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instant_env.errors import InstantEnvError, UsageError
from instant_env.files import write_atomically
from instant_env.foreign import read_text
from instant_env.public_key import PublicKey, PublicKeyError
from instant_env.settings import Settings

#: In the order in which they are looked for; ssh(1) has the same names.
KEY_NAMES = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub", "id_ed25519_sk.pub", "id_ecdsa_sk.pub")


@dataclass(frozen=True)
class Key:
    """A public key and, where it lies beside it, the private one's file."""

    public: PublicKey
    private: Path | None


def find_key(named: str, home: Path | None = None) -> Key:
    """The key file that is named, or the first in ~/.ssh. Raises UsageError, which names those looked for."""
    folder = (home or Path.home()) / ".ssh"
    if named:
        return read_key(Path(named).expanduser())
    for name in KEY_NAMES:
        if (folder / name).is_file():
            return read_key(folder / name)
    looked_for = ", ".join(f"~/.ssh/{name}" for name in KEY_NAMES)
    raise UsageError(
        f"no public key: none of {looked_for}", hint="make one: ssh-keygen -t ed25519; or pass --key FILE"
    )


def read_key(path: Path) -> Key:
    """Raises UsageError for a file that is no public key; a private one is never sent."""
    text = read_text(path, hint="--key is a public key's file, such as ~/.ssh/id_ed25519.pub")
    if "PRIVATE KEY" in text:
        raise UsageError(f"{path} is a private key, which nobody else should see", hint=f"pass {path}.pub")
    try:
        public = PublicKey.parse(text)
    except PublicKeyError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    private = path.with_suffix("") if path.suffix == ".pub" else None
    return Key(public, private if private is not None and private.is_file() else None)


def own_private_key(fingerprint: str, home: Path | None = None) -> Path | None:
    """The private key in ~/.ssh whose public one has this fingerprint."""
    for path in sorted(((home or Path.home()) / ".ssh").glob("*.pub")):
        try:
            key = read_key(path)
        except InstantEnvError:
            continue
        if key.public.fingerprint == fingerprint:
            return key.private
    return None


def command(settings: Settings, lease: Mapping[str, Any], private: Path | None) -> list[str]:
    """The ssh command for a lease that is ready. Its host keys go to a file of their own, so that the machine
    is checked from the first connect on and ~/.ssh/known_hosts is left alone. Raises InstantEnvError.
    """
    address, user = str(lease.get("address") or ""), str(lease.get("user") or "")
    if not address or not user or lease["state"] != "ready":
        raise UsageError(
            f"lease {lease['id']} is {lease['state']}", hint="only a lease that is ready has a machine"
        )
    if address.startswith("-") or user.startswith("-") or not str(lease["id"]).replace("-", "").isalnum():
        raise InstantEnvError("the service's answer is not one of this service", hint="is --url right?")
    words = ["ssh"]
    if known_hosts := lease.get("known_hosts"):
        path = settings.service_dir / "known_hosts" / str(lease["id"])
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, f"{known_hosts}\n".encode())
        # GlobalKnownHostsFile too: an old key of the same address there would be taken for the right one.
        words += ["-o", f"UserKnownHostsFile={path}", "-o", "GlobalKnownHostsFile=/dev/null",
                  "-o", "StrictHostKeyChecking=yes"]  # fmt: skip
    if private is not None:
        words += ["-o", "IdentitiesOnly=yes", "-i", str(private)]
    if lease["port"] != 22:
        words += ["-p", str(int(lease["port"]))]
    return [*words, f"{user}@{address}"]


def forget(settings: Settings, lease_id: str) -> None:
    """Remove the file of host keys of a lease that has ended."""
    if lease_id.replace("-", "").isalnum():
        (settings.service_dir / "known_hosts" / lease_id).unlink(missing_ok=True)


def line(words: list[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(words)
