"""Who calls, and whether they may: the server's own credentials, or temporary ones of an instance's role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from instant_env.localec2 import signature
from instant_env.localec2.credentials import CredentialsError, Session
from instant_env.localec2.metadata import ACCOUNT_ID
from instant_env.localec2.state import State

#: The owner of the server's own credentials, in STS's words.
OWNER_ARN = f"arn:aws:iam::{ACCOUNT_ID}:user/localec2"
#: Signatures of IAM and STS name this region, whatever region a client works in.
GLOBAL_REGION = "us-east-1"
GLOBAL_SERVICES = ("iam", "sts")


@dataclass(frozen=True)
class Caller:
    """Whose signature a request has. ``session`` is None for the server's own credentials."""

    session: Session | None = None

    @property
    def arn(self) -> str:
        return self.session.arn if self.session else OWNER_ARN


def identify(
    state: State, method: str, url: str, headers: Mapping[str, str], body: bytes
) -> tuple[signature.Scope, Caller]:
    """The scope and signer of a request. ``headers`` has lower-case names. Raises SignatureError."""
    token = headers.get("x-amz-security-token")
    if token is None:
        record = state.server
        scope = signature.check(method, url, headers, body, record.access_key_id, record.secret_access_key)
        return scope, Caller()
    try:
        credentials = state.issuer.open(token, datetime.now(UTC))
    except CredentialsError as error:
        if error.expired:
            raise signature.SignatureError(
                "ExpiredToken", "The security token included in the request is expired"
            ) from error
        raise _not_valid() from error
    with state.lock:
        role = state.identities.roles.get(credentials.session.role_name)
    if role is None or role.id != credentials.session.role_id:
        raise _not_valid()
    scope = signature.check(
        method, url, headers, body, credentials.access_key_id, credentials.secret_access_key
    )
    return scope, Caller(credentials.session)


def _not_valid() -> signature.SignatureError:
    return signature.SignatureError(
        "InvalidClientTokenId", "The security token included in the request is invalid"
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
