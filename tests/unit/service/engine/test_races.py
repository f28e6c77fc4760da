"""What happens between a read and a write of the store, between two calls to EC2, or when the store fails
once: nothing that was promised is taken back, and nothing hangs."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.service.fleet import FakeFleet
from support.service.rig import Clock, Rig, plan, rig

from instant_env.service.engine.fleet import Sighting
from instant_env.service.engine.leases import TAG_MARGIN
from instant_env.service.records import Lease, LeaseState, Machine, MachineState
from instant_env.service.store.protocol import StoreError
from instant_env.service_settings import PoolKind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


class SlowFleet(FakeFleet):
    """The next promise waits in EC2 until ``answer`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: asyncio.Event | None = None
        self.asked = asyncio.Event()

    async def promise(self, machine: Machine, lease: Lease, ends_at: datetime) -> None:
        answer, self.answer = self.answer, None
        if answer is not None:
            self.asked.set()
            await answer.wait()
        await super().promise(machine, lease, ends_at)


def fail_once(r: Rig, method: str, when: Callable[[Any], bool]) -> None:
    """The next call of a method of the store fails whose first argument is such a one."""
    real = getattr(r.store, method)

    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        if when(value):
            setattr(r.store, method, real)
            raise StoreError("the disk is full")
        return real(value, *args, **kwargs)

    setattr(r.store, method, call)


def end_in_tags(fleet: FakeFleet, lease: Lease) -> datetime | None:
    return fleet.machines[lease.instance_id].expires_at


def test_two_extensions_at_once_both_hold(path: Path) -> None:
    """EC2 answers the earlier one later: its end must not come over the other's."""

    async def scenario() -> None:
        fleet = SlowFleet()
        async with rig(path, fleet=fleet) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=600))
            answer = fleet.answer = asyncio.Event()
            one = asyncio.create_task(r.engine.set_ttl(r.token, lease.id, 3600))
            await fleet.asked.wait()
            two = asyncio.create_task(r.engine.set_ttl(r.token, lease.id, 7200))
            await asyncio.wait({two}, timeout=0.5)
            answer.set()
            promises = [(await task).expires_at for task in (one, two)]
            now = r.lease(lease.id)
            assert now.expires_at is not None
            assert now.expires_at == max(end for end in promises if end is not None)
            assert end_in_tags(fleet, now) == now.expires_at + TAG_MARGIN

    asyncio.run(scenario())


def test_the_promise_of_a_ready_lease_does_not_come_over_its_extension(path: Path) -> None:
    async def scenario() -> None:
        fleet = SlowFleet()
        async with rig(path, fleet=fleet) as r:
            await r.fill()
            answer = fleet.answer = asyncio.Event()
            lease = await r.take(ttl_s=600)
            await fleet.asked.wait()
            extension = asyncio.create_task(r.engine.set_ttl(r.token, lease.id, 7200))
            await asyncio.wait({extension}, timeout=0.5)
            answer.set()
            extended = await extension
            await r.ready(lease)
            assert extended.expires_at is not None
            assert end_in_tags(fleet, r.lease(lease.id)) == extended.expires_at + TAG_MARGIN

    asyncio.run(scenario())


def test_a_lease_that_was_extended_after_the_reaper_looked_is_not_ended(path: Path) -> None:
    async def scenario() -> None:
        fleet = SlowFleet()
        async with rig(path, fleet=fleet, plans=[plan(target=2)]) as r:
            await r.fill(2)
            first = await r.ready(await r.take(ttl_s=60))
            second = await r.ready(await r.take(ttl_s=60))
            r.clock.advance(45)
            answer = fleet.answer = asyncio.Event()
            extension = asyncio.create_task(r.engine.set_ttl(r.token, second.id, 600))
            await fleet.asked.wait()
            r.clock.advance(16)  # both are due
            fleet.hold["terminate"] = asyncio.Event()
            reaper = asyncio.create_task(r.leases.tick())
            await r.until(lambda: fleet.count("terminate") == 1)
            answer.set()
            extended = await extension
            fleet.hold["terminate"].set()
            await reaper
            assert r.lease(first.id).state is LeaseState.ENDING
            assert r.lease(second.id) == extended
            assert r.store.machine(second.machine_id).state is MachineState.LEASED  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_a_machines_row_that_came_after_its_leases_end_goes(path: Path) -> None:
    """The lessee gives up while the row is being written: nobody will ever launch it, and its price must not
    count for ever."""

    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            real, begun, go_on = r.store.add_machine, threading.Event(), threading.Event()

            def add_machine(machine: Machine, *, service_usd_per_hour: float | None = None) -> None:
                begun.set()
                assert go_on.wait(60)
                real(machine, service_usd_per_hour=service_usd_per_hour)

            r.store.add_machine = add_machine  # type: ignore[method-assign]
            lease = await r.take("custom-init")
            await r.until(begun.is_set)
            await r.engine.end(r.token, lease.id)
            go_on.set()
            await r.until(r.machines)
            assert r.lease(lease.id).state is LeaseState.ENDED
            for _ in range(3):
                r.clock.advance(130)
                await r.tower.tick()
            assert r.machines() == []
            assert r.fleet.count("launch") == 0

    asyncio.run(scenario())


def test_a_lease_whose_write_failed_once_is_taken_up_again(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            fail_once(r, "change_lease", lambda lease: lease.state is LeaseState.READY)
            lease = await r.take()
            await r.until(lambda: lease.id not in r.leases._works)
            assert r.lease(lease.id).state is LeaseState.PROVISIONING
            for _ in range(3):
                await r.leases.tick()
            assert (await r.ready(lease)).state is LeaseState.READY
            assert r.lease(lease.id).attempt == 1

    asyncio.run(scenario())


def test_a_lease_on_its_way_is_not_taken_up_twice(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            r.fleet.hold["hand_over"] = asyncio.Event()
            lease = await r.take()
            await r.until(lambda: r.fleet.count("hand_over") == 1)
            for _ in range(5):
                await r.leases.tick()
            r.fleet.hold["hand_over"].set()
            assert (await r.ready(lease)).state is LeaseState.READY
            assert r.fleet.count("hand_over") == 1

    asyncio.run(scenario())


def test_a_fill_whose_write_failed_once_is_replaced(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            fail_once(r, "change_machine", lambda machine: machine.state is MachineState.READY)
            await r.pools.tick()
            await r.until(lambda: all(task.done() for task in r.pools._filling.values()))
            (lost,) = r.machines(MachineState.FILLING)
            await r.pools.tick()
            await r.until(lambda: r.machines(MachineState.READY))
            assert r.store.machine(lost.id).state is MachineState.ENDING  # type: ignore[union-attr]
            assert r.fleet.count("fill") == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("technique", ["warm-running", "custom-init"])
def test_a_restart_does_not_hand_out_a_machine_that_was_being_put_away(path: Path, technique: str) -> None:
    """A kill between the end of a machine that failed and the claim of the next one."""

    async def scenario() -> None:
        fleet, clock = FakeFleet(), Clock()
        fleet.lingers = True  # EC2 takes its time
        async with rig(path, fleet=fleet, clock=clock) as r:
            await r.fill()
            step = "hand_over" if technique == "warm-running" else "login"
            fleet.hold[step] = asyncio.Event()
            lease = await r.take(technique, fallback=True)
            await r.until(lambda: fleet.count(step) == 1)
            first = r.lease(lease.id).machine_id
        del fleet.hold[step]
        async with rig(path, fleet=fleet, clock=clock) as r:
            row = r.store.machine(first)
            assert row is not None
            r.store.change_machine(dataclasses.replace(row, state=MachineState.ENDING))
            await r.leases.resume()
            lease = await r.ready(lease)
            assert (lease.state, lease.attempt) == (LeaseState.READY, 2)
            assert lease.machine_id != first
            assert r.store.machine(first).state is MachineState.ENDING  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_a_machine_that_was_claimed_meanwhile_is_not_connected_to_again(path: Path) -> None:
    """The pools' tick has read that it is ready, and is held up by another one whose connection broke."""

    async def scenario() -> None:
        async with rig(path, plans=[plan(target=2)]) as r:
            await r.fill(2)
            older, newer = r.machines(MachineState.READY)
            r.fleet.unwell = {older.id, newer.id}
            r.fleet.hold["adopt"] = asyncio.Event()
            tick = asyncio.create_task(r.pools.tick())
            await r.until(lambda: r.fleet.count("adopt") == 1)
            leases = [await r.ready(await r.take()) for _ in range(2)]
            assert {lease.machine_id for lease in leases} == {older.id, newer.id}
            r.fleet.unwell = {newer.id}
            r.fleet.hold["adopt"].set()
            await tick
            assert ("adopt", newer.id) not in r.fleet.calls
            # The connection to the other was made while it was handed over: it does not stay.
            assert ("let_go", older.id) in r.fleet.calls

    asyncio.run(scenario())


def test_a_lease_found_by_its_tags_whose_row_was_not_written_gets_it(path: Path) -> None:
    """A kill between the two rows of a lease that was found again: its machine's was written."""

    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            r.fleet.add(
                machine_id="mc-1", role="lease", lease_id="ls-1", owner=r.token.id,
                expires_at=r.clock.now() + TAG_MARGIN * 20,
            )  # fmt: skip
            fail_once(r, "adopt_lease", lambda _: True)
            with pytest.raises(StoreError):
                await r.tower.tick()
            assert r.store.lease("ls-1") is None
            await r.tower.tick()
            assert r.lease("ls-1").state is LeaseState.READY
            assert [machine.id for machine in r.machines()] == ["mc-1"]

    asyncio.run(scenario())


def test_a_lease_that_became_ready_after_ec2_was_asked_did_not_die(path: Path) -> None:
    """Its machine was asleep when EC2 was asked, and the answer is read after it was started."""

    async def scenario() -> None:
        async with rig(path, plans=[plan(PoolKind.WARM_STOPPED)]) as r:
            await r.fill()
            (machine,) = r.machines(MachineState.READY)
            r.fleet.set_state(machine.instance_id, "stopped", "Client.UserInitiatedShutdown")
            stale = await r.fleet.sightings()
            sightings, answer = r.fleet.sightings, asyncio.Event()

            async def late() -> list[Sighting]:
                await answer.wait()
                return stale

            r.fleet.sightings = late  # type: ignore[method-assign]
            look = asyncio.create_task(r.tower.tick())
            await asyncio.sleep(0)
            r.clock.advance(5)
            lease = await r.ready(await r.take())
            r.fleet.set_state(machine.instance_id, "running")
            answer.set()
            await look
            assert r.lease(lease.id).state is LeaseState.READY
            # A look from after that counts.
            r.fleet.sightings = sightings  # type: ignore[method-assign]
            r.fleet.set_state(machine.instance_id, "stopped", "Client.InstanceInitiatedShutdown")
            r.clock.advance(5)
            await r.tower.tick()
            assert r.lease(lease.id).state is not LeaseState.READY

    asyncio.run(scenario())


def test_a_machine_that_was_taken_for_gone_is_ended_when_it_is_seen_again(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            r.fleet.lingers = True
            lease = await r.ready(await r.take("custom-init", ttl_s=3600))
            hidden = r.fleet.machines[lease.instance_id]
            r.clock.advance(200)
            await r.engine.end(r.token, lease.id)
            r.fleet.vanish([lease.instance_id])
            await r.tower.tick()
            assert r.lease(lease.id).state is LeaseState.ENDED
            r.fleet.machines[lease.instance_id] = hidden
            r.fleet.lingers = False
            for _ in range(3):
                await r.tower.tick()
                r.clock.advance(130)
            assert r.fleet.machines[lease.instance_id].state == "terminated"

    asyncio.run(scenario())
