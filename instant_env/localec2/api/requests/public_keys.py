"""Public keys in the forms that ImportKeyPair takes, and fingerprints as EC2 computes them.

EC2 User Guide, "Create a key pair for your Amazon EC2 instance": OpenSSH's format, that of RFC 4716, and
base64 of DER; RSA and ED25519, neither DSA nor ECDSA.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from instant_env.localec2.state.moto_api import EC2ClientError

_BEGIN, _END = "---- BEGIN SSH2 PUBLIC KEY ----", "---- END SSH2 PUBLIC KEY ----"
MIN_RSA_BITS = 1024
#: A key of 16,384 bits is not 3 KiB long.
MAX_MATERIAL = 16 * 1024


@dataclass(frozen=True)
class ImportedKey:
    """A public key as machines get it, and as EC2 describes it."""

    line: str  # in OpenSSH's format, with the comment that came with it
    kind: str
    fingerprint: str


def imported(material: bytes) -> ImportedKey:
    """Read what ImportKeyPair was given. Raises EC2ClientError (``InvalidKey.Format``)."""
    try:
        text = material[: MAX_MATERIAL + 1].decode("ascii").strip()
        key, comment = _read(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refusal("Key is not in valid OpenSSH public key format") from error
    if not isinstance(key, RSAPublicKey | Ed25519PublicKey):
        raise _refusal("The key is neither RSA nor ED25519")
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    with_comment = f"{line} {comment}".strip()
    if isinstance(key, Ed25519PublicKey):
        return ImportedKey(with_comment, "ed25519", ed25519_fingerprint(line))
    if key.key_size < MIN_RSA_BITS:
        raise _refusal(f"The RSA key has less than {MIN_RSA_BITS} bits")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return ImportedKey(with_comment, "rsa", _colons(hashlib.md5(der, usedforsecurity=False).digest()))


def _read(text: str) -> tuple[object, str]:
    """The key and its comment. Raises ValueError."""
    if len(text) > MAX_MATERIAL:
        raise ValueError("too long")
    if text.startswith(_BEGIN):
        return serialization.load_ssh_public_key(_line_of_rfc4716(text).encode()), ""
    if text.startswith("ssh-"):
        if len(text.splitlines()) > 1:
            raise ValueError("more than one line")
        comment = "".join(text.split(None, 2)[2:])
        return serialization.load_ssh_public_key(text.encode()), comment
    der = base64.b64decode("".join(text.split()), validate=True)
    return serialization.load_der_public_key(der), ""


def _line_of_rfc4716(text: str) -> str:
    """RFC 4716, section 3: headers, which a backslash continues, then base64 in lines."""
    lines = text.splitlines()
    if lines[-1].strip() != _END:
        raise ValueError("no end marker")
    body: list[str] = []
    header = False
    for line in lines[1:-1]:
        if header or ":" in line:
            header = line.endswith("\\")
        else:
            body.append(line.strip())
    try:
        blob = base64.b64decode("".join(body), validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error
    length = int.from_bytes(blob[:4], "big")
    return f"{blob[4 : 4 + length].decode('ascii')} {base64.b64encode(blob).decode()}"


def ed25519_fingerprint(line: str) -> str:
    """SHA-256 as OpenSSH has it, but padded."""
    return base64.b64encode(hashlib.sha256(base64.b64decode(line.split()[1])).digest()).decode()


def created_rsa_fingerprint(private_key_pem: bytes) -> str:
    """Of a pair that EC2 made: SHA-1 of the private key (PKCS #8, DER), which only its owner can compute."""
    key = serialization.load_pem_private_key(private_key_pem, None)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return _colons(hashlib.sha1(der, usedforsecurity=False).digest())


def _colons(digest: bytes) -> str:
    return digest.hex(":")


def _refusal(message: str) -> EC2ClientError:
    return EC2ClientError("InvalidKey.Format", message)
