"""Client tokens: the same request with the same token is done once and answered the same.

The token and the request's digest lie in the record of what the request made, so they outlive the server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from instant_env.localec2.state.moto_api import EC2ClientError

#: API_RunInstances, ClientToken: "Maximum 64 ASCII characters"; of the other actions, too.
MAX_TOKEN = 64
#: Parameters that say nothing about what is to be made.
_NOT_MEANT = ("Action", "Version", "ClientToken", "DryRun")


class _Made(Protocol):
    @property
    def client_token(self) -> str | None: ...
    @property
    def request_digest(self) -> str: ...


M = TypeVar("M", bound=_Made)


class TokenMismatchError(Exception):
    """A client token was used before, with other parameters."""


def request_digest(wire: Mapping[str, list[str]]) -> str:
    """What must be the same for a client token to mean the same request: all of it but the token."""
    meant = {name: values[0] for name, values in wire.items() if name not in _NOT_MEANT}
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()


def same_request(records: Iterable[M], token: str | None, digest: str) -> list[M]:
    """What a request with this token has made before. Raises TokenMismatchError when that one was another."""
    if not token:
        return []
    earlier = [record for record in records if record.client_token == token]
    if any(record.request_digest != digest for record in earlier):
        raise TokenMismatchError
    return earlier


def records_of_token(records: Iterable[M], token: str | None, digest: str) -> list[M]:
    """:func:`same_request` in EC2's words. Raises EC2ClientError."""
    if token and (len(token) > MAX_TOKEN or not token.isascii()):
        raise EC2ClientError(
            "InvalidParameterValue", f"A client token has at most {MAX_TOKEN} ASCII characters."
        )
    try:
        return same_request(records, token, digest)
    except TokenMismatchError:
        raise EC2ClientError(
            "IdempotentParameterMismatch",
            "The client token you have provided is associated with a resource that has different request "
            "parameters.",
        ) from None
