"""The statements of requests, made once: to build one costs several times what SQLite takes to run it.

Names of parameters that are no columns begin with ``the_``.
"""

from __future__ import annotations

from sqlalchemy import BindParameter, bindparam, func, insert, select, update

from instant_env.service.records import LIVE, Event, Lease, LeaseState, Machine, MachineState, Token
from instant_env.service.store.rows import columns_of
from instant_env.service.store.schema import events, idempotency_keys, leases, machines, tokens

_COSTING = frozenset(MachineState) - {MachineState.ENDED}
_WITHOUT_MACHINE = (LeaseState.REQUESTED, LeaseState.PROVISIONING)


def _states() -> BindParameter[object]:
    return bindparam("the_states", expanding=True)


TOKEN_BY_HASH = select(*columns_of(tokens, Token)).where(tokens.c.sha256 == bindparam("the_hash"))

LEASE = select(*columns_of(leases, Lease)).where(leases.c.id == bindparam("the_id"))
NEW_LEASE = insert(leases)
#: Over the row of the same version; it also counts the events, and is locked until the transaction ends.
CHANGE_LEASE = (
    update(leases)
    .where(
        leases.c.id == bindparam("the_id"),
        leases.c.version == bindparam("the_version"),
        leases.c.state.in_(_states()),
    )
    .values(last_event=leases.c.last_event + bindparam("the_events"))
    .returning(leases.c.last_event)
)
NEW_EVENTS = insert(events)
EVENTS_AFTER = (
    select(*columns_of(events, Event))
    .where(events.c.lease_id == bindparam("the_id"), events.c.sequence > bindparam("the_sequence"))
    .order_by(events.c.sequence)
)

MACHINE = select(*columns_of(machines, Machine)).where(machines.c.id == bindparam("the_id"))
NEW_MACHINE = insert(machines)
CHANGE_MACHINE = update(machines).where(
    machines.c.id == bindparam("the_id"),
    machines.c.version == bindparam("the_version"),
    machines.c.state.in_(_states()),
    machines.c.lease_id.is_(None) | (machines.c.lease_id == bindparam("the_lease")),
)
# Two claims at once take two machines where rows can be locked; SQLite leaves that clause out, and has one
# writer at a time.
_OLDEST = (
    select(machines.c.id)
    .where(
        machines.c.pool == bindparam("the_pool"),
        machines.c.state == MachineState.READY,
        machines.c.lease_id.is_(None),
        machines.c.image_id == bindparam("the_image"),
        machines.c.arch == bindparam("the_arch"),
        machines.c.instance_type == bindparam("the_type"),
        machines.c.created_at > bindparam("the_birth"),
    )
    .order_by(machines.c.created_at, machines.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
CLAIM = (
    update(machines)
    .where(machines.c.id == _OLDEST)
    .values(
        state=MachineState.LEASED,
        lease_id=bindparam("the_lease"),
        version=machines.c.version + 1,
    )
    .returning(*columns_of(machines, Machine))
)

#: The keys of a token, also those that are over their time.
KEY = (
    select(idempotency_keys.c.created_at, idempotency_keys.c.fingerprint, *columns_of(leases, Lease))
    .join(leases, leases.c.id == idempotency_keys.c.lease_id)
    .where(idempotency_keys.c.owner == bindparam("the_owner"), idempotency_keys.c.key == bindparam("the_key"))
)
NEW_KEY = insert(idempotency_keys)
RENEW_KEY = update(idempotency_keys).where(
    idempotency_keys.c.owner == bindparam("the_owner"), idempotency_keys.c.key == bindparam("the_key")
)

#: What a token has, and what everything costs that lives. A machine costs until it has ended; a lease that
#: has none yet costs what its machine will.
SPENDING = select(
    func.count(),
    func.coalesce(func.sum(leases.c.usd_per_hour), 0.0),
    select(func.coalesce(func.sum(machines.c.usd_per_hour), 0.0))
    .where(machines.c.state.in_(_COSTING))
    .scalar_subquery()
    + select(func.coalesce(func.sum((others := leases.alias()).c.usd_per_hour), 0.0))
    .where(others.c.state.in_(_WITHOUT_MACHINE), others.c.machine_id == "")
    .scalar_subquery(),
).where(leases.c.owner == bindparam("the_owner"), leases.c.state.in_(LIVE))
