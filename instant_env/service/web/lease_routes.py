"""/v1/instances: take a machine, watch it, extend it, end it."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from instant_env.service.operations import Code, Refusal
from instant_env.service.records import Event, EventKind, Idempotency, Lease, LeaseState
from instant_env.service.web import answers, asks
from instant_env.service.web.context import App, Caller, LeaseId, Web, about_lease
from instant_env.service.web.problems import documented

router = APIRouter(prefix="/v1/instances", tags=["instances"])

#: More than any proxy keeps a silent connection open.
MOST_WAIT_S = 60.0
#: A client that lost its stream comes back after this.
_RETRY_MS = 1000

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,9})", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
#: Behind the last event of a stream.
_END = Event("", 0, EventKind.ENDED, datetime.min.replace(tzinfo=UTC))
_LEASE = {"model": answers.LeaseAnswer}
_HEADERS = {"ETag": {"description": "the lease's version", "schema": {"type": "string"}}}


def _lease_response(web: Web, lease: Lease, status: int = 200, **headers: str) -> Response:
    # Weak: `now` differs in each answer.
    return answers.json_response(
        answers.lease_answer(lease, web.operations.now()), status,
        {"ETag": f'W/"{lease.version}"', **headers},
    )  # fmt: skip


def _wait_s(prefer: str) -> float | None:
    """Of ``Prefer: wait=N`` (RFC 7240, section 4.3); None when it is not asked for."""
    match = _WAIT.search(prefer)
    return min(MOST_WAIT_S, float(match[1])) if match else None


def _idempotency(key: str | None, ask: asks.InstanceAsk) -> Idempotency | None:
    if key is None:
        return None
    # The draft has it as a structured string, in quotes; most clients send it bare.
    bare = key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key
    if not _KEY.fullmatch(bare):
        raise Refusal(
            Code.INVALID_REQUEST, "an Idempotency-Key is 1 to 255 visible ASCII characters",
            hint="a UUID will do",
        )  # fmt: skip
    return Idempotency(bare, ask.fingerprint())


@router.post(
    "",
    operation_id="take",
    summary="Take a machine",
    status_code=202,
    responses={
        201: {**_LEASE, "description": "ready within `Prefer: wait=N`, or a replay of one that is ready"},
        202: {**_LEASE, "description": "accepted; `Location` is the lease"},
        200: {**_LEASE, "description": "a replay of one that is over, or one that failed within the wait"},
        **documented(
            Code.INVALID_KEY, Code.UNSUPPORTED_TECHNIQUE, Code.TTL_OUT_OF_RANGE, Code.IDEMPOTENCY_MISMATCH,
            Code.QUOTA, Code.POOL_EMPTY, Code.CAPACITY, Code.CONFLICT,
        ),
    },
)  # fmt: skip
async def take(
    web: App,
    token: Caller,
    body: asks.InstanceAsk,
    request: Request,
    prefer: Annotated[
        str, Header(description="`wait=N`: answer when it is ready, after N seconds at most")
    ] = "",
    idempotency_key: Annotated[
        str | None, Header(description="the same key with the same body is the same lease, for 24 h")
    ] = None,
) -> Response:
    taken = await web.operations.take(token, body.ask(), _idempotency(idempotency_key, body))
    lease = taken.lease
    about_lease(request, lease.id)
    headers = {"Location": f"/v1/instances/{lease.id}"}
    if taken.replayed:
        web.metrics.replay()
        headers["Idempotent-Replayed"] = "true"
    wait_s = _wait_s(prefer)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:.0f}"
        lease = await _waited(web, token_lease=(token, lease), wait_s=wait_s)
    return _lease_response(web, lease, _status(lease), **headers)


def _status(lease: Lease) -> int:
    if lease.state is LeaseState.READY:
        return 201
    return 200 if lease.state.is_terminal else 202


async def _waited(web: Web, token_lease: tuple[Caller, Lease], wait_s: float) -> Lease:
    """The lease's present state, as soon as it is decided or the time or the service is over."""
    token, lease = token_lease
    if wait_s <= 0 or web.stopping.is_set():
        return lease
    return await web.unless_stopping(web.operations.wait(token, lease.id, wait_s)) or lease


@router.get(
    "",
    operation_id="list",
    summary="List leases, newest first",
    responses={200: {"model": answers.LeasesAnswer}, **documented()},
)
async def list_leases(web: App, token: Caller, query: Annotated[asks.ListQuery, Query()]) -> Response:
    page = await web.operations.leases(
        token, everybodys=query.all, states=query.states(), limit=query.limit, cursor=query.cursor
    )
    return answers.json_response(answers.page_answer(page, web.operations.now()))


@router.get(
    "/{lease_id}",
    operation_id="show",
    summary="One lease",
    responses={
        200: {**_LEASE, "headers": _HEADERS},
        304: {"description": "the version in If-None-Match is still the present one"},
        **documented(Code.NOT_FOUND),
    },
)
async def show(
    web: App, token: Caller, lease_id: LeaseId, if_none_match: Annotated[str, Header()] = ""
) -> Response:
    lease = await web.operations.lease(token, lease_id)
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if f'"{lease.version}"' in tags:
        return Response(status_code=304, headers={"ETag": f'W/"{lease.version}"'})
    return _lease_response(web, lease)


