"""Who calls, and whether they may: the server's own credentials, or temporary ones of an instance's role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from instant_env.localec2.network.metadata import ACCOUNT_ID
from instant_env.localec2.protocol import signature
from instant_env.localec2.state.credentials import CredentialsError, Session
from instant_env.localec2.state.state import State

#: The owner of the server's own credentials, in STS's words.
OWNER_ARN = f"arn:aws:iam::{ACCOUNT_ID}:user/localec2"
#: What a token that is expired, or not valid, is to a service; JSON's clients look for other names.
_TOKEN_CODES = {
    "ec2": ("RequestExpired", "AuthFailure"),
    "json": ("ExpiredTokenException", "UnrecognizedClientException"),
}
_OTHER_TOKEN_CODES = ("ExpiredToken", "InvalidClientTokenId")


@dataclass(frozen=True)
class Caller:
    """Whose signature a request has. ``session`` is None for the server's own credentials."""

    session: Session | None = None

    @property
    def arn(self) -> str:
        return self.session.arn if self.session else OWNER_ARN


def serves_region(state: State, scope: signature.Scope) -> bool:
    """Whether a signature is for this server. IAM has no region; STS is in us-east-1 for all the world."""
    return (
        scope.region == state.region
        or scope.service == "iam"
        or (scope.service, scope.region) == ("sts", "us-east-1")
    )


def identify(
    state: State, method: str, url: str, headers: Mapping[str, str], body: bytes, at: datetime,
    *, unsigned_body: bool = False,
) -> tuple[signature.Scope, Caller]:  # fmt: skip
    """The scope and signer of a request that arrives at the time ``at``. Raises SignatureError.

    ``headers`` has lower-case names; ``unsigned_body``: the signature need not cover the body.
    """
    token = headers.get("x-amz-security-token")
    if token is None:
        record = state.server
        scope = signature.check(
            method, url, headers, body, record.access_key_id, record.secret_access_key, at,
            unsigned_body=unsigned_body,
        )  # fmt: skip
        return scope, Caller()
    try:
        credentials = state.issuer.open(token, at)
    except CredentialsError as error:
        raise _bad_token(headers, expired=error.expired) from error
    with state.lock:
        role = state.identities.roles.get(credentials.session.role_name)
    if role is None or role.id != credentials.session.role_id:
        raise _bad_token(headers, expired=False)
    scope = signature.check(
        method, url, headers, body, credentials.access_key_id, credentials.secret_access_key, at,
        unsigned_body=unsigned_body,
    )  # fmt: skip
    return scope, Caller(credentials.session)


def _bad_token(headers: Mapping[str, str], *, expired: bool) -> signature.SignatureError:
    kind = "json" if "json" in headers.get("content-type", "") else signature.service_of(headers)
    codes = _TOKEN_CODES.get(kind, _OTHER_TOKEN_CODES)
    state = "expired" if expired else "invalid"
    return signature.SignatureError(
        codes[0] if expired else codes[1], f"The security token included in the request is {state}"
    )


def refusal(state: State, caller: Caller, service: str, action: str) -> str | None:
    """Why the caller may not do this, as a sentence; None when they may. Takes the state's lock.

    Everybody may ask who they are.
    """
    session = caller.session
    if session is None or (service, action) == ("sts", "GetCallerIdentity"):
        return None
    name = f"{service}:{action}"
    with state.lock:
        role = state.identities.roles.get(session.role_name)
        if role is not None and state.identities.allows(role, name):
            return None
    return (
        f"User: {session.arn} is not authorized to perform: {name} because no identity-based policy allows "
        f"the {name} action"
    )
