"""The secrets that callers of the service present.

``ie_``, 32 random bytes, and a checksum, both in base 62: the prefix and the checksum let scanners of
repositories and images (docs/audit.md) and the service itself tell a secret from other text without asking
the store.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "ie_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BYTES = 32
#: The least number of digits that hold 256 bits, and 32 bits.
_SECRET_LENGTH, _CHECKSUM_LENGTH = 43, 6
_FORM = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}", re.ASCII)


def new_secret() -> str:
    """A secret of 52 characters, from the system's randomness."""
    text = PREFIX + _base62(int.from_bytes(secrets.token_bytes(_BYTES), "big"), _SECRET_LENGTH)
    return text + _checksum(text)


def looks_like(text: str) -> bool:
    """Whether it is a secret of some service, without a typing error in it."""
    if not _FORM.fullmatch(text):
        return False
    return text[-_CHECKSUM_LENGTH:] == _checksum(text[:-_CHECKSUM_LENGTH])


def hash_of(secret: str) -> str:
    """What the store keeps of it, in hexadecimal. SHA-256 alone: 256 random bits cannot be guessed, so a slow
    hash would only cost time at each request."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("ascii")), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
