"""The store in SQL, without a word that only one engine knows: sqlite.py adds those of SQLite."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from instant_env.arch import Arch
from instant_env.service.records import (
    LIVE,
    Candidate,
    Event,
    EventKind,
    Idempotency,
    LaunchSample,
    Lease,
    LeaseRequest,
    LeaseState,
    Machine,
    MachineState,
    Page,
    PoolControl,
    Token,
)
from instant_env.service.store import admission, schema, statements
from instant_env.service.store.protocol import Admission, Conflict, Limits, Spending, StoreError
from instant_env.service.store.rows import (
    columns_of,
    cursor_after,
    older_than_cursor,
    record_of,
    values_of,
)

log = logging.getLogger(__name__)

#: From which states a machine may come to one.
_BEFORE = {
    MachineState.FILLING: (MachineState.FILLING, MachineState.READY),
    MachineState.READY: (MachineState.FILLING, MachineState.READY),
    MachineState.LEASED: (MachineState.FILLING, MachineState.READY, MachineState.LEASED),
    MachineState.ENDING: tuple(state for state in MachineState if state is not MachineState.ENDED),
    MachineState.ENDED: tuple(MachineState),
}
_TERMINAL = frozenset(LeaseState) - LIVE


class SqlStore:
    """The protocol in portable SQL. See protocol.py for what each method promises."""

    def __init__(self, engine: Engine, name: str) -> None:
        """``name`` is what errors call the store."""
        self.engine = engine
        self.name = name

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that only reads: it sees one state of the store."""
        with self._failures(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that writes."""
        with self._failures(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def admitting(self) -> Iterator[Connection]:
        """One transaction that writes, beside which no other admits: limits are sums over many rows, which
        locks of rows do not guard."""
        with self.writing() as connection:
            yield connection

    def hint_for(self, problem: str) -> str:  # noqa: ARG002 - for engines that know more
        """What to do when the engine said this."""
        return "see the log of the service"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """The engine's errors as one line."""
        try:
            yield
        except IntegrityError as error:
            raise Conflict(f"the store {self.name} has such a row already: {_line(error)}") from error
        except SQLAlchemyError as error:
            problem = _line(error)
            raise StoreError(
                f"the store {self.name} cannot be used: {problem}", hint=self.hint_for(problem)
            ) from error

    # tokens

    def add_token(self, token: Token) -> None:
        with self.writing() as connection:
            connection.execute(insert(schema.tokens).values(**values_of(token)))

    def token_by_hash(self, sha256: str) -> Token | None:
        with self.reading() as connection:
            row = connection.execute(statements.TOKEN_BY_HASH, {"the_hash": sha256}).one_or_none()
        return None if row is None else record_of(Token, row)

    def tokens(self) -> list[Token]:
        table = schema.tokens
        with self.reading() as connection:
            rows = connection.execute(
                select(*columns_of(table, Token)).order_by(table.c.created_at, table.c.id)
            )
            return [record_of(Token, row) for row in rows]

    def revoke_token(self, token_id: str, now: datetime) -> Token | None:
        table = schema.tokens
        with self.writing() as connection:
            connection.execute(
                update(table)
                .where(table.c.id == token_id, table.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            row = connection.execute(
                select(*columns_of(table, Token)).where(table.c.id == token_id)
            ).one_or_none()
        return None if row is None else record_of(Token, row)

    # leases

    def admit(
        self,
        token: Token,
        request: LeaseRequest,
        candidates: Sequence[Candidate],
        *,
        limits: Limits,
        idempotency: Idempotency | None,
        now: datetime,
    ) -> Admission:
        with self.admitting() as connection:
            return admission.admit(
                connection,
                token,
                request,
                candidates,
                limits=limits,
                idempotency=idempotency,
                now=now,
            )

    def claim(self, lease_id: str, candidates: Sequence[Candidate], *, now: datetime) -> Admission:
        with self.writing() as connection:
            lease = _lease(connection, lease_id)
            if lease is None or lease.state is not LeaseState.PROVISIONING:
                state = lease.state if lease else "not there"
                raise Conflict(f"lease {lease_id} is {state}: only a provisioning one gets another machine")
            outcome, events = admission.claim(connection, lease, candidates)
            return replace(outcome, lease=_write_lease(connection, outcome.lease, events, now))

    def lease(self, lease_id: str) -> Lease | None:
        with self.reading() as connection:
            return _lease(connection, lease_id)

    def leases(
        self,
        *,
        owner: str | None = None,
        states: Collection[LeaseState] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        table = schema.leases
        conditions: list[ColumnElement[bool]] = []
        if cursor:
            conditions.append(older_than_cursor(cursor))
        if owner is not None:
            conditions.append(table.c.owner == owner)
        if states is not None:
            conditions.append(table.c.state.in_(states))
        with self.reading() as connection:
            rows = connection.execute(
                select(*columns_of(table, Lease))
                .where(*conditions)
                .order_by(table.c.created_at.desc(), table.c.id.desc())
                .limit(limit + 1)
            )
            page = [record_of(Lease, row) for row in rows]
        more = len(page) > limit
        return Page(tuple(page[:limit]), cursor_after(page[limit - 1]) if more else "")

    def change_lease(
        self,
        lease: Lease,
        *,
        events: Sequence[tuple[EventKind, Mapping[str, Any]]] = (),
        now: datetime,
    ) -> Lease:
        with self.writing() as connection:
            return _write_lease(connection, lease, events, now)

    def adopt_lease(self, lease: Lease, *, now: datetime) -> None:
        with self.writing() as connection:
            if _lease(connection, lease.id) is not None:
                return
            connection.execute(statements.NEW_LEASE, {**values_of(lease), "last_event": 1})
            event = (EventKind(lease.state.value), {"detail": lease.detail})
            admission.write_events(connection, lease.id, 1, [event], now)

    def events(self, lease_id: str, *, after: int = 0) -> list[Event]:
        with self.reading() as connection:
            rows = connection.execute(statements.EVENTS_AFTER, {"the_id": lease_id, "the_sequence": after})
            return [record_of(Event, row) for row in rows]

    def live_leases(self) -> list[Lease]:
        table = schema.leases
        with self.reading() as connection:
            rows = connection.execute(
                select(*columns_of(table, Lease))
                .where(table.c.state.in_(LIVE))
                .order_by(table.c.created_at, table.c.id)
            )
            return [record_of(Lease, row) for row in rows]

    def spending(self, owner: str) -> Spending:
        with self.reading() as connection:
            return admission.spending_of(connection, owner)

    def idempotent_lease(self, token: Token, idempotency: Idempotency, *, now: datetime) -> Lease | None:
        with self.reading() as connection:
            return admission.known_lease(connection, token, idempotency, now)

    # machines

    def add_machine(self, machine: Machine, *, service_usd_per_hour: float | None = None) -> None:
        with self.admitting() as connection:
            if service_usd_per_hour is not None:
                admission.check_service(connection, machine.usd_per_hour, service_usd_per_hour)
            connection.execute(statements.NEW_MACHINE, values_of(machine))

    def machine(self, machine_id: str) -> Machine | None:
        with self.reading() as connection:
            row = connection.execute(statements.MACHINE, {"the_id": machine_id}).one_or_none()
        return None if row is None else record_of(Machine, row)

    def change_machine(self, machine: Machine) -> Machine:
        table = schema.machines
        changed = replace(machine, version=machine.version + 1)
        with self.writing() as connection:
            changes = connection.execute(
                statements.CHANGE_MACHINE,
                {
                    **values_of(changed),
                    "the_id": machine.id,
                    "the_version": machine.version,
                    "the_states": _BEFORE[machine.state],
                    "the_lease": machine.lease_id,
                },
            )
            if changes.rowcount != 1:
                row = connection.execute(
                    select(table.c.state, table.c.lease_id, table.c.version).where(table.c.id == machine.id)
                ).one_or_none()
                raise _conflict("machine", machine.id, machine.version, machine.state, row)
        return changed

    def machines(
        self, *, pool: str | None = None, states: Collection[MachineState] | None = None
    ) -> list[Machine]:
        table = schema.machines
        conditions: list[ColumnElement[bool]] = [
            table.c.state != MachineState.ENDED if states is None else table.c.state.in_(states)
        ]
        if pool is not None:
            conditions.append(table.c.pool == pool)
        with self.reading() as connection:
            rows = connection.execute(
                select(*columns_of(table, Machine))
                .where(*conditions)
                .order_by(table.c.created_at, table.c.id)
            )
            return [record_of(Machine, row) for row in rows]

    # pools, samples

    def pool_control(self, name: str) -> PoolControl:
        table = schema.pool_controls
        with self.reading() as connection:
            row = connection.execute(
                select(*columns_of(table, PoolControl)).where(table.c.name == name)
            ).one_or_none()
        return PoolControl(name) if row is None else record_of(PoolControl, row)

    def set_pool_control(self, control: PoolControl) -> None:
        table, values = schema.pool_controls, values_of(control)
        with self.writing() as connection:
            changes = connection.execute(update(table).where(table.c.name == control.name).values(**values))
            if changes.rowcount == 0:
                connection.execute(insert(table).values(**values))

    def add_sample(self, sample: LaunchSample) -> None:
        with self.writing() as connection:
            connection.execute(insert(schema.samples).values(**values_of(sample)))

    def samples(
        self, technique: str, arch: Arch, instance_type: str, *, since: datetime, limit: int = 50
    ) -> list[LaunchSample]:
        table = schema.samples
        with self.reading() as connection:
            rows = connection.execute(
                select(*columns_of(table, LaunchSample))
                .where(
                    table.c.technique == technique,
                    table.c.arch == arch,
                    table.c.instance_type == instance_type,
                    table.c.at >= since,
                )
                .order_by(table.c.at.desc(), table.c.id.desc())
                .limit(limit)
            )
            return [record_of(LaunchSample, row) for row in rows]

    def forget(self, before: datetime) -> int:
        leases, machines, keys = schema.leases, schema.machines, schema.idempotency_keys
        left = (
            select(machines.c.id)
            .where(machines.c.lease_id == leases.c.id, machines.c.state != MachineState.ENDED)
            .exists()
        )
        gone = select(leases.c.id).where(leases.c.state.in_(_TERMINAL), leases.c.ended_at < before, ~left)
        of_pools = machines.c.lease_id.is_(None) & (machines.c.created_at < before)
        with self.writing() as connection:
            return sum(
                connection.execute(statement).rowcount
                for statement in (
                    delete(keys).where((keys.c.created_at < before) | keys.c.lease_id.in_(gone)),
                    delete(schema.events).where(schema.events.c.lease_id.in_(gone)),
                    # Its leases are still there to say which machines are theirs.
                    delete(machines).where(
                        machines.c.state == MachineState.ENDED, of_pools | machines.c.lease_id.in_(gone)
                    ),
                    delete(leases).where(leases.c.id.in_(gone)),
                    delete(schema.samples).where(schema.samples.c.at < before),
                )
            )


def _lease(connection: Connection, lease_id: str) -> Lease | None:
    row = connection.execute(statements.LEASE, {"the_id": lease_id}).one_or_none()
    return None if row is None else record_of(Lease, row)


def _write_lease(
    connection: Connection,
    lease: Lease,
    events: Sequence[tuple[EventKind, Mapping[str, Any]]],
    now: datetime,
) -> Lease:
    table = schema.leases
    changed = replace(lease, version=lease.version + 1)
    row = connection.execute(
        statements.CHANGE_LEASE,
        {
            **values_of(changed),
            "the_id": lease.id,
            "the_version": lease.version,
            "the_states": tuple(LeaseState) if lease.state.is_terminal else LIVE,
            "the_events": len(events),
        },
    ).one_or_none()
    if row is None:
        present = connection.execute(
            select(table.c.state, table.c.id, table.c.version).where(table.c.id == lease.id)
        ).one_or_none()
        raise _conflict("lease", lease.id, lease.version, lease.state, present)
    admission.write_events(connection, lease.id, row[0] - len(events) + 1, events, now)
    return changed


def _conflict(noun: str, name: str, version: int, state: str, row: Any) -> Conflict:
    """Which rule was broken by a change that met no row; ``row``: state, anything, version."""
    if row is None:
        return Conflict(f"there is no {noun} {name}")
    if row[2] != version:
        return Conflict(f"{noun} {name} has version {row[2]}, the change is of version {version}")
    return Conflict(f"{noun} {name} is {row[0]}, and cannot become {state} or another lease's")


def _line(error: SQLAlchemyError) -> str:
    """The engine's own words, without SQLAlchemy's statement and link."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return str(cause).partition("\n")[0]
