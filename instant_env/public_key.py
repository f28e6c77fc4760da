"""A public key from outside, parsed as a key: only its parts are passed on, nothing else of the text."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import asyncssh

from instant_env.errors import UsageError

#: Key types that sshd accepts by default (ssh_config(5), PubkeyAcceptedAlgorithms), without certificates.
TYPES = frozenset({
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
})  # fmt: skip
MIN_RSA_BITS = 2048


class PublicKeyError(UsageError):
    """The text is not one public key that a machine can be given."""


@dataclass(frozen=True)
class PublicKey:
    """``type`` and ``body`` (base64) as in authorized_keys; ``comment`` has no control characters."""

    type: str
    body: str
    comment: str = ""

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read one line ``type base64 [comment]``. Raises PublicKeyError with the rule that was broken.

        The rules are those of the init (init/internal/sshkey), which reads the key in the machine, and the
        sizes that sshd insists on. Options (``command=...``) are refused: they would be the caller's word
        about what runs on the machine.
        """
        line = text.strip()
        if "\n" in line or "\r" in line:
            raise _error("a public key is one line", "pass one key")
        kind, _, rest = line.partition(" ")
        body, _, comment = rest.strip().partition(" ")
        if kind not in TYPES:
            raise _error(
                f"{kind[:40]!r} is not a type of public key",
                f"pass 'type base64 [comment]' without options; types: {', '.join(sorted(TYPES))}",
            )
        if not is_plain(comment):
            raise _error("the comment of a public key has no control characters", "remove the comment")
        try:
            key = asyncssh.import_public_key(f"{kind} {body}")
        except (asyncssh.KeyImportError, ValueError) as error:
            raise _error(
                f"this is not a {kind} public key: {error}", "pass the content of a .pub file"
            ) from None
        exported_kind, exported_body = key.export_public_key().decode().split()[:2]
        if (exported_kind, exported_body) != (kind, body):
            raise _error(
                f"the type inside the key is not {kind}, or it has other bytes", "copy the key again"
            )
        if kind == "ssh-rsa" and (bits := rsa_bits(key)) < MIN_RSA_BITS:
            raise _error(
                f"an RSA key has at least {MIN_RSA_BITS} bits, this one {bits}", "use an ed25519 key"
            )
        return cls(kind, body, comment.strip())

    def __str__(self) -> str:
        """The line, with the parts that were parsed."""
        return " ".join(part for part in (self.type, self.body, self.comment) if part)

    @property
    def bare(self) -> str:
        """The line without the comment, for places with little room or few characters."""
        return f"{self.type} {self.body}"

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen prints it: of the key's bytes, without their being parsed."""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    def for_asyncssh(self) -> asyncssh.SSHKey:
        return asyncssh.import_public_key(self.bare)


def is_plain(text: str) -> bool:
    """Whether the text has no control characters and no half of a surrogate pair, which UTF-8 cannot hold."""
    return not any(
        ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) < 0xE000
        for character in text
    )


def rsa_bits(key: asyncssh.SSHKey) -> int:
    """The length of the modulus: the third field of the key's bytes (RFC 4253, section 6.6)."""
    data = key.public_data
    fields = []
    while data:
        length = int.from_bytes(data[:4], "big")
        fields.append(data[4 : 4 + length])
        data = data[4 + length :]
    return int.from_bytes(fields[2], "big").bit_length()


def _error(rule: str, hint: str) -> PublicKeyError:
    return PublicKeyError(rule, hint=hint)
