"""Quota, idempotency and the claim: what happens inside the transaction that admits a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from instant_env.service.records import (
    Candidate,
    EventKind,
    Idempotency,
    Lease,
    LeaseRequest,
    LeaseState,
    Machine,
    Selection,
    Source,
    Token,
    new_id,
)
from instant_env.service.store import schema, statements
from instant_env.service.store.protocol import (
    Admission,
    IdempotencyMismatch,
    Limits,
    PoolEmpty,
    QuotaExceeded,
    Spending,
)
from instant_env.service.store.rows import record_of, values_of

#: How long an idempotency key is remembered.
KEY_LIFE = timedelta(hours=24)
#: Sums of prices are floating-point numbers: a limit of 0.3 admits three times 0.1.
_ROUNDING_USD = 1e-9
_SERVICE_LIMIT, _SERVICE = "service-usd-per-hour", "this service's machines"

Events = Sequence[tuple[EventKind, Mapping[str, Any]]]


@dataclass(frozen=True)
class _Choice:
    candidate: Candidate
    machine: Machine | None
    selection: Selection


def known_lease(
    connection: Connection, token: Token, idempotency: Idempotency, now: datetime
) -> Lease | None:
    """The lease of an earlier request with this key. Raises IdempotencyMismatch."""
    return _look_up(connection, token, idempotency, now)[1]


def spending_of(connection: Connection, owner: str) -> Spending:
    """What one token has, and what everything costs that lives."""
    return Spending(*connection.execute(statements.SPENDING, {"the_owner": owner}).one())


def admit(
    connection: Connection,
    token: Token,
    request: LeaseRequest,
    candidates: Sequence[Candidate],
    *,
    limits: Limits,
    idempotency: Idempotency | None,
    now: datetime,
) -> Admission:
    """As :meth:`Store.admit`, in a transaction beside which no other admits."""
    has_old_key = False
    if idempotency:
        has_old_key, known = _look_up(connection, token, idempotency, now)
        if known:
            return Admission(known, None, replayed=True)
    spending = spending_of(connection, token.id)
    if spending.leases >= limits.leases:
        raise QuotaExceeded(
            f"token {token.id} has {spending.leases} live leases, and may have {limits.leases}",
            limit="leases", value=limits.leases, used=spending.leases,
        )  # fmt: skip
    lease_id = new_id("ls")
    choice = _choose(connection, lease_id, request, candidates, limits=limits, spending=spending)
    lease = _served(
        Lease(
            id=lease_id,
            owner=token.id,
            state=LeaseState.PROVISIONING,
            request=request,
            created_at=now,
        ),
        choice,
    )
    events = [(EventKind.REQUESTED, {"technique": request.technique}), *_claimed(choice)]
    connection.execute(statements.NEW_LEASE, {**values_of(lease), "last_event": len(events)})
    write_events(connection, lease_id, 1, events, now)
    if idempotency:
        _remember(connection, token, idempotency, lease_id, now, renew=has_old_key)
    return Admission(lease, choice.machine)


def claim(connection: Connection, lease: Lease, candidates: Sequence[Candidate]) -> tuple[Admission, Events]:
    """Another machine for a lease: the lease as it is to be written, and its events."""
    choice = _choose(connection, lease.id, lease.request, candidates)
    return Admission(_served(lease, choice), choice.machine), _claimed(choice)


def write_events(connection: Connection, lease_id: str, first: int, events: Events, now: datetime) -> None:
    """Append events whose sequences the lease's row has counted already, from ``first`` on."""
    if not events:
        return
    connection.execute(
        statements.NEW_EVENTS,
        [
            {"lease_id": lease_id, "sequence": first + index, "kind": kind, "at": now, "data": dict(data)}
            for index, (kind, data) in enumerate(events)
        ],
    )


def _choose(
    connection: Connection,
    lease_id: str,
    request: LeaseRequest,
    candidates: Sequence[Candidate],
    *,
    limits: Limits | None = None,
    spending: Spending | None = None,
) -> _Choice:
    """The first candidate that has a machine and is not too dear; its machine is claimed."""
    passed: list[dict[str, Any]] = []
    refusal: QuotaExceeded | None = None
    for index, candidate in enumerate(candidates):
        if limits and spending and (excess := _excess(candidate, limits, spending)):
            refusal = refusal or excess
            passed.append(_alternative(candidate, "quota"))
            continue
        machine = _claim_machine(connection, lease_id, request, candidate) if candidate.pool else None
        if candidate.pool and machine is None:
            passed.append(_alternative(candidate, "pool-empty"))
            continue
        rest = [_alternative(other, "") for other in candidates[index + 1 :]]
        selection = Selection(
            candidate.technique,
            candidate.predicted_ms,
            candidate.basis,
            candidate.n,
            (*passed, *rest),
        )
        return _Choice(candidate, machine, selection)
    raise refusal or PoolEmpty(
        "no machine is ready in " + (", ".join(str(one.pool) for one in candidates) or "any pool"),
        hint="try again in a moment, allow a fallback, or ask for technique auto",
    )


