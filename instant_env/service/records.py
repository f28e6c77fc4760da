"""The service's words: leases, machines, tokens, events. Plain values, without a store, EC2 or HTTP.

All times are aware datetimes in UTC, to the microsecond. Everything is frozen: a change is a new value with a
higher ``version``.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey

AUTO = "auto"


class LeaseState(StrEnum):
    """``requested``: a row; ``provisioning``: a machine is claimed or asked for; ``ready``: sshd said that
    the key would be let in; ``ending``: EC2 is asked to end it; ``ended``, ``failed``: it is gone."""

    REQUESTED = "requested"
    PROVISIONING = "provisioning"
    READY = "ready"
    ENDING = "ending"
    ENDED = "ended"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (LeaseState.ENDED, LeaseState.FAILED)


#: States that count against quotas and ceilings: what runs, is being made, or is not gone yet.
LIVE = frozenset({LeaseState.REQUESTED, LeaseState.PROVISIONING, LeaseState.READY, LeaseState.ENDING})


class MachineState(StrEnum):
    """``filling``: for a pool, and not proven yet; ``ready``: claimable; ``leased``: claimed by or made for a
    lease, and never anybody else's again; ``ending``: EC2 is asked to end it; ``ended``: EC2 said so."""

    FILLING = "filling"
    READY = "ready"
    LEASED = "leased"
    ENDING = "ending"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a lease is over, a closed list."""

    TTL = "ttl"
    DELETED = "deleted"  # by the lessee
    OPERATOR = "operator"  # by the operator: local.down, an admin
    SPOT_INTERRUPTED = "spot-interrupted"
    DIED = "died"  # the machine ended by itself, or was ended behind the service's back
    FAILED_TO_START = "failed-to-start"


class Source(StrEnum):
    """Where a lease's machine came from."""

    POOL = "pool"
    COLD = "cold"


class Scope(StrEnum):
    """What a token may do. ``read``: see its owner's leases; ``lease``: take, extend and end them; ``admin``:
    see and end everybody's, change pools, make tokens."""

    READ = "read"
    LEASE = "lease"
    ADMIN = "admin"


class EventKind(StrEnum):
    """What happens to a lease, in the order in which it normally happens."""

    REQUESTED = "requested"
    CLAIMED = "claimed"  # a machine of a pool
    LAUNCHED = "launched"  # RunInstances or StartInstances returned (t1)
    RUNNING = "running"  # t2
    SSH = "ssh"  # sshd's version line was read (t3)
    READY = "ready"  # t4
    EXTENDED = "extended"
    EXPIRING = "expiring"  # ten minutes, and one minute, before the end
    INTERRUPTED = "interrupted"  # a spot notice
    ENDING = "ending"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True)
class Token:
    """Who asks. ``id`` is public; of the secret only the SHA-256 is kept. None: the service's limit."""

    id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    max_leases: int | None = None
    max_usd_per_hour: float | None = None
    instance_types: tuple[str, ...] | None = None

    def may(self, scope: Scope) -> bool:
        """``admin`` may everything, ``lease`` may read."""
        if Scope.ADMIN in self.scopes or scope in self.scopes:
            return True
        return scope is Scope.READ and Scope.LEASE in self.scopes


@dataclass(frozen=True)
class LeaseRequest:
    """What somebody asks for, checked and with every default filled in."""

    public_key: PublicKey
    technique: str
    """A technique's name, or ``auto``."""
    arch: Arch
    instance_type: str
    market: Market
    ttl_s: int
    fallback: bool = False
    """Whether another technique will do when the one that was named has no machine."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The caller's own words. They stay in the store: never in a tag or a log."""


