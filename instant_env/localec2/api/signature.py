"""Checking a request's signature (AWS Signature Version 4), with botocore's own arithmetic."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<key>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request,"
    r"\s*SignedHeaders=(?P<headers>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)


class SignatureError(Exception):
    """The request is not signed with our credentials; ``code`` is AWS's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
    method: str, url: str, headers: Mapping[str, str], body: bytes, access_key_id: str, secret: str
) -> Scope:
    """The scope of a correctly signed request. ``headers`` has lower-case names. Raises SignatureError."""
    match = _AUTHORIZATION.fullmatch(headers.get("authorization", "").strip())
    if match is None:
        raise SignatureError("MissingAuthenticationToken", "Request is missing Authentication Token")
    if not hmac.compare_digest(match["key"].encode(), access_key_id.encode()):
        raise SignatureError("AuthFailure", "localec2 does not know these credentials")
    signed = {name: headers.get(name, "") for name in match["headers"].split(";")}
    if not {"host", "x-amz-date"} <= set(signed):
        raise SignatureError("AuthFailure", "The signature does not cover host and x-amz-date")
    auth = SigV4Auth(Credentials(access_key_id, secret), match["service"], match["region"])
    request = AWSRequest(method=method, url=url, data=body, headers=signed)
    request.context["timestamp"] = signed["x-amz-date"]
    text = auth.string_to_sign(request, auth.canonical_request(request))
    if not hmac.compare_digest(auth.signature(text, request), match["signature"]):
        raise SignatureError("SignatureDoesNotMatch", "The request signature does not match the credentials")
    return Scope(match["service"], match["region"])
