"""An engine over a real store and a pretended fleet, on a clock that a test moves."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey
from instant_env.service.engine.context import Context
from instant_env.service.engine.engine import Engine, Facts
from instant_env.service.engine.metrics import Metrics
from instant_env.service.engine.pools import PoolPlan
from instant_env.service.logs import make_logger
from instant_env.service.operations import Ask, NewToken
from instant_env.service.records import (
    Idempotency,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    Scope,
    Token,
    new_id,
)
from instant_env.service.store.sqlite import SqliteStore
from instant_env.service.tokens import hash_of, new_secret
from instant_env.service_settings import PoolKind, ServiceSettings
from support.service.fleet import HOST_KEY, TYPE, FakeFleet

#: Where a host's ports below 1024 are not to be had, machines of localec2 have another one.
SSH_PORT = 2222
KEY = PublicKey.parse("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f")
_BEGIN = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
#: A test that waits for something that does not come ends by this.
_PATIENCE_S = 20.0


class Clock:
    """Both clocks of a context, moved by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> datetime:
        return _BEGIN + timedelta(seconds=self.s)

    def monotonic(self) -> float:
        return self.s

    def advance(self, s: float) -> None:
        self.s += s


def plan(
    technique: PoolKind = PoolKind.WARM_RUNNING, *, target: int = 1, max_age_s: int = 3600, name: str = "pool"
) -> PoolPlan:
    return PoolPlan(name, technique, "custom-init", Arch.X86_64, TYPE, target, timedelta(seconds=max_age_s))


class Rig:
    """``engine`` with its parts at hand; its loops do not run: a test calls the ticks."""

    def __init__(
        self, path: Path, fleet: FakeFleet, clock: Clock, settings: ServiceSettings, plans: list[PoolPlan]
    ) -> None:
        self.fleet = fleet
        self.clock = clock
        self.store = SqliteStore.open(path)
        self.logged = io.StringIO()
        self.context = Context(
            store=self.store, fleet=fleet, settings=settings, id="20261130T120000-00000001",
            metrics=Metrics("test"), log=make_logger(self.logged), now=clock.now, monotonic=clock.monotonic,
            ssh_port=SSH_PORT,
        )  # fmt: skip
        facts = Facts(
            "local", "us-east-1", SSH_PORT, Arch.X86_64, {Arch.X86_64: TYPE, Arch.ARM64: "m7g.large"}
        )
        self.engine = Engine(self.context, facts, plans, [])
        self.pools = self.engine._pools
        self.leases = self.engine._leases
        self.tower = self.engine._tower
        tokens = self.store.tokens()
        self.token = tokens[0] if tokens else self.add_token()

    def add_token(self, *scopes: Scope, **limits: object) -> Token:
        token = Token(
            id=f"tk-{len(self.store.tokens())}", name="test", sha256=hash_of(new_secret()),
            scopes=frozenset(scopes or [Scope.ADMIN]), created_at=self.clock.now(),
        )  # fmt: skip
        token = dataclasses.replace(token, **limits)  # type: ignore[arg-type]
        self.store.add_token(token)
        return token

    async def new_token(self) -> tuple[Token, str]:
        """One that may everything, with its secret."""
        return await self.engine.make_token(NewToken("test", frozenset(scope.value for scope in Scope)))

    def fill_rows(self, count: int) -> None:
        """Machines that wait in the first pool, without a fill."""
        (name, *_) = self.pools.names
        now = self.clock.now()
        for _ in range(count):
            machine_id = new_id("mc")
            sighting = self.fleet.add(machine_id=machine_id)
            self.store.add_machine(
                Machine(
                    id=machine_id, state=MachineState.READY, technique="warm-running", arch=Arch.X86_64,
                    instance_type=TYPE, image_id=self.fleet.image_id, market=Market.ON_DEMAND,
                    client_token=machine_id, created_at=now, expires_at=now + timedelta(hours=12), pool=name,
                    instance_id=sighting.instance_id, address=sighting.address, username="admin",
                    host_keys=(HOST_KEY,), ready_at=now,
                )
            )  # fmt: skip

    async def look_up(self) -> None:
        pairs = frozenset({(Arch.X86_64, TYPE), (Arch.ARM64, "m7g.large")})
        self.context.catalogue = await self.fleet.catalogue(pairs)

    async def take(
        self, technique: str = "auto", *, ttl_s: int | None = None, key: str = "", token: Token | None = None,
        fallback: bool = False, market: Market | None = None,
    ) -> Lease:  # fmt: skip
        idempotency = Idempotency(key, "print") if key else None
        ask = Ask(KEY, technique=technique, ttl_s=ttl_s, fallback=fallback, market=market)
        return (await self.engine.take(token or self.token, ask, idempotency)).lease

    def lease(self, lease_id: str) -> Lease:
        lease = self.store.lease(lease_id)
        assert lease is not None
        return lease

    def machines(self, *states: MachineState) -> list[Machine]:
        return self.store.machines(states=states or None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let tasks run until it is true. Raises TimeoutError."""
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def fill(self, ready: int = 1) -> None:
        """Tick until so many machines are ready in pools."""
        await self.pools.tick()
        await self.until(lambda: len(self.machines(MachineState.READY)) >= ready)

    async def ready(self, lease: Lease) -> Lease:
        """Wait until a lease has left its way, and its promise is in the tags."""
        moving = (LeaseState.REQUESTED, LeaseState.PROVISIONING)
        await self.until(lambda: self.lease(lease.id).state not in moving)
        await self.until(lambda: lease.id not in self.leases._works)
        return self.lease(lease.id)

    async def close(self) -> None:
        await self.engine.close()
        self.store.close()


@asynccontextmanager
async def rig(
    path: Path,
    *,
    fleet: FakeFleet | None = None,
    clock: Clock | None = None,
    plans: list[PoolPlan] | None = None,
    **settings: object,
) -> AsyncIterator[Rig]:
    """A rig over the store ``path``; entered again with the same fleet and clock it is the service after a
    restart."""
    made = Rig(
        path, fleet or FakeFleet(), clock or Clock(), ServiceSettings(**settings),  # type: ignore[arg-type]
        [plan()] if plans is None else plans,
    )  # fmt: skip
    try:
        await made.look_up()
        yield made
    finally:
        await made.close()