@router.get(
    "/{lease_id}/wait",
    operation_id="wait",
    summary="Wait until it is ready, or over; answers its present state in any case",
    responses={200: {**_LEASE, "headers": _HEADERS}, **documented(Code.NOT_FOUND)},
)
async def wait(
    web: App, token: Caller, lease_id: LeaseId, query: Annotated[asks.WaitQuery, Query()]
) -> Response:
    seconds = 0.0 if math.isnan(query.seconds) else min(MOST_WAIT_S, max(0.0, query.seconds))
    lease = await web.operations.lease(token, lease_id)
    return _lease_response(web, await _waited(web, (token, lease), seconds))


class _NothingLeft(Exception):
    """A client came back behind the last event of a lease that is over."""


async def _nothing_left(_: Request, __: Exception) -> Response:
    """An EventSource comes back for ever, except after 204 (HTML, section 9.2.2)."""
    return Response(status_code=204)


async def _stream(
    web: App,
    token: Caller,
    lease_id: LeaseId,
    last_event_id: Annotated[
        str, Header(description="the last event that was seen; the stream begins behind it")
    ] = "",
) -> AsyncIterator[int]:
    """Everything that can be refused is refused here, before the stream begins. Gives the sequence."""
    await web.operations.lease(token, lease_id)
    if last_event_id and not re.fullmatch(r"\d{1,9}", last_event_id):
        raise Refusal(Code.INVALID_REQUEST, "Last-Event-ID is the number of an event")
    after = int(last_event_id or 0)
    lease = await web.operations.lease(token, lease_id)
    if after and lease.state.is_terminal and not await _has_more(web, token, lease_id, after):
        raise _NothingLeft
    async with web.stream_of(token):
        yield after


async def _has_more(web: Web, token: Caller, lease_id: str, after: int) -> bool:
    async for event in web.operations.events(token, lease_id, after=after):
        if event is not None:
            return True
    return False


def _sent(event: Event) -> ServerSentEvent:
    data = {"lease_id": event.lease_id, "sequence": event.sequence, "kind": event.kind, "at": event.at,
            "data": dict(event.data)}  # fmt: skip
    return ServerSentEvent(data=data, event=event.kind, id=str(event.sequence))


@router.get(
    "/{lease_id}/events",
    operation_id="events",
    summary="Its events as they happen (text/event-stream)",
    description="Ends after `ended` or `failed`. A comment every 15 s is a sign of life. When the service "
    "stops, the last thing is an event `farewell` without an id; come back with Last-Event-ID.",
    response_class=EventSourceResponse,
    responses={204: {"description": "the lease is over and everything was seen"},
               **documented(Code.NOT_FOUND, Code.QUOTA)},
)  # fmt: skip
async def events(
    web: App, token: Caller, lease_id: LeaseId, after: Annotated[int, Depends(_stream)]
) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="events of a lease", retry=_RETRY_MS)
    source = web.operations.events(token, lease_id, after=after)
    stop = asyncio.ensure_future(web.stopping.wait())
    following: asyncio.Task[Event | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(_following(source))
            await asyncio.wait({following, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                break
            event = following.result()
            if event is _END:
                break
            if event is not None:
                yield _sent(event)
        if stop.done():
            yield ServerSentEvent(event="farewell", data={"reason": "the service stops"}, retry=_RETRY_MS)
    finally:
        stop.cancel()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _following(source: AsyncIterator[Event | None]) -> Event | None:
    """The next one, or :data:`_END`; a coroutine, as a task needs it."""
    return await anext(source, _END)


@router.post(
    "/{lease_id}/ttl",
    operation_id="set_ttl",
    summary="Give it a new end, counted from now",
    responses={
        200: {**_LEASE, "headers": _HEADERS},
        **documented(Code.NOT_FOUND, Code.TTL_OUT_OF_RANGE, Code.LEASE_ENDED, Code.CONFLICT),
    },
)
async def set_ttl(web: App, token: Caller, lease_id: LeaseId, body: asks.TtlAsk) -> Response:
    lease = await web.operations.set_ttl(token, lease_id, body.ttl_seconds, shorten=body.shorten)
    return _lease_response(web, lease)


@router.delete(
    "/{lease_id}",
    operation_id="end",
    summary="End it; twice is the same answer",
    status_code=202,
    responses={202: {**_LEASE, "description": "it is ending, or has ended"}, **documented(Code.NOT_FOUND)},
)
async def end(web: App, token: Caller, lease_id: LeaseId) -> Response:
    return _lease_response(web, await web.operations.end(token, lease_id), 202)


def install(app: FastAPI) -> None:
    app.include_router(router)
    app.exception_handler(_NothingLeft)(_nothing_left)
