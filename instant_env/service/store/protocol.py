"""What the service needs of a store. tests/contract/test_contract_store.py is its contract: a second engine
has to pass it as well.

Every method is one transaction, is synchronous, and may be called from any thread. Rows are promises: what
EC2's tags and a machine's own mark say wins over a row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.service.records import (
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


class StoreError(InstantEnvError):
    """The store cannot be opened, is of another version, or cannot be written."""


class Conflict(StoreError):
    """The row has changed since it was read, is in another state, or is not there."""


class QuotaExceeded(StoreError):
    """``limit`` names the limit (``leases``, ``usd-per-hour``, ``service-usd-per-hour``); with its value and
    what is in use."""

    def __init__(self, message: str, *, limit: str, value: float, used: float) -> None:
        super().__init__(message, hint="end a lease, or wait until one has ended")
        self.limit, self.value, self.used = limit, value, used


class IdempotencyMismatch(StoreError):
    """The key was used with another request."""


class PoolEmpty(StoreError):
    """None of the candidates has a machine."""


@dataclass(frozen=True)
class Limits:
    """What :meth:`Store.admit` enforces in its transaction. ``service_usd_per_hour`` is over everything that
    lives, pools included; the others are of one token."""

    leases: int
    usd_per_hour: float | None
    service_usd_per_hour: float


@dataclass(frozen=True)
class Spending:
    """What is in use: live leases of one token and their price, and the price of everything that lives, pools
    included."""

    leases: int
    usd_per_hour: float
    service_usd_per_hour: float


@dataclass(frozen=True)
class Admission:
    """``machine``: the claimed one, None for a cold launch and for a replay. ``replayed``: the request was
    known by its idempotency key, and nothing was changed."""

    lease: Lease
    machine: Machine | None
    replayed: bool = False


class Store(Protocol):
    """See the module's docstring. ``now`` is handed in: one clock decides."""

    def close(self) -> None: ...

    # tokens
    def add_token(self, token: Token) -> None: ...
    def token_by_hash(self, sha256: str) -> Token | None: ...
    def tokens(self) -> list[Token]:
        """All, also revoked ones, oldest first."""
        ...

    def revoke_token(self, token_id: str, now: datetime) -> Token | None:
        """None when there is none of that id."""
        ...

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
        """Quota, idempotency, lease, claim and first events in one transaction.

        The first candidate with a machine is taken: of a pool the oldest ready one of the request's
        architecture and type becomes ``leased``; a cold one always can. One whose price would exceed a limit
        is passed over; a pool's machine adds nothing to what the service costs. The lease is in
        ``provisioning`` with attempt 1, its selection, market and the candidate's price; its ``machine_id``
        and ``instance_id`` are those of the claimed machine, or empty.
        Raises QuotaExceeded, IdempotencyMismatch, PoolEmpty; nothing is changed then.
        """
        ...

    def claim(self, lease_id: str, candidates: Sequence[Candidate], *, now: datetime) -> Admission:
        """Another machine for a lease that is ``provisioning`` and whose machine came to nothing:
        attempt + 1, and of the earlier machine nothing stays in the lease. Raises Conflict, PoolEmpty."""
        ...

    def lease(self, lease_id: str) -> Lease | None: ...
    def leases(
        self,
        *,
        owner: str | None = None,
        states: Collection[LeaseState] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        """Newest first, by keyset: rows that come or go between pages are neither skipped nor repeated.
        Raises StoreError for a cursor that is not ours."""
        ...

    def change_lease(
        self,
        lease: Lease,
        *,
        events: Sequence[tuple[EventKind, Mapping[str, Any]]] = (),
        now: datetime,
    ) -> Lease:
        """Write this value over the row if that still has ``lease.version``; returns it with the next
        version, and appends the events. What is terminal stays terminal. Raises Conflict."""
        ...

    def adopt_lease(self, lease: Lease, *, now: datetime) -> None:
        """A row for a lease that was found by its tags, as it is, with one event of its state. Does nothing
        when there is a row of that id."""
        ...

    def events(self, lease_id: str, *, after: int = 0) -> list[Event]:
        """Those with a higher sequence, in order."""
        ...

    def live_leases(self) -> list[Lease]:
        """All that are not terminal."""
        ...

    def spending(self, owner: str) -> Spending:
        """What :meth:`admit` compares with its limits, of this token."""
        ...

    def idempotent_lease(self, token: Token, idempotency: Idempotency, *, now: datetime) -> Lease | None:
        """The lease of an earlier request with this key within 24 h. Raises IdempotencyMismatch."""
        ...

    # machines
    def add_machine(self, machine: Machine, *, service_usd_per_hour: float | None = None) -> None:
        """The row that comes before the resource. Raises Conflict when there is one of its id, client token
        or instance id; with a limit QuotaExceeded when everything that lives would cost more with it."""
        ...

    def machine(self, machine_id: str) -> Machine | None: ...
    def change_machine(self, machine: Machine) -> Machine:
        """As :meth:`change_lease`. What is leased, ending or ended is never ``filling`` or ``ready`` again,
        and no state follows ``ended``; a machine keeps its lease. Raises Conflict."""
        ...

    def machines(
        self, *, pool: str | None = None, states: Collection[MachineState] | None = None
    ) -> list[Machine]:
        """Oldest first; without states those that are not ``ended``."""
        ...

    # pools, samples
    def pool_control(self, name: str) -> PoolControl:
        """What was never changed is a plain one."""
        ...

    def set_pool_control(self, control: PoolControl) -> None: ...
    def add_sample(self, sample: LaunchSample) -> None: ...
    def samples(
        self, technique: str, arch: Arch, instance_type: str, *, since: datetime, limit: int = 50
    ) -> list[LaunchSample]:
        """Newest first."""
        ...

    def forget(self, before: datetime) -> int:
        """Remove leases (with their events and machines) that ended, idempotency keys, ended machines of
        pools, and samples that are older. A lease stays while a machine of its has not ended. Returns how
        many rows."""
        ...
