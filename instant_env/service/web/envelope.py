"""Around every request: its id, the bound on its body, its line in the log, its metrics, and the answer to
what nobody expected."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import MutableMapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import unbind_contextvars

from instant_env.service.logs import bound
from instant_env.service.operations import Code, Refusal
from instant_env.service.web import problems
from instant_env.service.web.context import Web

#: An RSA key of 16384 bits is 2.8 kB in authorized_keys; with labels a request stays far below this.
MOST_BODY_BYTES = 32 * 1024
#: For a body that is sent drop by drop.
BODY_TIMEOUT_S = 10.0
#: Deeper JSON is nobody's request, and the parser recurses.
MOST_DEPTH = 16

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: For all answers but the page, which has its own policy.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class _Refused(Exception):
    """The body is not read to its end; ``status`` says why."""

    def __init__(self, status: int, detail: str, limit: float) -> None:
        super().__init__(detail)
        self.status, self.detail, self.limit = status, detail, limit


class _Gone(Exception):
    """The client left while it sent its body."""


class Envelope:
    """The outermost middleware of ours. A plain ASGI one, so that streams pass through unbuffered."""

    def __init__(self, app: ASGIApp, web: Web, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._web = web
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # The server, whose scope is the one of before, leaves the body out (RFC 9110, section 9.3.2).
            scope = {**scope, "method": "GET"}
        headers = dict(scope["headers"])
        sent_id = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(scope, send)
        started = time.monotonic()
        with bound(request_id=request_id):
            try:
                await self._answer(scope, receive, exchange, headers)
            except _Gone:
                exchange.status = exchange.status or 499  # as nginx counts clients that left
            except Exception as error:
                self._web.log.error("request failed", error=type(error).__name__, exc_info=error)
                if not exchange.status:
                    await problems.internal(scope)(scope, receive, exchange)
            finally:
                self._note(scope, exchange, time.monotonic() - started)
                unbind_contextvars("lease_id")

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: MutableMapping[bytes, bytes]
    ) -> None:
        try:
            if b"authorization" not in headers:
                self._web.charge_peer(scope)
            body = await self._body(receive, headers)
        except Refusal as refusal:
            await problems.of_refusal(scope, refusal)(scope, receive, send)
            return
        except _Refused as refused:
            # The rest of the body is still to come: the connection is of no more use.
            answer = problems.problem(
                scope, Code.INVALID_REQUEST, refused.detail, status=refused.status, limit=refused.limit,
                headers={"Connection": "close"},
            )  # fmt: skip
            await answer(scope, receive, send)
            return
        handed_over = False

        async def receive_whole() -> Message:
            nonlocal handed_over
            if handed_over:
                return await receive()
            handed_over = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_whole, send)

    async def _body(self, receive: Receive, headers: MutableMapping[bytes, bytes]) -> bytes:
        """All of the body, which is small, so that no handler waits for a slow one."""
        size = headers.get(b"content-length", b"0")
        if not size.isdigit() or int(size) > MOST_BODY_BYTES:
            raise _Refused(413, f"a body has at most {MOST_BODY_BYTES} bytes", MOST_BODY_BYTES)
        if b"transfer-encoding" not in headers and int(size) == 0:
            return b""
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    body += message.get("body", b"")
                    if len(body) > MOST_BODY_BYTES:
                        raise _Refused(413, f"a body has at most {MOST_BODY_BYTES} bytes", MOST_BODY_BYTES)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            limit = self._body_timeout_s
            raise _Refused(408, f"the body did not come within {limit:.0f} s", limit) from None
        if nesting(bytes(body)) > MOST_DEPTH:
            raise _Refused(400, f"JSON of a request has at most {MOST_DEPTH} levels", MOST_DEPTH)
        return bytes(body)

    def _note(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", "") or "unmatched"
        method = scope["method"]
        problem = state.get("problem", "")
        self._web.metrics.request(
            method, route, exchange.status, None if exchange.is_stream else seconds, problem
        )
        about = {
            name: state[key]
            for name, key in (("lease_id", "lease_id"), ("token_id", "token_id"), ("problem", "problem"))
            if state.get(key)
        }
        self._web.log.info(
            "request", method=method[:16], route=route, status=exchange.status, ms=round(seconds * 1000, 1),
            **about,
        )  # fmt: skip


class _Exchange:
    """``send`` with our headers on the answer; remembers its status."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self.status = 0
        self.is_stream = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            present = {name.lower() for name, _ in headers}
            self.is_stream = (b"content-type", b"text/event-stream; charset=utf-8") in headers
            state = self._scope["state"]
            headers.append((b"x-request-id", state["request_id"].encode()))
            headers += state.get("ratelimit", ())
            headers += [(name, value) for name, value in _HEADERS if name not in present]
            message = {**message, "headers": headers}
        await self._send(message)


def nesting(body: bytes) -> int:
    """How deep the brackets of a JSON text are nested, strings left out."""
    depth = deepest = 0
    inside = escaped = False
    for byte in body:
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                inside = False
        elif byte == 0x22:
            inside = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
