"""Quota, idempotency and the claim: what happens inside the transaction that admits a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from instant_env.service.records import (
    LIVE,
    Candidate,
    EventKind,
    Idempotency,
    Lease,
    LeaseRequest,
    LeaseState,
    Machine,
    MachineState,
    Selection,
    Source,
    Token,
    new_id,
)
from instant_env.service.store import schema
from instant_env.service.store.protocol import (
    Admission,
    IdempotencyMismatch,
    Limits,
    PoolEmpty,
    QuotaExceeded,
    Spending,
)
from instant_env.service.store.rows import columns_of, record_of, values_of

#: How long an idempotency key is remembered.
KEY_LIFE = timedelta(hours=24)
#: Sums of prices are floating-point numbers: a limit of 0.3 admits three times 0.1.
_ROUNDING_USD = 1e-9

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
    keys, leases = schema.idempotency_keys, schema.leases
    row = connection.execute(
        select(keys.c.fingerprint, *columns_of(leases, Lease))
        .join(leases, leases.c.id == keys.c.lease_id)
        .where(keys.c.owner == token.id, keys.c.key == idempotency.key, keys.c.created_at > now - KEY_LIFE)
    ).one_or_none()
    if row is None:
        return None
    if row[0] != idempotency.fingerprint:
        raise IdempotencyMismatch(
            f"the idempotency key {idempotency.key[:80]!r} was used with another request",
            hint="make a new key for a new request; the same key only repeats the same request",
        )
    return Lease(*row[1:])


def spending_of(connection: Connection, owner: str) -> Spending:
    """What one token has, and what everything costs that lives.

    A machine costs until it has ended. A lease without a machine's row costs what it will: its row comes
    first.
    """
    leases, machines = schema.leases, schema.machines
    count, usd = connection.execute(
        select(func.count(), func.coalesce(func.sum(leases.c.usd_per_hour), 0.0)).where(
            leases.c.owner == owner, leases.c.state.in_(LIVE)
        )
    ).one()
    lives = machines.c.state != MachineState.ENDED
    all_machines = select(func.coalesce(func.sum(machines.c.usd_per_hour), 0.0)).where(lives)
    machine_of_lease = select(machines.c.id).where(machines.c.lease_id == leases.c.id, lives).exists()
    without_machine = select(func.coalesce(func.sum(leases.c.usd_per_hour), 0.0)).where(
        leases.c.state.in_((LeaseState.REQUESTED, LeaseState.PROVISIONING)), ~machine_of_lease
    )
    total = connection.execute(
        select(all_machines.scalar_subquery() + without_machine.scalar_subquery())
    ).scalar_one()
    return Spending(leases=count, usd_per_hour=usd, service_usd_per_hour=total)


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
    if idempotency and (lease := known_lease(connection, token, idempotency, now)):
        return Admission(lease, None, replayed=True)
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
    connection.execute(insert(schema.leases).values(**values_of(lease), last_event=len(events)))
    write_events(connection, lease_id, 1, events, now)
    if idempotency:
        _remember(connection, token, idempotency, lease_id, now)
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
        insert(schema.events),
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
    for name, limit, used, more in (
        ("usd-per-hour", limits.usd_per_hour, spending.usd_per_hour, price),
        ("service-usd-per-hour", limits.service_usd_per_hour, spending.service_usd_per_hour, added),
    ):
        if limit is not None and more > 0 and used + more > limit + _ROUNDING_USD:
            whose = "this token's leases" if name == "usd-per-hour" else "this service's machines"
            return QuotaExceeded(
                f"{whose} cost {used:.4f} dollars per hour, the limit is {limit:.4f}, and this one costs "
                f"{more:.4f}",
                limit=name, value=limit, used=used,
            )  # fmt: skip
    return None


def _claim_machine(
    connection: Connection, lease_id: str, request: LeaseRequest, candidate: Candidate
) -> Machine | None:
    """The oldest ready machine of a pool becomes this lease's, in one statement."""
    machines = schema.machines
    conditions = [
        machines.c.pool == candidate.pool,
        machines.c.state == MachineState.READY,
        machines.c.lease_id.is_(None),
        machines.c.image_id == candidate.image_id,
        machines.c.arch == request.arch,
        machines.c.instance_type == request.instance_type,
    ]
    if candidate.born_after is not None:
        conditions.append(machines.c.created_at > candidate.born_after)
    # Two claims at once take two machines where rows can be locked; SQLite leaves the clause out, and has one
    # writer at a time.
    oldest = (
        select(machines.c.id)
        .where(and_(*conditions))
        .order_by(machines.c.created_at, machines.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = connection.execute(
        update(machines)
        .where(machines.c.id == oldest)
        .values(state=MachineState.LEASED, lease_id=lease_id, version=machines.c.version + 1)
        .returning(*columns_of(machines, Machine))
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


def _remember(
    connection: Connection, token: Token, idempotency: Idempotency, lease_id: str, now: datetime
) -> None:
    """Keep the key; one that was there is over its time, or :func:`known_lease` would have answered."""
    keys = schema.idempotency_keys
    connection.execute(delete(keys).where(keys.c.owner == token.id, keys.c.key == idempotency.key))
    connection.execute(
        insert(keys).values(
            owner=token.id,
            key=idempotency.key,
            fingerprint=idempotency.fingerprint,
            lease_id=lease_id,
            created_at=now,
        )
    )
