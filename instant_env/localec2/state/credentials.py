"""Temporary credentials of roles: made from the server's secret, kept nowhere.

A session token says who it is for and since when, with an HMAC; the access key id and the secret key are
HMACs of the same text. So a server that starts again knows the credentials it gave out before, and no record,
no log and no list holds one. Times are those of EC2, where credentials of an instance last six hours and new
ones appear well before the old expire.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from instant_env.localec2.network.metadata import ACCOUNT_ID

#: How long credentials last.
LIFETIME = timedelta(hours=6)
#: How often an instance gets new ones; EC2 promises them five minutes before the old expire.
ROTATION = timedelta(hours=1)
_MAC_BYTES = 32


class CredentialsError(Exception):
    """A session token that is not valid; ``expired`` tells which of the two."""

    def __init__(self, *, expired: bool) -> None:
        super().__init__("the session token is " + ("expired" if expired else "not valid"))
        self.expired = expired


@dataclass(frozen=True)
class Session:
    """A role, assumed by something (an instance: its id is the session's name)."""

    role_name: str
    role_id: str
    name: str
    issued_at: datetime  # UTC, whole seconds

    @property
    def expires_at(self) -> datetime:
        return self.issued_at + LIFETIME

    @property
    def arn(self) -> str:
        return f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/{self.role_name}/{self.name}"

    @property
    def user_id(self) -> str:
        return f"{self.role_id}:{self.name}"


@dataclass(frozen=True)
class Credentials:
    """What a program signs with."""

    session: Session
    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)


class Issuer:
    """Makes and recognises credentials. ``secret`` is the server's own."""

    def __init__(self, secret: str) -> None:
        self._secret = hmac.new(secret.encode(), b"temporary credentials", hashlib.sha256).digest()

    def _mac(self, purpose: bytes, claims: bytes) -> bytes:
        return hmac.new(self._secret, purpose + b"\0" + claims, hashlib.sha256).digest()

    def issue(self, session: Session) -> Credentials:
        """The credentials of a session; the same for the same session."""
        claims = json.dumps(
            [session.role_name, session.role_id, session.name, int(session.issued_at.timestamp())]
        ).encode()
        return Credentials(
            session, "ASIA" + base64.b32encode(self._mac(b"key id", claims))[:16].decode(),
            base64.b64encode(self._mac(b"secret", claims)[:30]).decode(),
            base64.b64encode(self._mac(b"token", claims) + claims).decode(),
        )  # fmt: skip

    def open(self, token: str, at: datetime) -> Credentials:
        """The credentials that a token belongs to. Raises CredentialsError."""
        try:
            raw = base64.b64decode(token, validate=True)
        except ValueError as error:
            raise CredentialsError(expired=False) from error
        mac, claims = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(b"token", claims)):
            raise CredentialsError(expired=False)
        role_name, role_id, name, issued_at = json.loads(claims)
        session = Session(role_name, role_id, name, datetime.fromtimestamp(issued_at, UTC))
        if at >= session.expires_at:
            raise CredentialsError(expired=True)
        return self.issue(session)


def issue_time(since: datetime, at: datetime) -> datetime:
    """When the credentials were issued that an instance has at a time: at its association, then hourly."""
    return since + ROTATION * max(0, (at - since) // ROTATION)
