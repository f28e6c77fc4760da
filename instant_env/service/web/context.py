"""What every route has at hand: the operations, limits and logs of one app, and who asks."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import Scope as AsgiScope
from structlog.contextvars import bind_contextvars

from instant_env.service.logs import Logger
from instant_env.service.operations import Code, Operations, Refusal
from instant_env.service.records import Scope, Token
from instant_env.service.web.buckets import Allowance, Buckets, peer_name
from instant_env.service.web.http_metrics import HttpMetrics

T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of `invoke token.new`, or the one that `invoke serve` wrote.",
)


@dataclass
class Web:
    """One app's parts. ``stopping`` is set when the listener shuts down: whoever waits then answers."""

    operations: Operations
    log: Logger
    callers: Buckets
    peers: Buckets
    most_streams: int
    metrics: HttpMetrics = field(default_factory=HttpMetrics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _streams: Counter[str] = field(default_factory=Counter)

    def charge_peer(self, scope: AsgiScope) -> None:
        """Charge a request without a valid token to the address it comes from. Raises Refusal."""
        client = scope.get("client")
        peer = peer_name(client[0]) if client else "unknown"
        charge(scope, self.peers.take(peer), "peer")

    @asynccontextmanager
    async def stream_of(self, token: Token) -> AsyncIterator[None]:
        """Count one event stream of a token while it is open. Raises Refusal when there are too many."""
        if self._streams[token.id] >= self.most_streams:
            raise Refusal(
                Code.QUOTA,
                f"this token has {self.most_streams} event streams open",
                hint="close one, or ask GET /v1/instances/{id}/wait",
                limit=self.most_streams,
            )
        self._streams[token.id] += 1
        self.metrics.streams.inc()
        try:
            yield
        finally:
            self.metrics.streams.dec()
            self._streams[token.id] -= 1
            if not self._streams[token.id]:
                del self._streams[token.id]

    async def unless_stopping(self, work: Awaitable[T]) -> T | None:
        """The result of something that waits; None, and it is cancelled, when the service stops first."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)


def charge(scope: AsgiScope, allowance: Allowance, policy: str) -> None:
    """Note a bucket's answer for the response's headers. Raises Refusal when it is empty."""
    scope["state"]["ratelimit"] = allowance.headers(policy)
    if not allowance.admitted:
        raise Refusal(
            Code.THROTTLED,
            f"more than {allowance.quota} requests a minute of one {policy}",
            hint="wait as long as Retry-After says; watch a lease by its events or by /wait",
            retry_after_s=allowance.reset_s,
            limit=allowance.quota,
        )


async def _web(request: Request) -> Web:
    """A coroutine, as all dependencies here are: FastAPI runs plain functions in threads."""
    web: Web = request.app.state.web
    return web


async def _caller(
    request: Request,
    web: Annotated[Web, Depends(_web)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Token:
    """The token of the request, charged for it. Raises Refusal."""
    if credentials is None:
        # The envelope has charged whoever sent no header; this one sent something else.
        if "authorization" in request.headers:
            web.charge_peer(request.scope)
        raise Refusal(Code.UNAUTHORIZED, "this needs a token", hint="send Authorization: Bearer ie_...")
    try:
        token = await web.operations.authenticate(credentials.credentials)
    except Refusal:
        web.charge_peer(request.scope)
        raise
    request.state.token_id = token.id
    charge(request.scope, web.callers.take(token.id), "token")
    return token


def _plain_id(kind: str, value: str) -> str:
    if not _ID.fullmatch(value):
        raise Refusal(
            Code.NOT_FOUND, f"there is no {kind} of this id", hint="ids are as the service gave them"
        )
    return value


def about_lease(request: Request, lease_id: str) -> None:
    """Bind the lease to everything that is logged for this request from here on."""
    request.state.lease_id = lease_id
    bind_contextvars(lease_id=lease_id)


async def _lease_id_of(request: Request, lease_id: Annotated[str, Path(description="a lease's id")]) -> str:
    about_lease(request, _plain_id("lease", lease_id))
    return lease_id


async def _pool_name(name: Annotated[str, Path(description="a pool's name")]) -> str:
    return _plain_id("pool", name)


async def _machine_id(machine_id: Annotated[str, Path(description="a machine's id")]) -> str:
    return _plain_id("machine", machine_id)


async def _token_id(token_id: Annotated[str, Path(description="a token's id")]) -> str:
    return _plain_id("token", token_id)


async def _reader(token: Annotated[Token, Depends(_caller)]) -> Token:
    if not token.may(Scope.READ):
        raise Refusal(Code.FORBIDDEN, "this needs a token with the scope read")
    return token


App = Annotated[Web, Depends(_web)]
Caller = Annotated[Token, Depends(_caller)]
Reader = Annotated[Token, Depends(_reader)]
LeaseId = Annotated[str, Depends(_lease_id_of)]
PoolName = Annotated[str, Depends(_pool_name)]
MachineId = Annotated[str, Depends(_machine_id)]
TokenId = Annotated[str, Depends(_token_id)]
