"""Pools: machines that wait for a key, refilled at once on each claim and by a tick.

A fill is a row first, then a machine. Rows in ``filling`` count against the target, so the loop sees its own
work. A machine that was handed out never counts again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.service.engine.context import Context
from instant_env.service.engine.endings import Endings
from instant_env.service.engine.fleet import MachineFailed, Offer
from instant_env.service.engine.selection import PoolOffer
from instant_env.service.operations import MachineView, PoolView
from instant_env.service.records import (
    AUTO,
    LeaseRequest,
    Machine,
    MachineState,
    PoolControl,
    new_id,
)
from instant_env.service.store.protocol import QuotaExceeded
from instant_env.service_settings import PoolKind, PoolSettings

#: Failures in a row that open the breaker; the first pause, which doubles with each further failure, and the
#: longest.
_BREAKER_FAILURES = 3
_BREAKER_FIRST_S = 30.0
_BREAKER_MAX_S = 900.0
#: Fills at a time, of all pools: each is a boot, and users' launches come first.
FILLS_AT_A_TIME = 4
#: At least this long between two looks at the pools: nothing beside the seconds that a fill takes.
_LULL_S = 0.1
#: A pool's machine ends by itself this long after it is too old to be handed out.
_MARGIN = timedelta(hours=1)
_WAITING = (MachineState.FILLING, MachineState.READY)

#: How the image of a pool is launched when it is filled.
_IMAGE_TECHNIQUE = {"custom-init": "custom-init", "minimal": "minimal-ami"}


@dataclass(frozen=True)
class PoolPlan:
    """A pool's settings with every default filled in."""

    name: str
    technique: PoolKind
    recipe: str
    arch: Arch
    instance_type: str
    target: int
    max_age: timedelta

    @property
    def image_technique(self) -> str:
        """The technique that launches the pool's image plainly."""
        return _IMAGE_TECHNIQUE[self.recipe]

    @classmethod
    def of(cls, settings: PoolSettings, arch: Arch, instance_type: str) -> PoolPlan:
        return cls(
            name=settings.name, technique=settings.technique, recipe=settings.recipe.value, arch=arch,
            instance_type=instance_type, target=settings.target,
            max_age=timedelta(seconds=settings.max_age_s),
        )  # fmt: skip


@dataclass(frozen=True)
class _Standing:
    """One look at a pool: ``image_id`` is the current image's, or None while there is none."""

    plan: PoolPlan
    control: PoolControl
    offer: Offer | None
    ready: Sequence[Machine]
    filling: Sequence[Machine]

    @property
    def target(self) -> int:
        return self.plan.target if self.control.target is None else self.control.target

    def is_fresh(self, machine: Machine) -> bool:
        """Whether it is of the current image."""
        return self.offer is not None and machine.image_id == self.offer.image_id

    @property
    def fresh(self) -> list[Machine]:
        """Ready ones of the current image."""
        return [machine for machine in self.ready if self.is_fresh(machine)]