@dataclass(frozen=True)
class Idempotency:
    """``key`` as the caller sent it; ``fingerprint``: SHA-256 of the request's canonical body."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class Candidate:
    """One way to serve a request, in the order to try them. ``pool`` None is a cold launch, which always can.

    A pool's machine is claimable when it is ready, is of ``image_id``, and was filled after ``born_after``.
    """

    technique: str
    pool: str | None = None
    image_id: str = ""
    born_after: datetime | None = None
    predicted_ms: float | None = None
    basis: str = "static"
    """What the prediction rests on: ``service`` (own launches), ``benchmark``, or ``static``."""
    n: int = 0
    """How many launches it rests on."""
    usd_per_hour: float = 0.0


@dataclass(frozen=True)
class Selection:
    """What was chosen and why. ``alternatives``: those before it in the order that could not be had, and
    those after it, each with ``technique``, ``predicted_ms`` and ``skipped`` (why, or empty)."""

    chosen: str
    predicted_ms: float | None
    basis: str
    n: int
    alternatives: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Timing:
    """Milliseconds from t0, each None until it happened; ``t4_by``: ``pk_ok`` (sshd's word) or ``login``."""

    t1_ms: float | None = None
    t2_ms: float | None = None
    t3_ms: float | None = None
    t4_ms: float | None = None
    t4_by: str = ""
    resolution_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """One machine, whatever its technique. ``instance_id`` is empty until EC2 has named it.

    ``expires_at``: the expiry tag that it was launched with; ``host_keys``: lines ``type base64``.
    """

    id: str
    state: MachineState
    technique: str
    arch: Arch
    instance_type: str
    image_id: str
    market: Market
    client_token: str
    created_at: datetime
    expires_at: datetime
    pool: str | None = None
    lease_id: str | None = None
    instance_id: str = ""
    address: str = ""
    username: str = ""
    boot_id: str = ""
    host_keys: tuple[str, ...] = ()
    ready_at: datetime | None = None
    usd_per_hour: float = 0.0
    detail: str = ""
    """Why it ended, for people."""
    version: int = 1


@dataclass(frozen=True)
class Lease:
    """A promise of a machine. ``owner`` is a token's id."""

    id: str
    owner: str
    state: LeaseState
    request: LeaseRequest
    created_at: datetime
    technique: str = ""
    """The one that serves it; empty until it is chosen."""
    source: Source | None = None
    selection: Selection | None = None
    machine_id: str = ""
    attempt: int = 0
    """How many machines were tried."""
    instance_id: str = ""
    address: str = ""
    port: int = 22
    username: str = ""
    host_keys: tuple[str, ...] = ()
    host_keys_known_by: str = ""
    """``console`` or ``first-contact``."""
    market: Market | None = None
    usd_per_hour: float = 0.0
    timing: Timing = field(default_factory=Timing)
    ready_at: datetime | None = None
    expires_at: datetime | None = None
    """Set when it is ready: the time is counted from there."""
    ended_at: datetime | None = None
    reason: EndReason | None = None
    detail: str = ""
    """What happened, for people, when it failed or ended otherwise than by its time."""
    version: int = 1


@dataclass(frozen=True)
class Page:
    """``cursor``: where the next page begins; empty on the last."""

    leases: tuple[Lease, ...]
    cursor: str


@dataclass(frozen=True)
class Event:
    """``sequence`` counts from 1 in each lease, without gaps."""

    lease_id: str
    sequence: int
    kind: EventKind
    at: datetime
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolControl:
    """What an operator changed of a pool, and its breaker. It lasts over restarts."""

    name: str
    target: int | None = None
    """None: the settings' target."""
    paused: bool = False
    failures: int = 0
    """Fills that failed in a row."""
    open_until: datetime | None = None
    """The breaker: no fill before this."""
    last_error: str = ""


@dataclass(frozen=True)
class LaunchSample:
    """One launch or claim of this service that was timed: what `auto` learns from."""

    technique: str
    arch: Arch
    instance_type: str
    source: Source
    at: datetime
    ms: float
    """To t4; of a failed one, until it was given up."""
    ok: bool


def new_id(prefix: str) -> str:
    """``ls-018f...``: sorted by time, as UUID version 7 (RFC 9562, section 5.7) after the prefix."""
    stamp = time.time_ns() // 1_000_000
    value = stamp << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{prefix}-{uuid.UUID(int=value).hex}"
