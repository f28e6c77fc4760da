"""Leases from the request to the end, over a real store and a pretended fleet."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
from support.service.fleet import HOST_KEY, FakeFleet, broken, refused
from support.service.rig import KEY, SSH_PORT, Clock, plan, rig

from instant_env.cloud.instances import Market
from instant_env.service.operations import Ask, Code, Refusal
from instant_env.service.records import (
    EndReason,
    EventKind,
    Idempotency,
    LeaseState,
    MachineState,
    Scope,
    Source,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def test_a_machine_of_the_pool_is_handed_over(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            calls = len(r.fleet.calls)
            lease = await r.ready(await r.take())
            assert (lease.state, lease.source, lease.technique) == (
                LeaseState.READY, Source.POOL, "warm-running",
            )  # fmt: skip
            assert lease.port == SSH_PORT
            assert lease.host_keys == (HOST_KEY,)
            assert lease.timing.t4_ms == 60.0
            assert lease.expires_at == r.clock.now() + timedelta(hours=1)
            assert "AAAA" not in r.logged.getvalue()  # keys are nobody's business in a log
            # Between the request and the answer nothing but the hand-over; the promise comes after it.
            assert [operation for operation, _ in r.fleet.calls[calls:]] == ["hand_over", "promise"]
            kinds = [event.kind for event in r.store.events(lease.id)]
            assert kinds == [EventKind.REQUESTED, EventKind.CLAIMED, EventKind.READY]
            assert r.fleet.promises == [
                (lease.machine_id, lease.id, lease.expires_at + timedelta(seconds=30))
            ]

    asyncio.run(scenario())


def test_a_claim_refills_the_pool(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=2)]) as r:
            await r.fill(2)
            await r.ready(await r.take())
            await r.fill(2)
            states = [machine.state for machine in r.machines()]
            assert sorted(states) == [MachineState.LEASED, MachineState.READY, MachineState.READY]

    asyncio.run(scenario())


def test_an_empty_pool_falls_back_to_a_cold_launch_and_says_so(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            lease = await r.ready(await r.take())
            assert (lease.source, lease.technique) == (Source.COLD, "custom-init")
            assert lease.selection is not None
            skipped = {one["technique"]: one["skipped"] for one in lease.selection.alternatives}
            assert skipped["warm-running"]
            (view,) = await r.pools.views()
            assert (view.hits, view.misses, view.hit_ratio) == (0, 1, 0.0)

    asyncio.run(scenario())


def test_a_technique_by_name_is_that_one_or_an_error(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            with pytest.raises(Refusal) as refusal:
                await r.take("warm-running")
            assert refusal.value.code is Code.POOL_EMPTY
            assert refusal.value.retryable
            lease = await r.ready(await r.take("warm-running", fallback=True))
            assert lease.technique == "custom-init"
            with pytest.raises(Refusal) as refusal:
                await r.take("warm-hibernated")
            assert refusal.value.code is Code.UNSUPPORTED_TECHNIQUE

    asyncio.run(scenario())


def test_spot_is_never_served_from_a_pool(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(market=Market.SPOT))
            assert lease.source is Source.COLD
            assert r.store.machine(lease.machine_id).market is Market.SPOT  # type: ignore[union-attr]

    asyncio.run(scenario())


@pytest.mark.parametrize("failures", [1, 2])
def test_another_machine_is_tried_when_one_comes_to_nothing(path: Path, failures: int) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            r.fleet.fail = {"hand_over": [broken()], "login": [broken() for _ in range(failures - 1)]}
            lease = await r.ready(await r.take())
            assert lease.state is LeaseState.READY
            assert lease.attempt == failures + 1
            # What failed is ended, whatever was on it, and is no pool's again.
            await r.tower.tick()
            ended = [m for m in r.machines(*MachineState) if m.state is MachineState.ENDED]
            assert len(ended) == failures
            assert len({call for call in r.fleet.calls if call[0] == "launch"}) == failures

    asyncio.run(scenario())


def test_a_lease_whose_machines_all_fail_says_why_and_leaves_nothing(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            r.fleet.fail = {"login": [broken("the disk is on fire") for _ in range(9)]}
            lease = await r.ready(await r.take())
            assert (lease.state, lease.reason) == (LeaseState.FAILED, EndReason.FAILED_TO_START)
            assert "the disk is on fire" in lease.detail
            assert lease.ended_at is not None
            await r.tower.tick()
            assert r.machines() == []
            assert all(sighting.is_gone for sighting in r.fleet.machines.values())
            # Each try was another way: what failed cold is not asked for again.
            assert r.fleet.count("launch") == 3

    asyncio.run(scenario())


def test_a_machine_that_is_somebodys_by_its_own_mark_is_neither_given_away_nor_ended(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            r.fleet.fail = {"hand_over": [broken("handed out before", taken=True)]}
            lease = await r.ready(await r.take())
            assert lease.source is Source.COLD
            assert r.fleet.count("terminate") == 0

    asyncio.run(scenario())


def test_a_lease_ends_at_its_time_and_not_before(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=600))
            r.clock.advance(599.9)
            await r.leases.tick()
            assert r.lease(lease.id).state is LeaseState.READY
            r.clock.advance(0.2)
            await r.leases.tick()
            assert r.lease(lease.id).state is LeaseState.ENDING
            assert r.fleet.count("terminate") == 1
            await r.tower.tick()
            ended = r.lease(lease.id)
            assert (ended.state, ended.reason) == (LeaseState.ENDED, EndReason.TTL)
            kinds = [event.kind for event in r.store.events(lease.id)]
            assert kinds[-2:] == [EventKind.ENDING, EventKind.ENDED]

    asyncio.run(scenario())


def test_the_end_is_warned_of_once(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=3600))
            for left_s in (601, 599, 500, 61, 59, 30):
                r.clock.s = 3600 - left_s
                await r.leases.tick()
            warnings = [e.data for e in r.store.events(lease.id) if e.kind is EventKind.EXPIRING]
            assert warnings == [{"seconds": 599}, {"seconds": 59}]

    asyncio.run(scenario())


def test_a_machine_that_cannot_be_terminated_is_asked_for_again_until_it_is_gone(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take())
            r.fleet.fail = {"terminate": [refused()]}
            r.fleet.lingers = True
            await r.engine.end(r.token, lease.id)
            await r.engine.end(r.token, lease.id)
            assert r.fleet.count("terminate") == 1
            for _ in range(3):
                r.clock.advance(11)
                await r.tower.tick()
            assert r.fleet.count("terminate") == 4
            assert r.lease(lease.id).state is LeaseState.ENDING  # a failed removal is never assumed
            r.fleet.vanish([lease.instance_id])
            r.clock.advance(121)
            await r.tower.tick()
            assert r.lease(lease.id).reason is EndReason.DELETED
            assert r.lease(lease.id).state is LeaseState.ENDED

    asyncio.run(scenario())


def test_a_lease_ended_while_it_is_on_its_way_leaves_no_machine(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            r.fleet.hold["launched"] = asyncio.Event()  # EC2 has the machine, and has not answered yet
            lease = await r.take()
            await r.until(lambda: r.fleet.machines)
            await r.engine.end(r.token, lease.id)
            await r.until(lambda: lease.id not in r.leases._works)
            assert r.fleet.count("terminate") == 0  # nobody knows its id yet
            await r.tower.tick()  # its tags do
            await r.tower.tick()
            assert r.lease(lease.id).state is LeaseState.ENDED
            assert all(sighting.is_gone for sighting in r.fleet.machines.values())

    asyncio.run(scenario())


def test_an_extension_is_in_the_tags_before_it_is_promised(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=600))
            r.fleet.fail = {"promise": [refused("EC2 is ill")]}
            with pytest.raises(Refusal, match="EC2 is ill") as refusal:
                await r.engine.set_ttl(r.token, lease.id, 1200)
            assert refusal.value.code is Code.UNAVAILABLE
            assert r.lease(lease.id).expires_at == lease.expires_at
            longer = await r.engine.set_ttl(r.token, lease.id, 1200)
            assert longer.expires_at == r.clock.now() + timedelta(seconds=1200)
            assert r.fleet.promises[-1][2] == longer.expires_at + timedelta(seconds=30)

    asyncio.run(scenario())


def test_an_earlier_end_has_to_be_asked_for_and_is_in_the_row_first(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=3600))
            with pytest.raises(Refusal, match="earlier than promised"):
                await r.engine.set_ttl(r.token, lease.id, 60)
            shorter = await r.engine.set_ttl(r.token, lease.id, 60, shorten=True)
            assert shorter.expires_at == r.clock.now() + timedelta(seconds=60)
            assert r.fleet.promises[-1][2] == shorter.expires_at + timedelta(seconds=30)

    asyncio.run(scenario())


def test_limits_of_the_time_are_errors_and_never_cut_silently(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, max_ttl_s=4000, max_lifetime_s=5000) as r:
            await r.fill()
            for ttl_s, limit in ((59, 60), (4001, 4000)):
                with pytest.raises(Refusal) as refusal:
                    await r.take(ttl_s=ttl_s)
                assert (refusal.value.code, refusal.value.limit) == (Code.TTL_OUT_OF_RANGE, limit)
            lease = await r.ready(await r.take(ttl_s=3600))
            r.clock.advance(3000)
            with pytest.raises(Refusal, match="lives at most 5000 s"):
                await r.engine.set_ttl(r.token, lease.id, 2001)
            await r.engine.set_ttl(r.token, lease.id, 2000)

    asyncio.run(scenario())


def test_a_lease_about_to_end_is_not_extended(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=60))
            r.clock.advance(51)
            with pytest.raises(Refusal) as refusal:
                await r.engine.set_ttl(r.token, lease.id, 600)
            assert refusal.value.code is Code.LEASE_ENDED

    asyncio.run(scenario())


def test_a_promise_that_ec2_does_not_take_is_written_again(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            r.fleet.fail = {"promise": [refused(), refused()]}
            lease = await r.ready(await r.take())
            assert lease.state is LeaseState.READY
            assert r.fleet.promises[-1][1] == lease.id

    asyncio.run(scenario())


def test_a_machine_that_dies_takes_its_lease_along_with_the_reason(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=3)]) as r:
            await r.fill(3)
            died = await r.ready(await r.take())
            reclaimed = await r.ready(await r.take())
            stopped = await r.ready(await r.take())
            r.fleet.set_state(died.instance_id, "terminated", "Client.InstanceInitiatedShutdown")
            r.fleet.set_state(reclaimed.instance_id, "shutting-down", "Server.SpotInstanceTermination")
            r.fleet.set_state(stopped.instance_id, "terminated")
            shut_down = r.fleet.machines[stopped.instance_id]
            r.fleet.machines[stopped.instance_id] = dataclasses.replace(shut_down, by_operator=True)
            await r.tower.tick()
            await r.tower.tick()
            assert r.lease(stopped.id).reason is EndReason.OPERATOR
            assert r.lease(died.id).reason is EndReason.DIED
            assert "Client.InstanceInitiatedShutdown" in r.lease(died.id).detail
            assert r.lease(reclaimed.id).reason is EndReason.SPOT_INTERRUPTED
            assert r.lease(reclaimed.id).state is LeaseState.ENDED

    asyncio.run(scenario())


def test_a_machine_that_obeyed_its_own_timer_did_not_die(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            lease = await r.ready(await r.take(ttl_s=60))
            r.clock.advance(90)
            r.fleet.set_state(lease.instance_id, "terminated", "Client.InstanceInitiatedShutdown")
            await r.tower.tick()
            assert r.lease(lease.id).reason is EndReason.TTL

    asyncio.run(scenario())


def test_a_repeated_request_is_the_same_lease(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            first = await r.take(key="one")
            again = await r.take(key="one")
            assert again.id == first.id
            assert r.fleet.count("hand_over") <= 1
            with pytest.raises(Refusal) as refusal:
                await r.engine.take(r.token, Ask(KEY, ttl_s=120), Idempotency("one", "another print"))
            assert refusal.value.code is Code.IDEMPOTENCY_MISMATCH

    asyncio.run(scenario())


def test_quotas_count_what_is_pending(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[], max_leases=2) as r:
            r.fleet.hold["login"] = asyncio.Event()
            await r.take()
            await r.take()
            with pytest.raises(Refusal) as refusal:
                await r.take()
            assert (refusal.value.code, refusal.value.limit) == (Code.QUOTA, 2)
            other = r.add_token(Scope.LEASE)
            await r.take(token=other)

    asyncio.run(scenario())


def test_somebody_elses_lease_is_not_found(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path) as r:
            await r.fill()
            mine, other = r.add_token(Scope.LEASE), r.add_token(Scope.LEASE)
            lease = await r.take(token=mine)
            for operation in (
                r.engine.lease(other, lease.id),
                r.engine.end(other, lease.id),
                r.engine.set_ttl(other, lease.id, 600),
                r.engine.wait(other, lease.id, 0),
            ):
                with pytest.raises(Refusal) as refusal:
                    await operation
                assert refusal.value.code is Code.NOT_FOUND
            assert (await r.engine.leases(other)).leases == ()
            with pytest.raises(Refusal) as refusal:
                await r.engine.leases(other, everybodys=True)
            assert refusal.value.code is Code.FORBIDDEN
            await r.engine.end(r.token, lease.id)  # an admin's word
            assert r.lease(lease.id).reason is EndReason.OPERATOR

    asyncio.run(scenario())


def test_waiting_ends_as_soon_as_the_state_is_no_longer_on_its_way(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            r.fleet.hold["login"] = asyncio.Event()
            lease = await r.take()
            assert (await r.engine.wait(r.token, lease.id, 0)).state is LeaseState.PROVISIONING
            waiting = asyncio.create_task(r.engine.wait(r.token, lease.id, 3600))
            await asyncio.sleep(0)
            r.fleet.hold["login"].set()
            assert (await asyncio.wait_for(waiting, 20)).state is LeaseState.READY

    asyncio.run(scenario())


def test_events_are_replayed_and_then_followed_to_the_end(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[]) as r:
            lease = await r.ready(await r.take())
            stream = r.engine.events(r.token, lease.id, after=1)
            seen = [(await anext(stream)) for _ in range(2)]
            assert [event.kind for event in seen if event] == [EventKind.LAUNCHED, EventKind.READY]
            await r.engine.end(r.token, lease.id)
            await r.tower.tick()
            rest = [event.kind async for event in stream if event]
            assert rest == [EventKind.ENDING, EventKind.ENDED]

    asyncio.run(scenario())


class TestAfterARestart:
    def test_a_hand_over_that_was_cut_off_is_taken_up(self, path: Path) -> None:
        fleet, clock = FakeFleet(), Clock()

        async def scenario() -> None:
            async with rig(path, fleet=fleet, clock=clock) as r:
                await r.fill()
                fleet.hold["hand_over"] = asyncio.Event()
                lease = await r.take()
                await r.until(lambda: fleet.count("hand_over"))
            fleet.hold.clear()
            async with rig(path, fleet=fleet, clock=clock) as r:
                await r.leases.resume()
                assert (await r.ready(lease)).state is LeaseState.READY
                assert len(fleet.machines) == 1

        asyncio.run(scenario())

    @pytest.mark.parametrize("step", ["launch", "launched", "login"])
    def test_a_launch_that_was_cut_off_is_repeated_as_the_same(self, path: Path, step: str) -> None:
        fleet, clock = FakeFleet(), Clock()

        async def scenario() -> None:
            async with rig(path, fleet=fleet, clock=clock, plans=[]) as r:
                fleet.hold[step] = asyncio.Event()
                lease = await r.take()
                await r.until(lambda: fleet.count(step))
            fleet.hold.clear()
            async with rig(path, fleet=fleet, clock=clock, plans=[]) as r:
                await r.leases.resume()
                assert (await r.ready(lease)).state is LeaseState.READY
                tokens = {about for operation, about in fleet.calls if operation == "launch"}
                assert len(tokens) == 1, "another client token would be another machine"
                assert len(r.machines()) == 1

        asyncio.run(scenario())

    def test_a_promise_that_was_not_written_is(self, path: Path) -> None:
        fleet, clock = FakeFleet(), Clock()

        async def scenario() -> None:
            async with rig(path, fleet=fleet, clock=clock) as r:
                await r.fill()
                fleet.hold["promise"] = asyncio.Event()
                lease = await r.take()
                await r.until(lambda: r.lease(lease.id).state is LeaseState.READY)
            fleet.hold.clear()
            assert fleet.promises == []
            async with rig(path, fleet=fleet, clock=clock) as r:
                await r.leases.resume()
                await r.until(lambda: fleet.promises)
                assert fleet.promises[0][1] == lease.id

        asyncio.run(scenario())

    def test_what_was_ending_ends(self, path: Path) -> None:
        fleet, clock = FakeFleet(), Clock()

        async def scenario() -> None:
            async with rig(path, fleet=fleet, clock=clock) as r:
                await r.fill()
                lease = await r.ready(await r.take())
                fleet.lingers = True
                await r.engine.end(r.token, lease.id)
            fleet.lingers = False
            async with rig(path, fleet=fleet, clock=clock) as r:
                await r.tower.tick()
                await r.tower.tick()
                assert r.lease(lease.id).state is LeaseState.ENDED

        asyncio.run(scenario())


class TestTheStoreAndTheTagsDiffer:
    def test_a_machine_that_no_row_knows_ends_after_two_sightings(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                stray = r.fleet.add(machine_id="mc-unknown")
                await r.tower.tick()
                r.clock.advance(119)
                await r.tower.tick()
                assert not r.fleet.machines[stray.instance_id].is_gone
                r.clock.advance(2)
                await r.tower.tick()
                assert r.fleet.machines[stray.instance_id].is_gone

        asyncio.run(scenario())

    def test_a_lease_that_only_its_tags_know_is_found_again_and_ends_at_its_time(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                ends_at = r.clock.now() + timedelta(seconds=630)
                stray = r.fleet.add(
                    machine_id="mc-lost", role="lease", lease_id="ls-lost", expires_at=ends_at,
                    owner=r.token.id,
                )  # fmt: skip
                await r.tower.tick()
                r.clock.advance(500)
                await r.tower.tick()
                lease = await r.engine.lease(r.token, "ls-lost")
                assert (lease.state, lease.address) == (LeaseState.READY, stray.address)
                assert lease.port == SSH_PORT
                assert not r.fleet.machines[stray.instance_id].is_gone
                r.clock.advance(101)
                await r.leases.tick()
                await r.tower.tick()
                assert r.fleet.machines[stray.instance_id].is_gone

        asyncio.run(scenario())

    def test_many_machines_without_rows_are_left_alone_until_they_expire(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                ends_at = r.clock.now() + timedelta(seconds=3600)
                for number in range(7):
                    r.fleet.add(machine_id=f"mc-{number}", expires_at=ends_at)
                await r.tower.tick()
                r.clock.advance(300)
                await r.tower.tick()
                assert r.fleet.count("terminate") == 0
                assert "restored" in (await r.engine.health()).checks["sweep"]
                r.clock.advance(3500)
                await r.tower.tick()
                assert r.fleet.count("terminate") == 7

        asyncio.run(scenario())

    def test_a_machine_that_ec2_does_not_list_yet_is_not_lost(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                await r.fill()
                lease = await r.ready(await r.take())
                hidden = r.fleet.machines.pop(lease.instance_id)
                r.clock.advance(60)
                await r.tower.tick()
                assert r.lease(lease.id).state is LeaseState.READY
                r.fleet.machines[lease.instance_id] = hidden
                r.clock.advance(600)
                await r.tower.tick()
                assert r.lease(lease.id).state is LeaseState.READY

        asyncio.run(scenario())

    def test_a_machine_that_one_answer_lacks_is_not_lost_and_one_that_stays_away_is(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                await r.fill()
                lease = await r.ready(await r.take())
                r.clock.advance(600)
                hidden = r.fleet.machines.pop(lease.instance_id)
                await r.tower.tick()
                r.fleet.machines[lease.instance_id] = hidden
                r.clock.advance(30)
                await r.tower.tick()
                assert r.lease(lease.id).state is LeaseState.READY
                r.fleet.vanish([lease.instance_id])
                for _ in range(2):
                    await r.tower.tick()
                    r.clock.advance(11)
                await r.tower.tick()
                assert r.lease(lease.id).reason is EndReason.DIED

        asyncio.run(scenario())

    def test_a_clock_that_is_wrong_is_said_and_nothing_is_handed_out_by_it(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                for skew_s, words in ((-3600, "3600 s behind"), (75, "75 s ahead of")):
                    r.fleet.clock_skew_s = skew_s
                    await r.tower.tick()
                    health = await r.engine.health()
                    assert not health.ready
                    assert words in health.checks["clock"]
                r.fleet.clock_skew_s = 2
                await r.tower.tick()
                assert (await r.engine.health()).ready

        asyncio.run(scenario())

    def test_nothing_is_ended_while_ec2_does_not_answer(self, path: Path) -> None:
        async def scenario() -> None:
            async with rig(path) as r:
                await r.fill()
                lease = await r.ready(await r.take())
                r.fleet.fail = {"sightings": [refused("no answer")]}
                r.clock.advance(300)
                await r.tower.tick()
                assert r.lease(lease.id).state is LeaseState.READY
                health = await r.engine.health()
                assert (health.ready, health.checks["cloud"]) == (False, "no answer")

        asyncio.run(scenario())


def test_no_two_leases_have_the_same_machine(path: Path) -> None:
    async def scenario() -> None:
        async with rig(path, plans=[plan(target=3)]) as r:
            await r.fill(3)
            r.fleet.fail = {"hand_over": [broken(), broken()]}
            leases = [await r.take() for _ in range(3)]
            done = [await r.ready(lease) for lease in leases]
            assert len({lease.instance_id for lease in done}) == 3
            assert all(lease.state is LeaseState.READY for lease in done)

    asyncio.run(scenario())
