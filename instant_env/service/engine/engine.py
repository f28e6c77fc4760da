"""The service without HTTP: what may be asked (see operations.py), carried out by leases, pools and tower."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from instant_env import __version__
from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.cloud.session import CloudError
from instant_env.launch.estimates import Estimate
from instant_env.service.engine.context import Context
from instant_env.service.engine.endings import Endings
from instant_env.service.engine.leases import Leases
from instant_env.service.engine.pools import PoolPlan, Pools
from instant_env.service.engine.selection import STATIC_ORDER, Selector, quantile
from instant_env.service.engine.tower import Tower
from instant_env.service.operations import (
    Ask,
    Code,
    Health,
    NewToken,
    PercentilesView,
    PoolView,
    QuotaView,
    Refusal,
    Taken,
    TechniqueView,
)
from instant_env.service.records import (
    AUTO,
    EndReason,
    Event,
    Idempotency,
    Lease,
    LeaseRequest,
    LeaseState,
    Page,
    Scope,
    Token,
    new_id,
)
from instant_env.service.store.protocol import Limits, StoreError
from instant_env.service.tokens import hash_of, looks_like, new_secret

P = ParamSpec("P")
T = TypeVar("T")

#: How often pools are looked at beside each claim, leases for their end, EC2, and images and prices.
_POOLS_S, _LEASES_S, _CLOUD_S, _CATALOGUE_S, _FORGET_S = 2.0, 0.5, 3.0, 30.0, 3600.0
#: Ended leases can be read for this long.
TOMBSTONE = timedelta(hours=24)
#: A sign of life on event streams.
_HEARTBEAT_S = 15.0
_WAIT_MAX_S = 3600.0
_LABELS_MAX, _LABEL_NAME_MAX, _LABEL_MAX = 16, 63, 255
_POOL_TARGET_MAX = 1000
_CLOUD_SILENT_S = 60.0


@dataclass(frozen=True)
class Facts:
    """What the engine is told of where it runs. ``default_types``: by architecture; ``host_arch``: the one
    that a request without one gets."""

    cloud: str
    region: str
    ssh_port: int
    host_arch: Arch
    default_types: Mapping[Arch, str]


class Engine:
    """Implements :class:`~instant_env.service.operations.Operations`. :meth:`run` is its life."""

    def __init__(
        self, context: Context, facts: Facts, plans: Sequence[PoolPlan], estimates: Sequence[Estimate]
    ) -> None:
        self._context = context
        self._facts = facts
        self._endings = Endings(context)
        self._pools = Pools(context, self._endings, plans)
        self._selector = Selector(context, estimates)
        self._leases = Leases(context, self._endings, self._pools, self._selector)
        self._tower = Tower(context, self._endings, self._leases, self._pools)
        self._pairs = frozenset(
            [
                *facts.default_types.items(),
                *((plan.arch, plan.instance_type) for plan in plans),
                *_typed(context.settings.instance_types),
            ]
        )

    # life

    async def look_up(self) -> None:
        """Look up images and prices, before :meth:`start`. Raises CloudError."""
        self._context.catalogue = await self._context.fleet.catalogue(self._pairs)

    async def start(self) -> None:
        """Take up what an earlier process left, and begin to work."""
        context = self._context
        await self._take_up_pools()
        await self._leases.resume()
        for name, work in (
            ("pools", self._every(self._pools.tick, lambda: self._pools.pause(_POOLS_S))),
            ("leases", self._every(self._leases.tick, lambda: asyncio.sleep(_LEASES_S))),
            ("cloud", self._every(self._tower.tick, lambda: asyncio.sleep(_CLOUD_S))),
            ("catalogue", self._every(self._look_up, lambda: asyncio.sleep(_CATALOGUE_S))),
            ("forget", self._every(self._forget, lambda: asyncio.sleep(_FORGET_S))),
            ("metrics", self._every(self._measure, lambda: asyncio.sleep(_POOLS_S))),
        ):
            context.spawn(work, name)

    async def close(self) -> None:
        """Stop working; machines go on. Waits for nothing that EC2 or a machine takes its time for."""
        self.begin_close()
        await self._context.cancel_tasks()

    def begin_close(self) -> None:
        """Let event streams and waits end."""
        self._context.closing = True
        self._context.bulletin.post_all()

    def price_of(self, plan: PoolPlan) -> float:
        """One machine of a pool, in dollars per hour; 0 when nobody knows."""
        return self._context.catalogue.usd_per_hour.get((plan.instance_type, Market.ON_DEMAND), 0.0)

    def empty_pools(self, plans: Sequence[PoolPlan]) -> dict[str, str]:
        """Why pools cannot be filled, by their names."""
        catalogue = self._context.catalogue
        return {
            plan.name: catalogue.missing.get((plan.image_technique, plan.arch), "there is no image for it")
            for plan in plans
            if (plan.image_technique, plan.arch, plan.instance_type) not in catalogue.offers
        }

    async def left_behind(self) -> tuple[list[Lease], int]:
        """What goes on when the service stops: live leases, and how many machines of pools."""
        context = self._context
        leases = await context.db(context.store.live_leases)
        machines = await context.db(context.store.machines)
        return leases, sum(machine.lease_id is None for machine in machines)

    async def _every(self, work: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]) -> None:
        """Do it for ever. An error that nobody foresaw is logged and is no reason to stop the next one."""
        while True:
            try:
                await work()
            except StoreError as error:
                self._context.alarms["store"] = error.message
                self._context.log.error("the store failed", error=error.message)
            except Exception as error:
                self._context.log.error("a periodic task failed", exc_info=error)
            else:
                self._context.alarms.pop("store", None)
            await pause()

    async def _take_up_pools(self) -> None:
        """Machines of pools from before a restart: ready ones are reached again, half-made ones go."""
        context = self._context
        for machine in await context.db(context.store.machines):
            if machine.lease_id is None and machine.pool not in self._pools.names:
                await self._endings.end_machine(machine.id, "its pool is not in the settings any more")
            elif machine.state == "filling":
                await self._endings.end_machine(machine.id, "the service was restarted while it was filled")

    async def _look_up(self) -> None:
        context = self._context
        try:
            context.catalogue = await context.fleet.catalogue(self._pairs)
        except CloudError as error:
            context.alarms["catalogue"] = error.message
        else:
            context.alarms.pop("catalogue", None)

    async def _forget(self) -> None:
        context = self._context
        await context.db(context.store.forget, context.now() - TOMBSTONE)

    async def _measure(self) -> None:
        context = self._context
        await self._selector.keep()
        leases = await context.db(context.store.live_leases)
        context.metrics.observe(await self._pools.views(), leases, context.now())

    # operations

    def now(self) -> datetime:
        return self._context.now()

    async def authenticate(self, secret: str) -> Token:
        context = self._context
        token = None
        if looks_like(secret):
            token = await self._store(context.store.token_by_hash, hash_of(secret))
        now = context.now()
        if token is None or token.revoked_at is not None or (token.expires_at and token.expires_at <= now):
            raise Refusal(Code.UNAUTHORIZED, "this token is not known, revoked, or expired")
        return token

    async def take(self, token: Token, ask: Ask, idempotency: Idempotency | None) -> Taken:
        self._need(token, Scope.LEASE)
        if self._context.closing:
            raise Refusal(Code.UNAVAILABLE, "the service is being stopped", retry_after_s=5)
        request = self._request(token, ask)
        try:
            admission = await self._leases.take(token, request, self._limits(token), idempotency)
        except StoreError as error:
            raise Refusal(Code.UNAVAILABLE, error.message, hint=error.hint, retry_after_s=2) from error
        if not admission.replayed:
            self._context.log.info(
                "lease requested", lease_id=admission.lease.id, token_id=token.id, asked=request.technique,
                technique=admission.lease.technique, arch=request.arch.value,
            )  # fmt: skip
        return Taken(admission.lease, admission.replayed)

    def _request(self, token: Token, ask: Ask) -> LeaseRequest:
        """Defaults filled in, rules checked. Raises Refusal."""
        limits = self._context.settings
        arch = ask.arch or self._facts.host_arch
        ttl_s = limits.ttl_s if ask.ttl_s is None else ask.ttl_s
        if not limits.min_ttl_s <= ttl_s <= limits.max_ttl_s:
            raise Refusal(
                Code.TTL_OUT_OF_RANGE,
                f"ttl_seconds is {limits.min_ttl_s} to {limits.max_ttl_s}, not {ttl_s}",
                limit=limits.max_ttl_s if ttl_s > limits.max_ttl_s else limits.min_ttl_s,
            )
        if ask.technique != AUTO and ask.technique not in STATIC_ORDER:
            raise Refusal(
                Code.UNSUPPORTED_TECHNIQUE,
                f"there is no technique {ask.technique[:40]!r}",
                hint=f"there are: {AUTO}, {', '.join(STATIC_ORDER)}",
            )
        _check_labels(ask.labels)
        return LeaseRequest(
            public_key=ask.public_key, technique=ask.technique, arch=arch,
            instance_type=self._type(token, ask.instance_type, arch),
            market=ask.market or Market.ON_DEMAND, ttl_s=ttl_s, fallback=ask.fallback,
            labels=dict(ask.labels),
        )  # fmt: skip

    def _types(self, token: Token) -> tuple[str, ...]:
        """Types that a token may ask for."""
        own = token.instance_types
        every = sorted({instance_type for _, instance_type in self._pairs})
        return tuple(kind for kind in every if own is None or kind in own)

    def _type(self, token: Token, asked: str | None, arch: Arch) -> str:
        allowed = self._types(token)
        kind = asked or self._facts.default_types[arch]
        of_arch = {kind for pair_arch, kind in self._pairs if pair_arch is arch}
        if kind not in allowed:
            raise Refusal(
                Code.FORBIDDEN, f"instance type {kind[:40]!r} is not among those allowed",
                hint=f"allowed: {', '.join(allowed) or 'none'}",
            )  # fmt: skip
        if kind not in of_arch:
            raise Refusal(
                Code.INVALID_REQUEST,
                f"instance type {kind} is not {arch}",
                errors=({"field": "instance_type", "rule": f"a type of {arch}"},),
            )
        return kind

    def _limits(self, token: Token) -> Limits:
        settings = self._context.settings
        return Limits(
            leases=settings.max_leases if token.max_leases is None else token.max_leases,
            usd_per_hour=token.max_usd_per_hour,
            service_usd_per_hour=settings.max_usd_per_hour,
        )

    async def lease(self, token: Token, lease_id: str) -> Lease:
        self._need(token, Scope.READ)
        lease = await self._store(self._context.store.lease, lease_id)
        if lease is None or (lease.owner != token.id and not token.may(Scope.ADMIN)):
            raise Refusal(Code.NOT_FOUND, f"there is no lease {lease_id[:60]!r}")
        return lease

    async def leases(
        self,
        token: Token,
        *,
        everybodys: bool = False,
        states: frozenset[LeaseState] | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        self._need(token, Scope.ADMIN if everybodys else Scope.READ)
        owner = None if everybodys else token.id
        try:
            return await self._context.db(
                self._context.store.leases, owner=owner, states=states, limit=limit, cursor=cursor
            )
        except StoreError as error:
            raise Refusal(Code.INVALID_REQUEST, error.message, hint=error.hint) from error

    async def wait(self, token: Token, lease_id: str, wait_s: float) -> Lease:
        context = self._context
        deadline_s = context.monotonic() + max(0.0, min(wait_s, _WAIT_MAX_S))
        while True:
            changed = context.bulletin.waiter(lease_id)
            try:
                lease = await self.lease(token, lease_id)
                on_its_way = lease.state in (LeaseState.REQUESTED, LeaseState.PROVISIONING)
                left_s = deadline_s - context.monotonic()
                if not on_its_way or left_s <= 0 or context.closing:
                    return lease
                await asyncio.wait([changed], timeout=left_s)
            finally:
                context.bulletin.forget(lease_id, changed)

    async def events(self, token: Token, lease_id: str, *, after: int = 0) -> AsyncIterator[Event | None]:
        context = self._context
        await self.lease(token, lease_id)
        while True:
            changed = context.bulletin.waiter(lease_id)
            try:
                lease = await self.lease(token, lease_id)
                for event in await self._store(context.store.events, lease_id, after=after):
                    after = event.sequence
                    yield event
                if lease.state.is_terminal or context.closing:
                    return
                done, _ = await asyncio.wait([changed], timeout=_HEARTBEAT_S)
                if not done:
                    yield None
            finally:
                context.bulletin.forget(lease_id, changed)

    async def set_ttl(self, token: Token, lease_id: str, ttl_s: int, *, shorten: bool = False) -> Lease:
        self._need(token, Scope.LEASE)
        lease = await self.lease(token, lease_id)
        settings = self._context.settings
        if not settings.min_ttl_s <= ttl_s <= settings.max_ttl_s:
            raise Refusal(
                Code.TTL_OUT_OF_RANGE,
                f"ttl_seconds is {settings.min_ttl_s} to {settings.max_ttl_s}, not {ttl_s}",
                limit=settings.max_ttl_s if ttl_s > settings.max_ttl_s else settings.min_ttl_s,
            )
        return await self._leases.set_ttl(lease, ttl_s, shorten=shorten)

    async def end(self, token: Token, lease_id: str) -> Lease:
        self._need(token, Scope.LEASE)
        lease = await self.lease(token, lease_id)
        reason = EndReason.DELETED if lease.owner == token.id else EndReason.OPERATOR
        return await self._leases.end(lease_id, reason) or lease

    async def techniques(
        self, token: Token, arch: Arch | None, instance_type: str | None
    ) -> list[TechniqueView]:
        self._need(token, Scope.READ)
        arch = arch or self._facts.host_arch
        kind = self._type(token, instance_type, arch)
        pools = [
            offer for offer in await self._pools.offers() if (offer.arch, offer.instance_type) == (arch, kind)
        ]
        views = await self._pools.views()
        found = []
        for name in STATIC_ORDER:
            guess = await self._selector.prediction(name, arch, kind)
            why = self._why_not(name, arch, kind, [p.name for p in pools if p.technique == name], views)
            found.append((guess, name, why))
        if all(guess.ms is not None for guess, _, why in found if not why):
            found.sort(key=lambda item: (bool(item[2]), item[0].ms or 0.0))
        else:
            found.sort(key=lambda item: bool(item[2]))
        return [
            TechniqueView(
                name=name, arch=arch, instance_type=kind, predicted_ms=guess.ms, basis=guess.basis,
                n=guess.n, available=not why, why=why, rank=rank,
            )
            for rank, (guess, name, why) in enumerate(found, start=1)
        ]  # fmt: skip

    def _why_not(
        self, technique: str, arch: Arch, kind: str, pools: Sequence[str], views: Sequence[PoolView]
    ) -> str:
        """Why a technique could not serve a request now; empty when it could."""
        catalogue = self._context.catalogue
        if technique.startswith("warm-"):
            if not pools:
                return "no pool of it in the settings"
            ready = sum(view.ready for view in views if view.name in pools)
            return "" if ready else "its pool is empty"
        if (technique, arch, kind) in catalogue.offers:
            return ""
        return catalogue.missing.get((technique, arch), "there is no image for it")

    async def pools(self, token: Token) -> list[PoolView]:
        self._need(token, Scope.READ)
        return await self._pools.views()

    async def change_pool(
        self, token: Token, name: str, *, target: int | None = None, paused: bool | None = None
    ) -> PoolView:
        self._need(token, Scope.ADMIN)
        if target is not None and not 0 <= target <= _POOL_TARGET_MAX:
            raise Refusal(Code.INVALID_REQUEST, f"target is 0 to {_POOL_TARGET_MAX}, not {target}")
        self._known_pool(name)
        await self._pools.change(name, target=target, paused=paused)
        return await self._pool_view(name)

    async def retire(self, token: Token, pool: str, machine_id: str) -> PoolView:
        self._need(token, Scope.ADMIN)
        self._known_pool(pool)
        machine = await self._store(self._context.store.machine, machine_id)
        if machine is None or machine.pool != pool or machine.lease_id is not None:
            raise Refusal(Code.NOT_FOUND, f"pool {pool} has no waiting machine {machine_id[:60]!r}")
        if not await self._pools.retire(machine, "retired by an operator"):
            raise Refusal(Code.CONFLICT, f"{machine_id} is not ready any more")
        self._pools.kick()
        return await self._pool_view(pool)

    def _known_pool(self, name: str) -> None:
        if self._pools.plan(name) is None:
            raise Refusal(
                Code.NOT_FOUND, f"there is no pool {name[:60]!r}",
                hint=f"there are: {', '.join(self._pools.names) or 'none'}",
            )  # fmt: skip

    async def _pool_view(self, name: str) -> PoolView:
        return next(view for view in await self._pools.views() if view.name == name)

    async def quota(self, token: Token) -> QuotaView:
        self._need(token, Scope.READ)
        context = self._context
        spending = await self._store(context.store.spending, token.id)
        limits = self._limits(token)
        return QuotaView(
            max_leases=limits.leases,
            leases=spending.leases,
            max_usd_per_hour=limits.usd_per_hour,
            usd_per_hour=round(spending.usd_per_hour, 6),
            service_max_usd_per_hour=limits.service_usd_per_hour,
            service_usd_per_hour=round(spending.service_usd_per_hour, 6),
            instance_types=self._types(token),
            requests_per_minute=context.settings.requests_per_minute,
        )

    async def percentiles(self, token: Token) -> list[PercentilesView]:
        self._need(token, Scope.READ)
        context = self._context
        since = context.now() - TOMBSTONE
        found = []
        for technique in STATIC_ORDER:
            times: list[float] = []
            for arch, kind in sorted(self._pairs):
                samples = await self._store(
                    context.store.samples, technique, arch, kind, since=since, limit=200
                )
                times += [sample.ms for sample in samples if sample.ok]
            if times:
                found.append(
                    PercentilesView(
                        technique,
                        len(times),
                        quantile(times, 0.5),
                        quantile(times, 0.9),
                        quantile(times, 0.99),
                    )
                )
        return found

    async def new_token(self, token: Token, new: NewToken) -> tuple[Token, str]:
        self._need(token, Scope.ADMIN)
        return await self.make_token(new)

    async def make_token(self, new: NewToken) -> tuple[Token, str]:
        """A new token without asking who wants it: for the one that `serve` makes itself."""
        now = self._context.now()
        unknown = sorted(new.scopes - {scope.value for scope in Scope})
        if unknown or not new.scopes:
            raise Refusal(
                Code.INVALID_REQUEST, f"scopes are {', '.join(Scope)}, not {', '.join(unknown) or 'none'}"
            )
        secret = new_secret()
        made = Token(
            id=new_id("tk"),
            name=new.name,
            sha256=hash_of(secret),
            scopes=frozenset(Scope(scope) for scope in new.scopes),
            created_at=now,
            expires_at=None if new.ttl_s is None else now + timedelta(seconds=new.ttl_s),
            max_leases=new.max_leases,
            max_usd_per_hour=new.max_usd_per_hour,
            instance_types=new.instance_types,
        )
        await self._store(self._context.store.add_token, made)
        return made, secret

    async def tokens(self, token: Token) -> list[Token]:
        self._need(token, Scope.ADMIN)
        return await self._store(self._context.store.tokens)

    async def revoke_token(self, token: Token, token_id: str) -> Token:
        self._need(token, Scope.ADMIN)
        revoked = await self._store(self._context.store.revoke_token, token_id, self._context.now())
        if revoked is None:
            raise Refusal(Code.NOT_FOUND, f"there is no token {token_id[:60]!r}")
        return revoked

    async def health(self) -> Health:
        context = self._context
        checks = dict(context.alarms)
        try:
            await context.db(context.store.pool_control, "health")
        except StoreError as error:
            checks["store"] = error.message
        if self._tower.age_s() > _CLOUD_SILENT_S:
            checks.setdefault("cloud", "EC2 has not answered for a minute")
        fatal = {"store", "cloud", "catalogue", "clock"} & set(checks)
        for name in ("store", "cloud"):
            checks.setdefault(name, "ok")
        if context.closing:
            checks["service"] = "stopping"
        return Health(ready=not fatal and not context.closing, checks=checks)

    def metrics(self) -> str:
        return self._context.metrics.text()

    def server_facts(self) -> Mapping[str, Any]:
        settings = self._context.settings
        return {
            "cloud": self._facts.cloud,
            "region": self._facts.region,
            "version": __version__,
            "ssh_port": self._facts.ssh_port,
            "arch": self._facts.host_arch.value,
            "instance_types": sorted({kind for _, kind in self._pairs}),
            "techniques": [AUTO, *STATIC_ORDER],
            "ttl_s": settings.ttl_s,
            "min_ttl_s": settings.min_ttl_s,
            "max_ttl_s": settings.max_ttl_s,
            "max_lifetime_s": settings.max_lifetime_s,
        }

    async def _store(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A call to the store whose failure is the caller's to hear of."""
        try:
            return await self._context.db(method, *args, **kwargs)
        except StoreError as error:
            raise Refusal(Code.UNAVAILABLE, error.message, hint=error.hint, retry_after_s=2) from error

    @staticmethod
    def _need(token: Token, scope: Scope) -> None:
        if not token.may(scope):
            raise Refusal(Code.FORBIDDEN, f"token {token.name!r} does not have the scope {scope}")


def _typed(kinds: Iterable[str]) -> list[tuple[Arch, str]]:
    """Types with their architecture, by their names."""
    from instant_env.cloud.instances import fits

    return [(next(arch for arch in Arch if fits(kind, arch)), kind) for kind in kinds]


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _LABELS_MAX:
        raise Refusal(Code.INVALID_REQUEST, f"there are at most {_LABELS_MAX} labels, not {len(labels)}")
    for name, value in labels.items():
        if not 1 <= len(name) <= _LABEL_NAME_MAX or len(value) > _LABEL_MAX:
            raise Refusal(
                Code.INVALID_REQUEST,
                f"a label's name has 1 to {_LABEL_NAME_MAX} characters, its value at most {_LABEL_MAX}",
                errors=({"field": "labels", "rule": f"{name[:_LABEL_NAME_MAX]!r} breaks this"},),
            )