def _excess(candidate: Candidate, limits: Limits, spending: Spending) -> QuotaExceeded | None:
    """The refusal of a candidate for its price. A pool's machine costs the service the same as before."""
    price = candidate.usd_per_hour
    added = 0.0 if candidate.pool else price
    return _over(
        "usd-per-hour", "this token's leases", limits.usd_per_hour, spending.usd_per_hour, price
    ) or _over(
        _SERVICE_LIMIT,
        _SERVICE,
        limits.service_usd_per_hour,
        spending.service_usd_per_hour,
        added,
    )


def check_service(connection: Connection, price: float, limit: float) -> None:
    """Raises QuotaExceeded when everything that lives would cost more than the limit with this price."""
    used = spending_of(connection, "").service_usd_per_hour
    if refusal := _over(_SERVICE_LIMIT, _SERVICE, limit, used, price):
        raise refusal


def _over(name: str, whose: str, limit: float | None, used: float, more: float) -> QuotaExceeded | None:
    if limit is None or more <= 0 or used + more <= limit + _ROUNDING_USD:
        return None
    return QuotaExceeded(
        f"{whose} cost {used:.4f} dollars per hour, the limit is {limit:.4f}, and this one costs {more:.4f}",
        limit=name, value=limit, used=used,
    )  # fmt: skip


def _claim_machine(
    connection: Connection, lease_id: str, request: LeaseRequest, candidate: Candidate
) -> Machine | None:
    """The oldest ready machine of a pool becomes this lease's, in one statement."""
    row = connection.execute(
        statements.CLAIM,
        {
            "the_lease": lease_id,
            "the_pool": candidate.pool,
            "the_image": candidate.image_id,
            "the_arch": request.arch,
            "the_type": request.instance_type,
            "the_birth": candidate.born_after or schema.EPOCH,
        },
    ).one_or_none()
    return None if row is None else record_of(Machine, row)


def _served(lease: Lease, choice: _Choice) -> Lease:
    """The lease with what was chosen; of an earlier machine nothing stays."""
    machine, candidate = choice.machine, choice.candidate
    return replace(
        lease,
        technique=candidate.technique,
        source=Source.POOL if machine else Source.COLD,
        selection=choice.selection,
        machine_id=machine.id if machine else "",
        attempt=lease.attempt + 1,
        instance_id=machine.instance_id if machine else "",
        address="",
        username="",
        host_keys=(),
        host_keys_known_by="",
        market=machine.market if machine else lease.request.market,
        usd_per_hour=candidate.usd_per_hour,
    )


def _claimed(choice: _Choice) -> Events:
    if choice.machine is None:
        return ()
    machine = choice.machine
    return ((EventKind.CLAIMED, {"pool": machine.pool, "instance_id": machine.instance_id}),)


def _alternative(candidate: Candidate, skipped: str) -> dict[str, Any]:
    return {
        "technique": candidate.technique,
        "predicted_ms": candidate.predicted_ms,
        "skipped": skipped,
    }


def _look_up(
    connection: Connection, token: Token, idempotency: Idempotency, now: datetime
) -> tuple[bool, Lease | None]:
    """Whether the token has the key, which may be over its time, and the lease of one that is not."""
    row = connection.execute(
        statements.KEY, {"the_owner": token.id, "the_key": idempotency.key}
    ).one_or_none()
    if row is None:
        return False, None
    created_at, fingerprint, *columns = row
    if created_at <= now - KEY_LIFE:
        return True, None
    if fingerprint != idempotency.fingerprint:
        raise IdempotencyMismatch(
            f"the idempotency key {idempotency.key[:80]!r} was used with another request",
            hint="make a new key for a new request; the same key only repeats the same request",
        )
    return True, Lease(*columns)


def _remember(
    connection: Connection,
    token: Token,
    idempotency: Idempotency,
    lease_id: str,
    now: datetime,
    *,
    renew: bool,
) -> None:
    values = {"fingerprint": idempotency.fingerprint, "lease_id": lease_id, "created_at": now}
    if renew:
        row = {"the_owner": token.id, "the_key": idempotency.key}
        connection.execute(statements.RENEW_KEY, {**row, **values})
    else:
        connection.execute(statements.NEW_KEY, {"owner": token.id, "key": idempotency.key, **values})
