"""Refusals as RFC 9457 problem documents: one table of codes, and nothing of an exception's own text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from instant_env.service.operations import RETRYABLE, Code, Refusal

MEDIA_TYPE = "application/problem+json"
#: The service serves the page of this address itself.
DOCS = "/docs/service.md"

STATUS: Mapping[Code, int] = {
    Code.INVALID_REQUEST: 422,
    Code.INVALID_KEY: 422,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.UNSUPPORTED_TECHNIQUE: 422,
    Code.TTL_OUT_OF_RANGE: 422,
    Code.IDEMPOTENCY_MISMATCH: 422,
    Code.LEASE_ENDED: 409,
    Code.CONFLICT: 409,
    Code.POOL_EMPTY: 503,
    Code.CAPACITY: 503,
    Code.QUOTA: 429,
    Code.THROTTLED: 429,
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}
TITLES: Mapping[Code, str] = {
    Code.INVALID_REQUEST: "The request is not one that this service reads",
    Code.INVALID_KEY: "The public key cannot be used",
    Code.UNAUTHORIZED: "No valid token",
    Code.FORBIDDEN: "The token may not do this",
    Code.NOT_FOUND: "There is no such thing",
    Code.UNSUPPORTED_TECHNIQUE: "The technique cannot serve this request",
    Code.TTL_OUT_OF_RANGE: "The time is outside the limits",
    Code.IDEMPOTENCY_MISMATCH: "The idempotency key belongs to another request",
    Code.LEASE_ENDED: "The lease has ended",
    Code.CONFLICT: "Something else changed it at the same time",
    Code.POOL_EMPTY: "No machine of the pool is ready",
    Code.CAPACITY: "The cloud has no such machine now",
    Code.QUOTA: "A limit of the token or of the service is reached",
    Code.THROTTLED: "Too many requests",
    Code.UNAVAILABLE: "The service cannot answer now",
    Code.INTERNAL: "The service made a mistake",
}
#: When to try again, where nobody knows better.
_RETRY_AFTER_S: Mapping[Code, float] = {
    Code.CONFLICT: 1, Code.POOL_EMPTY: 10, Code.CAPACITY: 60, Code.QUOTA: 30, Code.THROTTLED: 1,
    Code.UNAVAILABLE: 5, Code.INTERNAL: 5,
}  # fmt: skip
#: What Starlette and FastAPI refuse by themselves, by status; everything else below 500 is invalid-request.
_CODE_OF_STATUS = {
    401: Code.UNAUTHORIZED, 403: Code.FORBIDDEN, 404: Code.NOT_FOUND, 409: Code.CONFLICT,
    429: Code.THROTTLED, 503: Code.UNAVAILABLE,
}  # fmt: skip


class FieldError(BaseModel):
    """One field that broke a rule."""

    field: str = Field(description="the field's name; nested ones with dots; empty: the whole body")
    rule: str = Field(description="the rule that was broken")


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(description="the section of the documentation about this code")
    title: str
    status: int
    detail: str
    instance: str = Field(description="the path of the request")
    code: Code
    retryable: bool = Field(description="whether the same request may succeed later, unchanged")
    request_id: str
    hint: str | None = Field(None, description="what to do next")
    retry_after_s: float | None = None
    limit: float | None = Field(None, description="the value of the limit that was met")
    errors: list[FieldError] | None = None


def request_id(scope: Mapping[str, Any]) -> str:
    """The id that the envelope gave to a request."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem(
    scope: Mapping[str, Any],
    code: Code,
    detail: str,
    *,
    status: int | None = None,
    hint: str = "",
    retry_after_s: float | None = None,
    limit: float | None = None,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer for a refusal. ``status`` where it is not the code's own."""
    status = status or STATUS[code]
    retry_after_s = _RETRY_AFTER_S.get(code) if retry_after_s is None else retry_after_s
    document = Problem(
        type=f"{DOCS}#{code}",
        title=TITLES[code],
        status=status,
        detail=detail,
        instance=str(scope.get("path", "")),
        code=code,
        retryable=code in RETRYABLE,
        request_id=request_id(scope),
        hint=hint or None,
        retry_after_s=retry_after_s if code in RETRYABLE else None,
        limit=limit,
        errors=[FieldError.model_validate(error) for error in errors] or None,
    )
    scope.get("state", {})["problem"] = code.value
    answer = Response(
        json.dumps(document.model_dump(mode="json", exclude_none=True)),
        status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
    if document.retry_after_s is not None:
        answer.headers["Retry-After"] = str(max(1, math.ceil(document.retry_after_s)))
    if code is Code.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="instant-env"'
    return answer


def of_refusal(scope: Mapping[str, Any], refusal: Refusal) -> Response:
    return problem(
        scope,
        refusal.code,
        refusal.message,
        hint=refusal.hint,
        retry_after_s=refusal.retry_after_s,
        limit=refusal.limit,
        errors=refusal.errors,
    )


def internal(scope: Mapping[str, Any]) -> Response:
    """The answer for a mistake of ours; the log has it under the same id."""
    return problem(
        scope,
        Code.INTERNAL,
        f"an unexpected error; the service's log has it as request {request_id(scope)}",
        hint="send the same request again; with an Idempotency-Key a POST takes no second machine",
    )


async def _refusal(request: Request, error: Refusal) -> Response:
    return of_refusal(request.scope, error)


async def _http(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    code = _CODE_OF_STATUS.get(status, Code.INVALID_REQUEST if status < 500 else Code.INTERNAL)
    if status == 404:
        detail = f"there is nothing at {request.method} {request.url.path}"
    elif status == 405:
        allowed = _methods(request)
        detail = f"{request.url.path} does not take {request.method}; it takes {allowed}"
        return problem(request.scope, code, detail, status=status, headers={"Allow": allowed})
    else:
        detail = str(error.detail) if status < 500 else HTTPStatus(status).phrase
    return problem(request.scope, code, detail, status=status, headers=error.headers)


def _methods(request: Request) -> str:
    """All that the path takes; Starlette names those of the first route alone."""
    scope = request.scope
    taken = {
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        for route in request.app.routes
        if route.matches({**scope, "method": method})[0] is Match.FULL
    }
    return ", ".join(sorted(taken))


async def _validation(request: Request, error: RequestValidationError) -> Response:
    """Pydantic's report, without the values: they may be keys or tokens."""
    errors = [_field_error(item) for item in error.errors()]
    first = errors[0] if errors else {"field": "", "rule": "is not as it should be"}
    where = f"{first['field']}: " if first["field"] else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    content_type = request.headers.get("content-type", "")
    is_body = any(item["loc"][:1] == ("body",) for item in error.errors())
    hint = "" if "json" in content_type or not is_body else "send JSON, with Content-Type: application/json"
    status = 400 if any(item["type"] == "json_invalid" for item in error.errors()) else None
    return problem(
        request.scope, Code.INVALID_REQUEST, f"{where}{first['rule']}{more}",
        hint=hint, errors=errors[:20], status=status,
    )  # fmt: skip


def _field_error(item: Mapping[str, Any]) -> dict[str, str]:
    kind = item["type"]
    place, *rest = item["loc"] or ("",)
    path = rest if place in ("body", "query", "path", "header") else [place, *rest]
    if kind == "json_invalid":
        return {"field": "", "rule": f"the body is not JSON: {item['ctx']['error']} at character {rest[0]}"}
    rule = "unknown field" if kind == "extra_forbidden" else str(item["msg"]).removeprefix("Value error, ")
    return {"field": ".".join(str(part)[:64] for part in path)[:200], "rule": rule[:300]}


def install(app: FastAPI) -> None:
    """Give every refusal this form, the framework's own ones too."""
    app.exception_handler(Refusal)(_refusal)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(RequestValidationError)(_validation)


def documented(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """For a route's ``responses``: the problems that it answers beside those that every route may."""
    every = (Code.INVALID_REQUEST, Code.UNAUTHORIZED, Code.FORBIDDEN, Code.THROTTLED, Code.UNAVAILABLE,
             Code.INTERNAL)  # fmt: skip
    by_status: dict[int, list[Code]] = {}
    for code in dict.fromkeys((*codes, *every)):
        by_status.setdefault(STATUS[code], []).append(code)
    extra = {400: [Code.INVALID_REQUEST], 408: [Code.INVALID_REQUEST], 413: [Code.INVALID_REQUEST]}
    return {
        status: {
            "description": "; ".join(f"`{code}`: {TITLES[code]}" for code in listed),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, listed in sorted({**by_status, **extra}.items())
    }
