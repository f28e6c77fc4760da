"""What can be asked of the service, and how it refuses. HTTP (web/) calls this; engine/ carries it out.

Whoever asks has been recognised by a token, and every operation checks what that token may do. Somebody
else's lease is ``not-found``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.errors import InstantEnvError
from instant_env.public_key import PublicKey
from instant_env.service.records import AUTO, Event, Idempotency, Lease, LeaseState, Page, Token


class Code(StrEnum):
    """The closed list of reasons for a refusal; docs/service.md has a section for each."""

    INVALID_REQUEST = "invalid-request"
    INVALID_KEY = "invalid-key"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    UNSUPPORTED_TECHNIQUE = "unsupported-technique"
    TTL_OUT_OF_RANGE = "ttl-out-of-range"
    IDEMPOTENCY_MISMATCH = "idempotency-mismatch"
    LEASE_ENDED = "lease-ended"
    CONFLICT = "conflict"
    POOL_EMPTY = "pool-empty"
    CAPACITY = "capacity"
    QUOTA = "quota"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


#: Whether the same request may succeed later, unchanged.
RETRYABLE = frozenset(
    {
        Code.CONFLICT,
        Code.POOL_EMPTY,
        Code.CAPACITY,
        Code.QUOTA,
        Code.THROTTLED,
        Code.UNAVAILABLE,
        Code.INTERNAL,
    }
)


class Refusal(InstantEnvError):
    """A request that is not carried out. ``limit``: the value that was met, where there is one; ``errors``:
    one entry per field, ``{"field": ..., "rule": ...}``."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        limit: float | None = None,
        errors: tuple[Mapping[str, str], ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry_after_s = retry_after_s
        self.limit = limit
        self.errors = errors

    @property
    def retryable(self) -> bool:
        return self.code in RETRYABLE


@dataclass(frozen=True)
class Ask:
    """A request for a lease as it came: parsed, without defaults."""

    public_key: PublicKey
    technique: str = AUTO
    arch: Arch | None = None
    instance_type: str | None = None
    market: Market | None = None
    ttl_s: int | None = None
    fallback: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """``replayed``: it was known by its idempotency key."""

    lease: Lease
    replayed: bool


@dataclass(frozen=True)
class TechniqueView:
    """What `auto` thinks of one technique now. ``available``: whether it could serve a request; ``why``: why
    not. ``rank`` counts from 1."""

    name: str
    arch: Arch
    instance_type: str
    predicted_ms: float | None
    basis: str
    n: int
    available: bool
    why: str
    rank: int


@dataclass(frozen=True)
class MachineView:
    """A machine of a pool."""

    id: str
    instance_id: str
    state: str
    image_id: str
    created_at: datetime
    ready_at: datetime | None
    detail: str


@dataclass(frozen=True)
class PoolView:
    """A pool. ``target`` is what counts now, ``target_of_settings`` what the file says. ``hit_ratio``: of the
    requests that it could have served since the service started; None before the first. ``state``:
    ``filling``, ``ready``, ``paused``, ``broken`` (the breaker is open) or ``no-image``."""

    name: str
    technique: str
    recipe: str
    arch: Arch
    instance_type: str
    state: str
    target: int
    target_of_settings: int
    ready: int
    filling: int
    paused: bool
    usd_per_hour: float
    hits: int
    misses: int
    hit_ratio: float | None
    open_until: datetime | None
    last_error: str
    machines: tuple[MachineView, ...] = ()


@dataclass(frozen=True)
class QuotaView:
    """Limits of a token and what it uses; None is no limit of its own."""

    max_leases: int
    leases: int
    max_usd_per_hour: float | None
    usd_per_hour: float
    service_max_usd_per_hour: float
    service_usd_per_hour: float
    instance_types: tuple[str, ...]
    requests_per_minute: int


@dataclass(frozen=True)
class PercentilesView:
    """Times to t4 of the recent launches of a technique, in milliseconds."""

    technique: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Health:
    """``ready``: whether requests can be served; ``checks``: name to ``ok`` or what is wrong."""

    ready: bool
    checks: Mapping[str, str]


class Operations(Protocol):
    """All are coroutines that never block the loop. Each raises Refusal."""

    async def authenticate(self, secret: str) -> Token:
        """The token of a secret; ``unauthorized`` when there is none, or it is revoked or has expired."""
        ...

    async def take(self, token: Token, ask: Ask, idempotency: Idempotency | None) -> Taken:
        """A lease, at once: its machine is claimed or asked for, and the rest goes on by itself."""
        ...

    async def lease(self, token: Token, lease_id: str) -> Lease: ...
    async def leases(
        self,
        token: Token,
        *,
        everybodys: bool = False,
        states: frozenset[LeaseState] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page: ...
    async def wait(self, token: Token, lease_id: str, wait_s: float) -> Lease:
        """Its present state: as soon as it is neither requested nor provisioning, at the latest after
        ``wait_s``."""
        ...

    def events(self, token: Token, lease_id: str, *, after: int = 0) -> AsyncIterator[Event | None]:
        """Those after a sequence, then each as it happens; ends after the terminal one and at shutdown. None
        now and then, so that a caller can send a sign of life (every 15 s)."""
        ...

    async def set_ttl(self, token: Token, lease_id: str, ttl_s: int, *, shorten: bool = False) -> Lease:
        """Count ``ttl_s`` from now. An earlier end needs ``shorten``. The tag is written first."""
        ...

    async def end(self, token: Token, lease_id: str) -> Lease:
        """Ending, or what it is if it has ended. Twice is the same answer."""
        ...

    async def techniques(
        self, token: Token, arch: Arch | None, instance_type: str | None
    ) -> list[TechniqueView]: ...
    async def pools(self, token: Token) -> list[PoolView]: ...
    async def change_pool(
        self, token: Token, name: str, *, target: int | None = None, paused: bool | None = None
    ) -> PoolView: ...
    async def retire(self, token: Token, pool: str, machine_id: str) -> PoolView:
        """End one machine of a pool that nobody has; the pool is filled again."""
        ...

    async def quota(self, token: Token) -> QuotaView: ...
    async def percentiles(self, token: Token) -> list[PercentilesView]: ...
    async def new_token(self, token: Token, new: NewToken) -> tuple[Token, str]:
        """The token and its secret, which is shown this once. Admins only."""
        ...

    async def tokens(self, token: Token) -> list[Token]: ...
    async def revoke_token(self, token: Token, token_id: str) -> Token: ...
    async def health(self) -> Health: ...
    def metrics(self) -> str:
        """Prometheus's text format."""
        ...

    def now(self) -> datetime:
        """The one clock that decides; answers carry it, so that a client needs none."""
        ...

    def server_facts(self) -> Mapping[str, Any]:
        """For the page and clients: ``cloud``, ``region``, ``version``, ``ssh_port``, ``ttl`` limits."""
        ...


@dataclass(frozen=True)
class NewToken:
    """What a new token may. ``ttl_s`` None: it does not expire."""

    name: str
    scopes: frozenset[str]
    ttl_s: int | None = None
    max_leases: int | None = None
    max_usd_per_hour: float | None = None
    instance_types: tuple[str, ...] | None = None
