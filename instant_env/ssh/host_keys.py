"""The public host keys of one machine: what its logins trust, and what a user is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import asyncssh

from instant_env.errors import InstantEnvError
from instant_env.public_key import PublicKey, PublicKeyError

#: What sshd(8) says of known_hosts: a port other than this is written as [address]:port.
_SSH_PORT = 22
_HINT = "compare with the keys on the machine's console: aws ec2 get-console-output"


class HostKeyMismatch(InstantEnvError):
    """The server showed a host key that is not the machine's. Not for repeating: someone else answered, or
    the machine has made itself new keys."""


@dataclass(frozen=True)
class HostKeys:
    """The public host keys of a machine, each once, without comments, in the order in which it named them.

    Raises ValueError without any: an empty set would trust nobody, or be taken for "not known".
    """

    keys: tuple[PublicKey, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("a machine has at least one host key")
        bare = dict.fromkeys(PublicKey(key.type, key.body) for key in self.keys)
        object.__setattr__(self, "keys", tuple(bare))

    @classmethod
    def parse(cls, lines: str) -> HostKeys | None:
        """One key per line, as in the .pub files; lines of other types are passed over. None without any."""
        keys = []
        for line in lines.splitlines():
            try:
                keys.append(PublicKey.parse(line))
            except PublicKeyError:
                continue  # DSA, a certificate, or the console's other words
        return cls(tuple(keys)) if keys else None

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """``SHA256:...`` as ssh-keygen prints them."""
        return tuple(key.fingerprint for key in self.keys)

    def known_hosts(self, address: str, port: int = _SSH_PORT) -> str:
        """The lines of a known_hosts file, each with its newline (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        host = address if port == _SSH_PORT else f"[{address}]:{port}"
        return "".join(f"{host} {key.bare}\n" for key in self.keys)

    def for_asyncssh(self) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """asyncssh's ``known_hosts``: trusted host keys, authorities, revoked keys. It offers the server
        the algorithms of these keys alone, so a machine shows one of them."""
        return [key.for_asyncssh() for key in self.keys], [], []

    def check(self, seen: PublicKey | None) -> None:
        """Raises HostKeyMismatch unless ``seen`` is one of the keys."""
        if seen is None or (seen.type, seen.body) not in {(key.type, key.body) for key in self.keys}:
            raise HostKeyMismatch(
                f"the server showed {seen.fingerprint if seen else 'no host key'}, which is none of the "
                f"machine's: {', '.join(self.fingerprints)}",
                hint=_HINT,
            )


def mismatch(error: Exception) -> HostKeyMismatch | None:
    """The mismatch that asyncssh's error is, None for any other error. A server that has only other types of
    keys cannot agree on an algorithm with us."""
    other_types = isinstance(error, asyncssh.KeyExchangeFailed) and "host key" in str(error)
    if not isinstance(error, asyncssh.HostKeyNotVerifiable) and not other_types:
        return None
    return HostKeyMismatch(f"the server's host key is none of the machine's: {error}", hint=_HINT)


def trusted_by(host_keys: HostKeys | None) -> object:
    """The ``known_hosts`` of asyncssh. With None every server is taken, as for a machine just made."""
    return host_keys.for_asyncssh() if host_keys is not None else None


def shown(connection: asyncssh.SSHClientConnection | None) -> PublicKey | None:
    """The host key that the server of a connection showed."""
    key = connection.get_server_host_key() if connection is not None else None
    if key is None:
        return None
    kind, body = key.export_public_key().decode().split()[:2]
    return PublicKey(kind, body)
