"""Operations without EC2: leases in memory whose time may run fast, and a pool of one machine that waits."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.service import operations as ops
from instant_env.service.operations import Ask, Code, NewToken, Refusal, Taken
from instant_env.service.records import (
    AUTO,
    EndReason,
    Event,
    EventKind,
    Idempotency,
    Lease,
    LeaseRequest,
    LeaseState,
    Page,
    Scope,
    Selection,
    Source,
    Token,
    new_id,
)
from instant_env.service_settings import ServiceSettings

POOL = "warm-running-custom-init"
TECHNIQUES = ("warm-running", "custom-init", "minimal-ami", "cold")
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"

#: Seconds of the fake's own time for each phase, from the request: pool and cold.
_PHASES = {
    Source.POOL: (
        (0.001, EventKind.CLAIMED),
        (0.002, EventKind.RUNNING),
        (0.3, EventKind.SSH),
        (0.4, EventKind.READY),
    ),
    Source.COLD: (
        (0.5, EventKind.LAUNCHED),
        (5.0, EventKind.RUNNING),
        (12.0, EventKind.SSH),
        (15.0, EventKind.READY),
    ),
}
_REFILL_S = 20.0
_MARK = {EventKind.CLAIMED: "t1_ms", EventKind.LAUNCHED: "t1_ms", EventKind.RUNNING: "t2_ms",
         EventKind.SSH: "t3_ms", EventKind.READY: "t4_ms"}  # fmt: skip


@dataclass
class _Kept:
    """A lease, its events, and what wakes those who wait for the next."""

    lease: Lease
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None


class FakeOperations:
    """``speed``: how many of its seconds pass in one of ours. ``hold``: leases stay in provisioning until it
    is set. ``waiting``: calls of wait that go on. ``mistakes``: what the next calls raise, in order."""

    def __init__(
        self, settings: ServiceSettings | None = None, *, speed: float = 1.0, beat_s: float = 15.0
    ) -> None:
        self.settings = settings or ServiceSettings()
        self.speed = speed
        self.hold: asyncio.Event | None = None
        self.mistakes: list[Exception] = []
        self.is_ready = True
        self.waiting = 0
        self._beat_s = beat_s
        self._started = (datetime.now(UTC), time.monotonic())
        self._leases: dict[str, _Kept] = {}
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._tokens: dict[str, Token] = {}
        self._machines = [new_id("m")]
        self._target: int | None = None
        self._paused = False
        self._hits = self._misses = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.admin_secret = self.add_token("admin", {Scope.ADMIN})

    def add_token(self, name: str, scopes: set[Scope], **limits: Any) -> str:
        """A new token's secret."""
        secret = f"ie_{secrets.token_hex(20)}"
        sha256 = hashlib.sha256(secret.encode()).hexdigest()
        token = Token(new_id("tk"), name, sha256, frozenset(scopes), self.now(), **limits)
        self._tokens[token.id] = token
        return secret

    def now(self) -> datetime:
        wall, mark = self._started
        return wall + timedelta(seconds=(time.monotonic() - mark) * self.speed)

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self.speed)

    def _check(self, token: Token | None = None, scope: Scope = Scope.READ) -> None:
        if self.mistakes:
            raise self.mistakes.pop(0)
        if token is not None and not token.may(scope):
            raise Refusal(Code.FORBIDDEN, f"this needs a token with the scope {scope}")

    async def authenticate(self, secret: str) -> Token:
        sha256 = hashlib.sha256(secret.encode()).hexdigest()
        for token in self._tokens.values():
            if token.sha256 == sha256 and token.revoked_at is None:
                return token
        raise Refusal(Code.UNAUTHORIZED, "this token is not known, was revoked, or has expired")

    # leases
    def _request_of(self, token: Token, ask: Ask) -> LeaseRequest:
        if ask.technique not in (AUTO, *TECHNIQUES):
            raise Refusal(Code.UNSUPPORTED_TECHNIQUE, f"there is no technique {ask.technique}",
                          hint=f"techniques: auto, {', '.join(TECHNIQUES)}")  # fmt: skip
        if ask.instance_type and ask.instance_type not in ("m7i.large", *(token.instance_types or ())):
            raise Refusal(Code.FORBIDDEN, f"this token may not take {ask.instance_type}")
        ttl_s = self.settings.ttl_s if ask.ttl_s is None else ask.ttl_s
        self._check_ttl(ttl_s)
        return LeaseRequest(
            ask.public_key, ask.technique, ask.arch or Arch.X86_64, ask.instance_type or "m7i.large",
            ask.market or Market.ON_DEMAND, ttl_s, ask.fallback, ask.labels,
        )  # fmt: skip

    def _check_ttl(self, ttl_s: int) -> None:
        low, high = self.settings.min_ttl_s, self.settings.max_ttl_s
        if not low <= ttl_s <= high:
            raise Refusal(Code.TTL_OUT_OF_RANGE, f"a lease lives {low} to {high} s, not {ttl_s}",
                          limit=high, hint="ask for less, and extend it later")  # fmt: skip

    async def take(self, token: Token, ask: Ask, idempotency: Idempotency | None) -> Taken:
        self._check(token, Scope.LEASE)
        request = self._request_of(token, ask)
        if idempotency and (earlier := self._keys.get((token.id, idempotency.key))):
            if earlier[0] != idempotency.fingerprint:
                raise Refusal(
                    Code.IDEMPOTENCY_MISMATCH,
                    "this key was used with another request",
                    hint="take another key",
                )
            return Taken(self._leases[earlier[1]].lease, replayed=True)
        most = self.settings.max_leases if token.max_leases is None else token.max_leases
        if self._used(token) >= most:
            raise Refusal(Code.QUOTA, f"this token has {most} live leases, its limit", limit=most,
                          hint="end one, or wait until one has ended")  # fmt: skip
        source = self._claim(request)
        technique = "warm-running" if source is Source.POOL else "cold"
        now = self.now()
        lease = Lease(
            new_id("ls"), token.id, LeaseState.PROVISIONING, request, now, technique, source,
            Selection(
                technique, 400.0, "service", 12,
                ({"technique": "cold", "predicted_ms": 15000.0, "skipped": ""},),
            ),
            market=request.market, usd_per_hour=0.1008, attempt=1,
        )  # fmt: skip
        kept = self._leases[lease.id] = _Kept(lease)
        self._happened(kept, EventKind.REQUESTED)
        if idempotency:
            self._keys[token.id, idempotency.key] = (idempotency.fingerprint, lease.id)
        kept.life = self._start(self._live(kept))
        return Taken(lease, replayed=False)

    def _claim(self, request: LeaseRequest) -> Source:
        if request.technique not in (AUTO, "warm-running"):
            return Source.COLD
        if self._machines:
            self._machines.pop()
            self._hits += 1
            self._start(self._refill())
            return Source.POOL
        self._misses += 1
        if request.technique == AUTO or request.fallback:
            return Source.COLD
        raise Refusal(Code.POOL_EMPTY, f"pool {POOL} has no machine that is ready", retry_after_s=_REFILL_S,
                      hint="wait, allow a fallback, or ask for auto")  # fmt: skip

    async def _refill(self) -> None:
        await self._pass(_REFILL_S)
        if not self._paused and len(self._machines) < self._goal():
            self._machines.append(new_id("m"))

    def _goal(self) -> int:
        return 1 if self._target is None else self._target

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, kept: _Kept) -> None:
        assert kept.lease.source is not None
        before = 0.0
        for at_s, kind in _PHASES[kept.lease.source]:
            await self._pass(at_s - before)
            if self.hold is not None:
                await self.hold.wait()
            before = at_s
            self._reach(kept, kind, at_s * 1000)
        while (lease := kept.lease).expires_at and lease.expires_at > self.now():
            await self._pass((lease.expires_at - self.now()).total_seconds())
        await self._end(kept, EndReason.TTL)

    def _reach(self, kept: _Kept, kind: EventKind, ms: float) -> None:
        lease = kept.lease
        marks: dict[str, Any] = {_MARK[kind]: ms}
        timing = replace(lease.timing, resolution_ms={"t2": 50.0}, **marks)
        if kind is EventKind.READY:
            now = self.now()
            lease = replace(
                lease, state=LeaseState.READY, ready_at=now, host_keys_known_by="console",
                expires_at=now + timedelta(seconds=lease.request.ttl_s), host_keys=(HOST_KEY,),
            )  # fmt: skip
            timing = replace(timing, t4_by="pk_ok")
        kept.lease = replace(
            lease, timing=timing, instance_id="i-0123456789abcdef0", address="127.0.0.1", port=2222,
            username="root", version=lease.version + 1,
        )  # fmt: skip
        self._happened(kept, kind, {_MARK[kind]: ms})

    async def _end(self, kept: _Kept, reason: EndReason) -> None:
        kept.lease = replace(
            kept.lease, state=LeaseState.ENDING, reason=reason, version=kept.lease.version + 1
        )
        self._happened(kept, EventKind.ENDING, {"reason": reason})
        await self._pass(1.0)
        kept.lease = replace(
            kept.lease, state=LeaseState.ENDED, ended_at=self.now(), version=kept.lease.version + 1
        )
        self._happened(kept, EventKind.ENDED, {"reason": reason})

    async def fail(self, lease_id: str, detail: str) -> None:
        """Let a lease come to nothing."""
        kept = self._leases[lease_id]
        assert kept.life is not None
        kept.life.cancel()
        kept.lease = replace(
            kept.lease, state=LeaseState.FAILED, reason=EndReason.FAILED_TO_START, detail=detail,
            ended_at=self.now(), version=kept.lease.version + 1,
        )  # fmt: skip
        self._happened(kept, EventKind.FAILED, {"reason": EndReason.FAILED_TO_START})

    def _happened(self, kept: _Kept, kind: EventKind, data: Mapping[str, Any] | None = None) -> None:
        kept.events.append(Event(kept.lease.id, len(kept.events) + 1, kind, self.now(), data or {}))
        kept.changed.set()
        kept.changed = asyncio.Event()

    def _used(self, token: Token) -> int:
        return sum(k.lease.owner == token.id and not k.lease.state.is_terminal for k in self._leases.values())

    def _kept(self, token: Token, lease_id: str) -> _Kept:
        kept = self._leases.get(lease_id)
        if kept is None or (kept.lease.owner != token.id and not token.may(Scope.ADMIN)):
            raise Refusal(
                Code.NOT_FOUND, "there is no lease of this id", hint="GET /v1/instances lists yours"
            )
        return kept

    async def lease(self, token: Token, lease_id: str) -> Lease:
        self._check(token)
        return self._kept(token, lease_id).lease

    async def leases(
        self, token: Token, *, everybodys: bool = False, states: frozenset[LeaseState] | None = None,
        limit: int = 100, cursor: str = "",
    ) -> Page:  # fmt: skip
        self._check(token, Scope.ADMIN if everybodys else Scope.READ)
        if cursor and cursor not in self._leases:
            raise Refusal(Code.INVALID_REQUEST, "this cursor is not the service's")
        found = [
            kept.lease for kept in reversed(self._leases.values())
            if (everybodys or kept.lease.owner == token.id)
            and (states is None or kept.lease.state in states)
            and (not cursor or kept.lease.id < cursor)
        ]  # fmt: skip
        return Page(tuple(found[:limit]), found[limit - 1].id if len(found) > limit else "")

    async def wait(self, token: Token, lease_id: str, wait_s: float) -> Lease:
        self._check(token)
        kept = self._kept(token, lease_id)
        self.waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                while kept.lease.state in (LeaseState.REQUESTED, LeaseState.PROVISIONING):
                    await kept.changed.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return kept.lease

    async def events(self, token: Token, lease_id: str, *, after: int = 0) -> AsyncIterator[Event | None]:
        kept = self._kept(token, lease_id)
        while True:
            changed = kept.changed
            for event in kept.events[after:]:
                after = event.sequence
                yield event
            if kept.lease.state.is_terminal and after >= len(kept.events):
                return
            try:
                async with asyncio.timeout(self._beat_s):
                    await changed.wait()
            except TimeoutError:
                yield None

    async def set_ttl(self, token: Token, lease_id: str, ttl_s: int, *, shorten: bool = False) -> Lease:
        self._check(token, Scope.LEASE)
        kept = self._kept(token, lease_id)
        if kept.lease.state is not LeaseState.READY:
            raise Refusal(Code.LEASE_ENDED, f"the lease is {kept.lease.state}")
        self._check_ttl(ttl_s)
        expires_at = self.now() + timedelta(seconds=ttl_s)
        assert kept.lease.expires_at is not None
        if expires_at < kept.lease.expires_at and not shorten:
            raise Refusal(
                Code.TTL_OUT_OF_RANGE, "this would end it earlier", hint="say shorten if that is meant"
            )
        kept.lease = replace(kept.lease, expires_at=expires_at, version=kept.lease.version + 1)
        self._happened(kept, EventKind.EXTENDED, {"expires_at": expires_at.isoformat()})
        if shorten:
            self._start(self._end_later(kept, ttl_s))
        return kept.lease

    async def _end_later(self, kept: _Kept, ttl_s: float) -> None:
        await self._pass(ttl_s)
        if (
            kept.lease.expires_at
            and kept.lease.expires_at <= self.now()
            and kept.lease.state is LeaseState.READY
        ):
            assert kept.life is not None
            kept.life.cancel()
            await self._end(kept, EndReason.TTL)

    async def end(self, token: Token, lease_id: str) -> Lease:
        self._check(token, Scope.LEASE)
        kept = self._kept(token, lease_id)
        if kept.lease.state not in (LeaseState.ENDING, LeaseState.ENDED, LeaseState.FAILED):
            assert kept.life is not None
            kept.life.cancel()
            kept.life = self._start(self._end(kept, EndReason.DELETED))
            await asyncio.sleep(0)
        return kept.lease

    # pools, tokens, the rest
    async def techniques(
        self, token: Token, arch: Arch | None, instance_type: str | None
    ) -> list[ops.TechniqueView]:
        self._check(token)
        return [
            ops.TechniqueView(
                name, arch or Arch.X86_64, instance_type or "m7i.large", 400.0 * 3**n, "service", 12,
                available=n > 0 or bool(self._machines), why="" if n or self._machines else "pool-empty",
                rank=n + 1,
            )
            for n, name in enumerate(TECHNIQUES)
        ]  # fmt: skip

    def _pool(self) -> ops.PoolView:
        asked = self._hits + self._misses
        ready, goal = len(self._machines), self._goal()
        state = "paused" if self._paused else "ready" if ready >= goal else "filling"
        return ops.PoolView(
            POOL, "warm-running", "custom-init", Arch.X86_64, "m7i.large", state, goal, 1, ready,
            0 if self._paused else max(0, goal - ready), self._paused, 0.1008 * goal,
            self._hits, self._misses, self._hits / asked if asked else None, None, "",
            tuple(
                ops.MachineView(m, "i-0fedcba9876543210", "ready", "ami-0123", self.now(), self.now(), "")
                for m in self._machines
            ),
        )  # fmt: skip

    async def pools(self, token: Token) -> list[ops.PoolView]:
        self._check(token)
        return [self._pool()]

    async def change_pool(
        self, token: Token, name: str, *, target: int | None = None, paused: bool | None = None
    ) -> ops.PoolView:
        self._check(token, Scope.ADMIN)
        self._named(name)
        self._target = self._target if target is None else target
        self._paused = self._paused if paused is None else paused
        for _ in range(self._goal() - len(self._machines)):
            self._start(self._refill())
        return self._pool()

    def _named(self, name: str) -> None:
        if name != POOL:
            raise Refusal(Code.NOT_FOUND, f"there is no pool {name}", hint="GET /v1/pools lists them")

    async def retire(self, token: Token, pool: str, machine_id: str) -> ops.PoolView:
        self._check(token, Scope.ADMIN)
        self._named(pool)
        if machine_id not in self._machines:
            raise Refusal(Code.NOT_FOUND, f"there is no machine {machine_id} in pool {pool}")
        self._machines.remove(machine_id)
        self._start(self._refill())
        return self._pool()

    async def quota(self, token: Token) -> ops.QuotaView:
        self._check(token)
        most = self.settings.max_leases if token.max_leases is None else token.max_leases
        used = self._used(token)
        return ops.QuotaView(
            most, used, token.max_usd_per_hour, 0.1008 * used, self.settings.max_usd_per_hour,
            0.1008 * (used + 1), token.instance_types or ("m7i.large",), self.settings.requests_per_minute,
        )  # fmt: skip

    async def percentiles(self, token: Token) -> list[ops.PercentilesView]:
        self._check(token)
        return [
            ops.PercentilesView("warm-running", 40, 410.0, 480.0, 600.0),
            ops.PercentilesView("warm-stopped", 12, 3100.0, 3900.0, 5100.0),
            ops.PercentilesView("cold", 25, 15_000.0, 19_000.0, 24_000.0),
        ]

    async def new_token(self, token: Token, new: NewToken) -> tuple[Token, str]:
        self._check(token, Scope.ADMIN)
        expires_at = None if new.ttl_s is None else self.now() + timedelta(seconds=new.ttl_s)
        secret = self.add_token(
            new.name, {Scope(scope) for scope in new.scopes}, expires_at=expires_at,
            max_leases=new.max_leases, max_usd_per_hour=new.max_usd_per_hour,
            instance_types=new.instance_types,
        )  # fmt: skip
        return await self.authenticate(secret), secret

    async def tokens(self, token: Token) -> list[Token]:
        self._check(token, Scope.ADMIN)
        return list(self._tokens.values())

    async def revoke_token(self, token: Token, token_id: str) -> Token:
        self._check(token, Scope.ADMIN)
        if token_id not in self._tokens:
            raise Refusal(Code.NOT_FOUND, "there is no token of this id", hint="GET /v1/tokens lists them")
        self._tokens[token_id] = replace(self._tokens[token_id], revoked_at=self.now())
        return self._tokens[token_id]

    async def health(self) -> ops.Health:
        self._check()
        return ops.Health(
            self.is_ready, {"store": "ok", "cloud": "ok" if self.is_ready else "does not answer"}
        )

    def metrics(self) -> str:
        return f'# TYPE instant_env_leases gauge\ninstant_env_leases{{state="all"}} {len(self._leases)}\n'

    def server_facts(self) -> Mapping[str, Any]:
        return {
            "cloud": "local", "region": "us-east-1", "version": "0.0.0", "ssh_port": 2222,
            "arch": "x86_64", "instance_types": ["m7i.large"], "techniques": [AUTO, *TECHNIQUES],
            "ttl_s": self.settings.ttl_s, "min_ttl_s": self.settings.min_ttl_s,
            "max_ttl_s": self.settings.max_ttl_s, "max_lifetime_s": self.settings.max_lifetime_s,
        }  # fmt: skip


def is_operations(fake: FakeOperations) -> ops.Operations:
    """For the type checker: the fake has every operation, with its types."""
    return fake