class Pools:
    """All pools of the service."""

    def __init__(self, context: Context, endings: Endings, plans: Sequence[PoolPlan]) -> None:
        self._context = context
        self._endings = endings
        self._plans = {plan.name: plan for plan in plans}
        self._filling: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._controls = asyncio.Lock()
        self._launches_ahead: set[str] = set()
        self._images: dict[str, str] = {}
        self.hits: dict[str, int] = dict.fromkeys(self._plans, 0)
        self.misses: dict[str, int] = dict.fromkeys(self._plans, 0)

    @property
    def names(self) -> list[str]:
        return list(self._plans)

    def launch_ahead(self, machine_id: str) -> None:
        """A user's launch is about to be asked for: no fill begins before EC2 has answered it."""
        self._launches_ahead.add(machine_id)

    def launch_answered(self, machine_id: str) -> None:
        if machine_id in self._launches_ahead:
            self._launches_ahead.discard(machine_id)
            self.kick()

    def kick(self) -> None:
        """Look at the pools now: something was claimed, or an operator changed something."""
        self._wake.set()

    async def tick(self) -> None:
        """Compare each pool with its target, and begin what is missing."""
        self._wake.clear()
        for plan in self._plans.values():
            await self._reconcile(plan)

    async def pause(self, interval_s: float) -> None:
        """Until the next tick: this long, or until a kick; many kicks at a time are one."""
        await asyncio.sleep(_LULL_S)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), interval_s)

    def count(self, request: LeaseRequest, hit: str | None) -> None:
        """A request came; ``hit`` served it. It counts for the pools that it would have taken: of its
        architecture and type, on demand, and of its technique unless any will do."""
        any_technique = request.technique == AUTO or request.fallback
        for plan in self._plans.values():
            of_its_kind = (plan.arch, plan.instance_type) == (request.arch, request.instance_type)
            wanted = any_technique or request.technique == plan.technique
            if not of_its_kind or not wanted or request.market is not Market.ON_DEMAND:
                continue
            if plan.name == hit:
                self.hits[plan.name] += 1
                self._context.metrics.claim(plan.name, hit=True)
            elif hit is None:
                self.misses[plan.name] += 1
                self._context.metrics.claim(plan.name, hit=False)

    async def offers(self) -> list[PoolOffer]:
        """What can be claimed, as the last tick saw it: the claim itself decides. While no machine of the
        newest image is ready, those before it serve."""
        found = []
        for plan in self._plans.values():
            if plan.name not in self._images:
                self._images[plan.name] = self._serving(await self._look(plan))
            born_after = self._context.now() - plan.max_age
            image_id = self._images[plan.name]
            found.append(
                PoolOffer(
                    plan.name, plan.technique.value, plan.arch, plan.instance_type, image_id, born_after
                )
            )
        return found

    @staticmethod
    def _serving(standing: _Standing) -> str:
        """The image whose machines are handed out now."""
        if standing.ready and not standing.fresh:
            return standing.ready[-1].image_id
        return standing.offer.image_id if standing.offer else ""

    async def _look(self, plan: PoolPlan) -> _Standing:
        context = self._context
        control = await context.db(context.store.pool_control, plan.name)
        machines = await context.db(context.store.machines, pool=plan.name, states=_WAITING)
        return _Standing(
            plan=plan,
            control=control,
            offer=context.catalogue.offers.get((plan.image_technique, plan.arch, plan.instance_type)),
            ready=[machine for machine in machines if machine.state is MachineState.READY],
            filling=[machine for machine in machines if machine.state is MachineState.FILLING],
        )

    async def _reconcile(self, plan: PoolPlan) -> None:
        standing = await self._look(plan)
        # What one changes in the rows does not matter to the others: each asks the row again before it acts.
        await self._retire(standing)
        await self._drop_lost_fills(standing)
        await self._mend(standing)
        standing = await self._look(plan)
        self._images[plan.name] = self._serving(standing)
        for _ in range(await self._shortfall(standing)):
            await self._begin_fill(standing)

    async def _retire(self, standing: _Standing) -> None:
        """End what is too old, what is too many (oldest first), and old images as new ones come."""
        too_old = self._context.now() - standing.plan.max_age
        leaving = [machine for machine in standing.ready if (machine.ready_at or too_old) <= too_old]
        staying = [machine for machine in standing.ready if (machine.ready_at or too_old) > too_old]
        surplus = len(staying) - standing.target
        if surplus > 0:
            leaving += sorted(staying, key=standing.is_fresh)[:surplus]  # old images first, then the oldest
        for machine in leaving:
            await self.retire(machine, "too old or too many")

    async def _drop_lost_fills(self, standing: _Standing) -> None:
        """A fill that ended by an error, as of a disk that was full for a moment, leaves its row: that would
        count against the target for ever."""
        self._drop_finished()
        for machine in standing.filling:
            if machine.id not in self._filling:
                await self.retire(machine, "its fill was lost", MachineState.FILLING)

    async def retire(self, machine: Machine, detail: str, state: MachineState = MachineState.READY) -> bool:
        """End a machine of a pool unless somebody has claimed it meanwhile, or it is otherwise not in this
        state any more."""

        def change(row: Machine) -> Machine | None:
            if row.state is not state:
                return None
            return replace(row, state=MachineState.ENDING, detail=detail)

        changed = await self._context.amend_machine(machine.id, change)
        if changed is None or changed.state is not MachineState.ENDING:
            return False
        self._context.log.info(
            "pool machine retired", pool=machine.pool, machine_id=machine.id, detail=detail
        )
        await self._endings.ask(changed)
        return True

    async def _mend(self, standing: _Standing) -> None:
        """A ready machine whose connection broke is looked at once more; if that fails, it goes."""
        for machine in standing.ready:
            if self._context.fleet.is_well(machine):
                continue
            # The connection of one that was claimed since is broken because it was handed over.
            row = await self._context.db(self._context.store.machine, machine.id)
            if row is None or row.state is not MachineState.READY:
                continue
            found = await self._context.fleet.adopt(machine)
            if found is None:
                await self.retire(machine, "it could not be reached any more")
                continue
            row = await self._context.db(self._context.store.machine, machine.id)
            if row is None or row.state is not MachineState.READY:
                self._context.fleet.let_go(machine)

    async def _shortfall(self, standing: _Standing) -> int:
        """How many fills to begin now."""
        context, control = self._context, standing.control
        self._drop_finished()
        if control.paused or standing.offer is None or context.closing or self._launches_ahead:
            return 0
        if control.open_until is not None and control.open_until > context.now():
            return 0
        missing = standing.target - len(standing.fresh) - len(standing.filling)
        if control.open_until is not None or len(standing.fresh) < len(standing.ready):
            # After a pause one fill probes; with old ones still serving, new ones come one by one.
            missing = min(missing, 1 - len(standing.filling))
        room = FILLS_AT_A_TIME - len(self._filling)
        affordable = await self._affordable(standing)
        return max(0, min(missing, room, affordable))

    async def _affordable(self, standing: _Standing) -> int:
        """How many more the ceiling lets run."""
        context = self._context
        price = self._price(standing.plan)
        if price <= 0:
            return FILLS_AT_A_TIME
        machines = await context.db(context.store.machines)
        used = sum(machine.usd_per_hour for machine in machines)
        left = int((context.settings.max_usd_per_hour - used) / price + 1e-9)
        if left < 1:
            context.alarms["ceiling"] = (
                f"max_usd_per_hour {context.settings.max_usd_per_hour:g} is reached: pools are not filled"
            )
        else:
            context.alarms.pop("ceiling", None)
        return left

    def _price(self, plan: PoolPlan) -> float:
        return self._context.catalogue.usd_per_hour.get((plan.instance_type, Market.ON_DEMAND), 0.0)

    def _drop_finished(self) -> None:
        self._filling = {key: task for key, task in self._filling.items() if not task.done()}

    async def _begin_fill(self, standing: _Standing) -> None:
        context, plan = self._context, standing.plan
        if standing.offer is None:
            return
        machine_id = new_id("mc")
        machine = Machine(
            id=machine_id,
            state=MachineState.FILLING,
            technique=plan.technique.value,
            arch=plan.arch,
            instance_type=plan.instance_type,
            image_id=standing.offer.image_id,
            market=Market.ON_DEMAND,
            client_token=machine_id,
            created_at=context.now(),
            expires_at=(context.now() + plan.max_age + _MARGIN).replace(microsecond=0),
            pool=plan.name,
            usd_per_hour=self._price(plan),
        )
        limit = context.settings.max_usd_per_hour
        try:
            await context.db(context.store.add_machine, machine, service_usd_per_hour=limit)
        except QuotaExceeded:
            return  # a lease was quicker
        self._filling[machine_id] = context.spawn(self._fill(standing.offer, machine), f"fill {machine_id}")

    async def _fill(self, offer: Offer, machine: Machine) -> None:
        context = self._context
        started_s = context.monotonic()

        async def named(instance_id: str) -> None:
            await context.amend_machine(machine.id, lambda row: replace(row, instance_id=instance_id))

        try:
            filled = await context.fleet.fill(offer, machine, named)
        except MachineFailed as error:
            context.metrics.filled(machine.pool or "", context.monotonic() - started_s, ok=False)
            await self._fill_failed(machine, str(error))
            return

        def ready(row: Machine) -> Machine | None:
            if row.state is not MachineState.FILLING:
                return None  # retired meanwhile
            return replace(filled, state=MachineState.READY, ready_at=context.now(), version=row.version)

        took_s = context.monotonic() - started_s
        context.metrics.filled(machine.pool or "", took_s, ok=True)
        context.log.info(
            "pool machine is ready", pool=machine.pool, machine_id=machine.id, took_s=round(took_s, 1)
        )
        await self._amend_control(
            machine.pool or "",
            lambda control: replace(control, failures=0, last_error="", open_until=None),
        )
        await context.amend_machine(machine.id, ready)
        self.kick()

    async def _fill_failed(self, machine: Machine, error: str) -> None:
        context = self._context

        def count(control: PoolControl) -> PoolControl:
            failures, open_until = control.failures + 1, control.open_until
            if failures >= _BREAKER_FAILURES:
                pause_s = min(_BREAKER_MAX_S, _BREAKER_FIRST_S * 2 ** (failures - _BREAKER_FAILURES))
                open_until = context.now() + timedelta(seconds=pause_s)
            return replace(control, failures=failures, last_error=error[:500], open_until=open_until)

        context.log.warning("pool fill failed", pool=machine.pool, machine_id=machine.id, error=error)
        await self._amend_control(machine.pool or "", count)
        await self._endings.end_machine(machine.id, error)
        self.kick()

    async def _amend_control(self, name: str, change: Callable[[PoolControl], PoolControl]) -> None:
        """One after the other: fills that fail at the same time all count."""
        context = self._context
        async with self._controls:
            control = await context.db(context.store.pool_control, name)
            changed = change(control)
            if changed != control:
                await context.db(context.store.set_pool_control, changed)

    async def change(self, name: str, *, target: int | None, paused: bool | None) -> None:
        """An operator's word; it lasts over restarts. Un-pausing closes the breaker, too."""

        def operate(control: PoolControl) -> PoolControl:
            if target is not None:
                control = replace(control, target=target)
            if paused is not None:
                control = replace(control, paused=paused)
            return replace(control, failures=0, open_until=None) if paused is False else control

        await self._amend_control(name, operate)
        self.kick()

    def plan(self, name: str) -> PoolPlan | None:
        return self._plans.get(name)

    async def views(self) -> list[PoolView]:
        return [self._view(await self._look(plan)) for plan in self._plans.values()]

    def _view(self, standing: _Standing) -> PoolView:
        plan, control = standing.plan, standing.control
        waiting = [*standing.ready, *standing.filling]
        hits, misses = self.hits[plan.name], self.misses[plan.name]
        return PoolView(
            name=plan.name,
            technique=plan.technique.value,
            recipe=plan.recipe,
            arch=plan.arch,
            instance_type=plan.instance_type,
            state=self._state(standing),
            target=standing.target,
            target_of_settings=plan.target,
            ready=len(standing.ready),
            filling=len(standing.filling),
            paused=control.paused,
            usd_per_hour=round(sum(machine.usd_per_hour for machine in waiting), 6),
            hits=hits,
            misses=misses,
            hit_ratio=hits / (hits + misses) if hits + misses else None,
            open_until=control.open_until,
            last_error=control.last_error,
            machines=tuple(
                MachineView(
                    id=machine.id, instance_id=machine.instance_id, state=machine.state.value,
                    image_id=machine.image_id, created_at=machine.created_at, ready_at=machine.ready_at,
                    detail=machine.detail,
                )
                for machine in waiting
            ),
        )  # fmt: skip

    def _state(self, standing: _Standing) -> str:
        control = standing.control
        if control.paused:
            return "paused"
        if control.open_until is not None and control.open_until > self._context.now():
            return "broken"
        if standing.offer is None:
            return "no-image"
        return "ready" if len(standing.ready) >= standing.target else "filling"
