"""Pools: filled, refilled, replaced, paused, broken; over a real store and a pretended fleet."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.service.fleet import FakeFleet, broken
from support.service.rig import Clock, Rig, plan, rig

from instant_env.cloud.instances import Market
from instant_env.service.operations import Code, Refusal
from instant_env.service.records import LeaseState, MachineState, Source
from instant_env.service_settings import PoolKind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def settle(r: Rig) -> None:
    """Tick until nothing is being filled."""
    await r.pools.tick()
    await r.until(lambda: not r.machines(MachineState.FILLING))


def ready(r: Rig) -> list[str]:
    return [machine.id for machine in r.machines(MachineState.READY)]


def test_fills_under_way_count_so_no_tick_fills_twice(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=3)]) as r:
            r.fleet.hold["fill"] = asyncio.Event()
            for _ in range(5):
                await r.pools.tick()
            await r.until(lambda: r.fleet.count("fill") == 3)
            assert len(r.machines()) == 3
            r.fleet.hold["fill"].set()
            await settle(r)
            assert len(ready(r)) == 3

    asyncio.run(scenario())


def test_users_launches_come_before_fills(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            r.fleet.hold["launch"] = asyncio.Event()
            lease = await r.take()
            await r.until(lambda: r.fleet.count("launch"))
            await r.pools.tick()
            assert r.fleet.count("fill") == 0
            r.fleet.hold["launch"].set()
            await r.ready(lease)
            await settle(r)
            assert len(ready(r)) == 1

    asyncio.run(scenario())


def test_the_breaker_opens_probes_with_one_fill_and_closes(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=3)]) as r:
            r.fleet.fail = {"fill": [broken("no such image") for _ in range(4)]}
            await settle(r)
            (view,) = await r.pools.views()
            assert (view.state, view.last_error) == ("broken", "no such image")
            fills = r.fleet.count("fill")
            r.clock.advance(29)
            await settle(r)
            assert r.fleet.count("fill") == fills
            r.clock.advance(2)
            await settle(r)  # the probe fails as well: the pause doubles
            assert r.fleet.count("fill") == fills + 1
            r.clock.advance(59)
            await settle(r)
            assert r.fleet.count("fill") == fills + 1
            r.clock.advance(2)
            await settle(r)
            assert r.fleet.count("fill") == fills + 2
            await settle(r)
            assert len(ready(r)) == 3
            (view,) = await r.pools.views()
            assert (view.state, view.last_error) == ("ready", "")
            # What failed is not there any more.
            await r.tower.tick()
            assert len(r.machines()) == 3

    asyncio.run(scenario())


def test_machines_that_are_too_old_are_replaced_before_somebody_gets_one(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(max_age_s=600)]) as r:
            await settle(r)
            (old,) = ready(r)
            r.clock.advance(601)
            lease = await r.ready(await r.take())
            assert lease.source is Source.COLD  # the old one is not claimable, even before the tick
            await settle(r)
            assert len(ready(r)) == 1
            assert ready(r) != [old]

    asyncio.run(scenario())


def test_a_new_image_replaces_machines_one_by_one_and_old_ones_serve_meanwhile(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=2)]) as r:
            await settle(r)
            old = set(ready(r))
            r.fleet.image_id = "ami-2"
            await r.look_up()
            r.fleet.hold["fill"] = asyncio.Event()
            await r.pools.tick()
            await r.until(lambda: r.machines(MachineState.FILLING))
            assert len(r.machines(MachineState.FILLING)) == 1
            lease = await r.ready(await r.take())
            assert lease.machine_id in old  # while no new one is ready
            r.fleet.hold["fill"].set()
            await r.until(lambda: not r.machines(MachineState.FILLING))
            await settle(r)
            lease = await r.ready(await r.take())
            assert lease.machine_id not in old  # as soon as one is
            for _ in range(4):
                await settle(r)
                await r.tower.tick()
            assert {machine.image_id for machine in r.machines(MachineState.READY)} == {"ami-2"}
            assert len(ready(r)) == 2

    asyncio.run(scenario())


def test_an_image_that_never_comes_up_leaves_the_old_machines_serving(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await settle(r)
            (old,) = ready(r)
            r.fleet.image_id = "ami-2"
            await r.look_up()
            r.fleet.fail = {"fill": [broken() for _ in range(9)]}
            for _ in range(5):
                await settle(r)
                r.clock.advance(40)
            lease = await r.ready(await r.take())
            assert lease.machine_id == old
            (view,) = await r.pools.views()
            assert view.last_error

    asyncio.run(scenario())


def test_a_target_that_was_lowered_drains_the_oldest(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=3)]) as r:
            await settle(r)
            before = ready(r)
            await r.engine.change_pool(r.token, "pool", target=1)
            await settle(r)
            await r.tower.tick()
            assert ready(r) == before[2:]
            await r.engine.change_pool(r.token, "pool", target=0)
            await settle(r)
            await r.tower.tick()
            assert r.machines() == []

    asyncio.run(scenario())


def test_a_paused_pool_serves_and_is_not_filled_and_stays_so_over_a_restart(path: Path) -> None:
    fleet, clock = FakeFleet(), Clock()

    async def scenario() -> None:
        async with rig(path, fleet=fleet, clock=clock) as r:
            await settle(r)
            view = await r.engine.change_pool(r.token, "pool", paused=True)
            assert view.state == "paused"
            assert (await r.ready(await r.take())).source is Source.POOL
        async with rig(path, fleet=fleet, clock=clock) as r:
            await settle(r)
            assert ready(r) == []
            await r.engine.change_pool(r.token, "pool", paused=False)
            await settle(r)
            assert len(ready(r)) == 1

    asyncio.run(scenario())


def test_a_machine_whose_connection_broke_is_reached_again_or_replaced(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await settle(r)
            (machine_id,) = ready(r)
            r.fleet.unwell.add(machine_id)
            await settle(r)
            assert r.fleet.count("adopt") == 1
            await settle(r)
            assert ready(r) != [machine_id]
            await r.tower.tick()
            assert len(r.machines()) == 1

    asyncio.run(scenario())


def test_a_machine_that_died_while_it_waited_is_replaced(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await settle(r)
            (machine,) = r.machines()
            r.fleet.set_state(machine.instance_id, "terminated", "Server.InternalError")
            await r.tower.tick()
            await settle(r)
            assert len(ready(r)) == 1
            assert ready(r) != [machine.id]

    asyncio.run(scenario())


def test_the_ceiling_stops_fills_and_says_so(path: Path) -> None:
    async def scenario() -> None:
        fleet = FakeFleet(usd_per_hour=0.1)
        async with rig(path, fleet=fleet, plans=[plan(target=5)], max_usd_per_hour=0.35) as r:
            for _ in range(3):
                await settle(r)
            assert len(ready(r)) == 3
            assert "0.35" in (await r.engine.health()).checks["ceiling"]
            # A pool's machine costs nothing more when it is handed out; a cold one would.
            assert (await r.ready(await r.take())).source is Source.POOL
            await settle(r)
            assert len(r.machines()) == 3
            with pytest.raises(Refusal) as refusal:
                await r.take("custom-init")
            assert refusal.value.code is Code.QUOTA

    asyncio.run(scenario())


def test_retiring_a_machine_that_was_claimed_meanwhile_is_refused(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await settle(r)
            (machine_id,) = ready(r)
            lease = await r.ready(await r.take())
            with pytest.raises(Refusal) as refusal:
                await r.engine.retire(r.token, "pool", machine_id)
            assert refusal.value.code is Code.NOT_FOUND
            assert r.lease(lease.id).state is LeaseState.READY
            await settle(r)
            (waiting,) = ready(r)
            await r.engine.retire(r.token, "pool", waiting)
            await r.tower.tick()
            await settle(r)
            assert ready(r) != [waiting]

    asyncio.run(scenario())


def test_a_burst_is_refilled_to_the_target(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=4)]) as r:
            await settle(r)
            leases = await asyncio.gather(*(r.take("warm-running") for _ in range(4)))
            assert len({lease.machine_id for lease in leases}) == 4
            for lease in leases:
                await r.ready(lease)
            await settle(r)
            assert len(ready(r)) == 4
            (view,) = await r.pools.views()
            assert view.hit_ratio == 1.0

    asyncio.run(scenario())


def test_a_request_counts_for_the_pools_that_it_would_have_taken(path: Path) -> None:
    async def scenario() -> None:
        plans = [plan(target=1), plan(PoolKind.WARM_STOPPED, target=1, name="stopped")]
        async with rig(path, plans=plans) as r:
            await r.fill(2)
            await r.take("cold")
            await r.take(market=Market.SPOT)
            await r.take()  # the running one
            await r.take("warm-stopped", fallback=True)
            await r.take()  # nothing is left
            counts = {view.name: (view.hits, view.misses) for view in await r.pools.views()}
            assert counts == {"pool": (1, 1), "stopped": (1, 1)}

    asyncio.run(scenario())


def test_fills_that_a_restart_cut_off_are_ended(path: Path) -> None:
    fleet, clock = FakeFleet(), Clock()

    async def scenario() -> None:
        async with rig(path, fleet=fleet, clock=clock) as r:
            fleet.hold["fill"] = asyncio.Event()
            await r.pools.tick()
            await r.until(lambda: fleet.machines)
            (cut_off,) = fleet.machines
        fleet.hold.clear()
        async with rig(path, fleet=fleet, clock=clock) as r:
            await r.engine._take_up_pools()
            await r.tower.tick()
            await r.tower.tick()
            assert fleet.machines[cut_off].is_gone
            await settle(r)
            assert len(ready(r)) == 1

    asyncio.run(scenario())


def test_a_machine_of_a_pool_that_is_no_more_is_ended(path: Path) -> None:
    fleet, clock = FakeFleet(), Clock()

    async def scenario() -> None:
        async with rig(path, fleet=fleet, clock=clock) as r:
            await settle(r)
        async with rig(path, fleet=fleet, clock=clock, plans=[plan(name="another")]) as r:
            await r.engine._take_up_pools()
            await r.tower.tick()
            await settle(r)
            assert [machine.pool for machine in r.machines(MachineState.READY)] == ["another"]
            assert len([s for s in fleet.machines.values() if not s.is_gone]) == 1

    asyncio.run(scenario())


def test_a_stopped_machine_is_started(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(PoolKind.WARM_STOPPED)]) as r:
            await settle(r)
            lease = await r.ready(await r.take())
            assert lease.technique == "warm-stopped"
            assert r.fleet.count("start") == 1

    asyncio.run(scenario())


def test_a_stopped_machine_without_capacity_leads_to_the_next_way(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(PoolKind.WARM_STOPPED)]) as r:
            await settle(r)
            r.fleet.fail = {"start": [broken("InsufficientInstanceCapacity", capacity=True)]}
            lease = await r.ready(await r.take())
            assert (lease.state, lease.source) == (LeaseState.READY, Source.COLD)

    asyncio.run(scenario())
