"""Checking a request's signature (AWS Signature Version 4), with botocore's own arithmetic."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<key>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request,"
    r"\s*SignedHeaders=(?P<headers>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)
#: IAM User Guide, "AWS Signature Version 4 for API requests": "In most cases, a request must reach AWS within
#: five minutes of the time stamp in the request."
MAX_AGE = MAX_LEAD = timedelta(minutes=5)
#: STS's and IAM's answers name 15 minutes for old signatures (aws-cli's issue 6676).
MAX_AGES = {"sts": timedelta(minutes=15), "iam": timedelta(minutes=15)}
_STAMP = "%Y%m%dT%H%M%SZ"
#: What a signature has in place of its body's digest when it does not cover the body.
UNSIGNED = "UNSIGNED-PAYLOAD"


class SignatureError(Exception):
    """The request is not signed with our credentials; ``code`` is AWS's."""

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status  # of HTTP, where it is not the usual one of the protocol


@dataclass(frozen=True)
class Scope:
    """What a signature was made for."""

    service: str
    region: str


def service_of(headers: Mapping[str, str]) -> str:
    """The service that a request claims to be signed for; empty when it is not signed."""
    match = _AUTHORIZATION.fullmatch(headers.get("authorization", "").strip())
    return match["service"] if match else ""


def check(
    method: str, url: str, headers: Mapping[str, str], body: bytes, access_key_id: str, secret: str,
    at: datetime, *, unsigned_body: bool = False,
) -> Scope:  # fmt: skip
    """The scope of a correctly signed request that arrives at the time ``at``. Raises SignatureError.

    ``headers`` has lower-case names. ``unsigned_body``: the signature need not cover the body.
    """
    match = _AUTHORIZATION.fullmatch(headers.get("authorization", "").strip())
    if match is None:
        raise SignatureError("MissingAuthenticationToken", "Request is missing Authentication Token")
    if not hmac.compare_digest(match["key"].encode(), access_key_id.encode()):
        raise SignatureError("AuthFailure", "localec2 does not know these credentials")
    signed = {name: headers.get(name, "") for name in match["headers"].split(";")}
    if not {"host", "x-amz-date"} <= set(signed):
        raise SignatureError("AuthFailure", "The signature does not cover host and x-amz-date")
    # A token decides whose secret is asked for, so one that is not signed still has to be the signer's.
    if missing := {n for n in headers if n.startswith("x-amz-")} - set(signed) - {"x-amz-security-token"}:
        raise SignatureError("AuthFailure", f"The signature does not cover {', '.join(sorted(missing))}")
    _check_digest(headers.get("x-amz-content-sha256"), body, unsigned_body=unsigned_body)
    auth = SigV4Auth(Credentials(access_key_id, secret), match["service"], match["region"])
    request = AWSRequest(method=method, url=url, data=body, headers=signed)
    request.context["timestamp"] = signed["x-amz-date"]
    text = auth.string_to_sign(request, auth.canonical_request(request))
    if not hmac.compare_digest(auth.signature(text, request), match["signature"]):
        raise SignatureError("SignatureDoesNotMatch", "The request signature does not match the credentials")
    _check_age(signed["x-amz-date"], match["service"], headers.get("content-type", ""), at)
    return Scope(match["service"], match["region"])


def _check_digest(digest: str | None, body: bytes, *, unsigned_body: bool) -> None:
    """Refuse a body other than the signed one: botocore's arithmetic believes what this header says."""
    if digest is None or (unsigned_body and digest == UNSIGNED):
        return
    if not hmac.compare_digest(digest.encode(), hashlib.sha256(body).hexdigest().encode()):
        raise SignatureError("SignatureDoesNotMatch", "x-amz-content-sha256 is not the digest of the body")


def _check_age(stamp: str, service: str, content_type: str, at: datetime) -> None:
    """Refuse a signature that is too old or of the future, with the code that the service's clients know."""
    try:
        signed_at = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError:
        raise SignatureError("IncompleteSignature", f"x-amz-date is not of the form {_STAMP}") from None
    age = MAX_AGES.get(service, MAX_AGE)
    now, oldest, newest = (moment.strftime(_STAMP) for moment in (at, at - age, at + MAX_LEAD))
    if at - age <= signed_at <= at + MAX_LEAD:
        return
    if service == "ec2":
        raise SignatureError("RequestExpired", "Request has expired.", 400)
    if signed_at > at:
        minutes = int(MAX_LEAD.total_seconds() // 60)
        text = f"Signature not yet current: {stamp} is still later than {newest} ({now} + {minutes} min.)"
    else:
        minutes = int(age.total_seconds() // 60)
        text = f"Signature expired: {stamp} is now earlier than {oldest} ({now} - {minutes} min.)"
    if service == "ebs" or "json" in content_type:
        raise SignatureError("InvalidSignatureException", text)
    raise SignatureError("SignatureDoesNotMatch", text, 403)
