"""The store's contract under many clients at once, and under kills."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from support.service.claimers import CLAIMER, POINTS, Crowd, Death, Opener
from support.service.records import NOW, POOL, WIDE, cold, later, ready_machine, request, token, warm

from instant_env.service.records import Event, EventKind, Idempotency, Lease, LeaseState, MachineState
from instant_env.service.store.protocol import Admission, Conflict, Limits, PoolEmpty, QuotaExceeded
from instant_env.service.store.sql import SqlStore
from instant_env.service.store.sqlite import SqliteStore

T = TypeVar("T")
ME = token("me")


def open_sqlite(directory: Path) -> SqlStore:
    return SqliteStore.open(directory / "store.db")


#: Each engine: what opens the store of a directory, in any process.
ENGINES: dict[str, Opener] = {"sqlite": open_sqlite}


@pytest.fixture(params=ENGINES)
def opener(request: pytest.FixtureRequest) -> Opener:
    return ENGINES[request.param]


@pytest.fixture
def stores(opener: Opener, tmp_path: Path) -> Iterator[list[SqlStore]]:
    """One store, opened three times, as three processes have it."""
    made = [opener(tmp_path) for _ in range(3)]
    yield made
    for store in made:
        store.close()


def at_once(clients: int, call: Callable[[int], T]) -> list[T]:
    """Results of ``call(client)`` of clients that begin at the same moment."""
    barrier = threading.Barrier(clients)

    def wait_and_call(client: int) -> T:
        barrier.wait()
        return call(client)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(wait_and_call, range(clients)))


def admitted(
    store: SqlStore, limits: Limits = WIDE, idempotency: Idempotency | None = None, price: float = 0.0
) -> Admission | None:
    """None when a limit was met."""
    candidates = (warm(usd_per_hour=price), cold(usd_per_hour=price))
    try:
        return store.admit(ME, request(), candidates, limits=limits, idempotency=idempotency, now=NOW)
    except QuotaExceeded:
        return None


@pytest.mark.slow
def test_claims_and_kills(opener: Opener, tmp_path: Path) -> None:
    """3,000 claims by twelve clients in three processes, of which ten are killed: no machine is handed out
    twice, none is lost, and whatever a client was told is true."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311 - a failure can be repeated
    crowd = Crowd(opener, tmp_path, processes=3, clients=4, requests=250)
    store = opener(tmp_path)
    crowd.fill(store)
    deaths = [Death(point, chance.randrange(5, 60)) for point in POINTS]
    crowd.run(deaths, random_kills=5, chance=chance, timeout_s=300)
    assert crowd.kills == 10

    answers = crowd.answers()
    assert len(answers) == len({answer.key for answer in answers}) == crowd.total == 3000
    leases = {lease.id: lease for lease in store.live_leases()}
    machines = {machine.id: machine for machine in store.machines()}
    # No request became two leases, although many were repeated.
    assert set(leases) == {answer.lease_id for answer in answers}
    # No machine has two leases, and none was lost.
    assert Counter(lease.machine_id for lease in leases.values()) == Counter(list(machines))
    assert len(machines) == 3000
    for machine in machines.values():
        assert machine.state is MachineState.LEASED
        assert machine.lease_id is not None
        assert leases[machine.lease_id].machine_id == machine.id
    assert all(leases[answer.lease_id].machine_id == answer.machine_id for answer in answers)
    for lease in chance.sample(sorted(leases), 100):
        assert [event.kind for event in store.events(lease)] == [EventKind.REQUESTED, EventKind.CLAIMED]
    with pytest.raises(PoolEmpty):
        store.admit(CLAIMER, request(), (warm(),), limits=WIDE, idempotency=None, now=NOW)
    store.close()


def test_clients_that_race_for_the_last_machines(stores: list[SqlStore]) -> None:
    for _ in range(5):
        stores[0].add_machine(ready_machine())
    outcomes = at_once(24, lambda client: admitted(stores[client % 3]))
    claimed = [outcome.machine.id for outcome in outcomes if outcome and outcome.machine]
    assert len(claimed) == len(set(claimed)) == 5
    assert len([outcome for outcome in outcomes if outcome and outcome.machine is None]) == 19


@pytest.mark.parametrize(
    "limits",
    [
        replace(WIDE, leases=5),
        replace(WIDE, usd_per_hour=0.5),
        replace(WIDE, service_usd_per_hour=0.5),
    ],
    ids=["leases", "usd-per-hour", "service-usd-per-hour"],
)
def test_a_limit_holds_against_clients_that_race(stores: list[SqlStore], limits: Limits) -> None:
    outcomes = at_once(24, lambda client: admitted(stores[client % 3], limits, price=0.1))
    assert len([outcome for outcome in outcomes if outcome]) == 5
    assert len(stores[0].live_leases()) == 5


def test_the_ceiling_holds_against_fills_and_launches_that_race(stores: list[SqlStore]) -> None:
    limits = replace(WIDE, service_usd_per_hour=0.5)

    def spend(client: int) -> bool:
        store = stores[client % 3]
        if client % 2:
            return (
                store.admit(
                    ME, request(), (cold(usd_per_hour=0.1),), limits=limits, idempotency=None, now=NOW
                ).machine
                is None
            )
        store.add_machine(ready_machine(pool="other", usd_per_hour=0.1), service_usd_per_hour=0.5)
        return True

    def spent(client: int) -> bool:
        with contextlib.suppress(QuotaExceeded):
            return spend(client)
        return False

    assert sum(at_once(24, spent)) == 5
    assert stores[0].spending(ME.id).service_usd_per_hour == pytest.approx(0.5)


def test_clients_that_race_with_one_key_get_one_lease(stores: list[SqlStore]) -> None:
    for _ in range(24):
        stores[0].add_machine(ready_machine())
    key = Idempotency("one", "fingerprint")
    outcomes = at_once(24, lambda client: admitted(stores[client % 3], idempotency=key))
    made = [outcome for outcome in outcomes if outcome and not outcome.replayed]
    assert len(made) == 1
    assert {outcome.lease.id for outcome in outcomes if outcome} == {made[0].lease.id}
    assert len(stores[1].machines(pool=POOL, states={MachineState.READY})) == 23


def test_changes_that_race_lose_none_and_leave_no_gap(stores: list[SqlStore]) -> None:
    """Each writer repeats its change until it met the row's version, while a reader follows the events as a
    stream does."""
    first = admitted(stores[0])
    assert first
    lease_id = first.lease.id
    stream: list[Event] = []
    over = threading.Event()

    def follow() -> None:
        done = False
        while not done:
            done = over.is_set()
            stream.extend(stores[2].events(lease_id, after=stream[-1].sequence if stream else 0))

    def change(client: int) -> int:
        conflicts = 0
        store = stores[client % 2]
        for number in range(10):
            while True:
                lease = store.lease(lease_id)
                assert lease
                try:
                    store.change_lease(
                        replace(lease, attempt=lease.attempt + 1),
                        events=[(EventKind.EXTENDED, {"by": [client, number]})],
                        now=later(number),
                    )
                    break
                except Conflict:
                    conflicts += 1
        return conflicts

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        at_once(8, change)
    finally:
        over.set()
        reader.join()
    lease = stores[0].lease(lease_id)
    assert lease
    assert (lease.attempt, lease.version) == (81, 81)
    assert [event.sequence for event in stream] == list(range(1, 82))
    assert stream == stores[0].events(lease_id)
    assert len({tuple(event.data["by"]) for event in stream[1:]}) == 80


def test_a_retirement_and_a_claim_never_have_the_same_machine(stores: list[SqlStore]) -> None:
    """What was read as ready may be claimed before it is retired: then the retirement is refused."""
    for _ in range(30):
        stores[0].add_machine(ready_machine())

    def act(client: int) -> set[str]:
        store = stores[client % 3]
        taken = set()
        for _ in range(10):
            if client % 2:
                outcome = admitted(store)
                if outcome and outcome.machine:
                    taken.add(outcome.machine.id)
                continue
            for machine in store.machines(pool=POOL, states={MachineState.READY})[:1]:
                with contextlib.suppress(Conflict):
                    taken.add(store.change_machine(replace(machine, state=MachineState.ENDING)).id)
        return taken

    taken = [machine for outcome in at_once(6, act) for machine in outcome]
    assert len(taken) == len(set(taken))
    gone = {MachineState.LEASED, MachineState.ENDING}
    assert {machine.id for machine in stores[0].machines(states=gone)} == set(taken)


def test_pages_are_stable_while_others_write(stores: list[SqlStore]) -> None:
    """What was there before the first page and stays is seen once, whatever comes and goes beside it."""
    made = [_admit_at(stores[0], number) for number in range(40)]
    over = threading.Event()

    def disturb() -> None:
        number = 0
        while not over.is_set():
            lease = _admit_at(stores[1], number % 40 + 0.5)
            ended = replace(lease, state=LeaseState.ENDED, ended_at=NOW)
            stores[1].change_lease(ended, now=NOW)
            stores[1].forget(later(1))
            number += 7

    writer = threading.Thread(target=disturb)
    writer.start()
    try:
        for _ in range(5):
            seen: list[str] = []
            cursor = ""
            while True:
                page = stores[2].leases(limit=3, cursor=cursor)
                seen += [lease.id for lease in page.leases]
                cursor = page.cursor
                if not cursor:
                    break
            assert len(seen) == len(set(seen))
            assert [name for name in seen if name in {lease.id for lease in made}] == [
                lease.id for lease in reversed(made)
            ]
    finally:
        over.set()
        writer.join()


def _admit_at(store: SqlStore, seconds: float) -> Lease:
    return store.admit(ME, request(), (cold(),), limits=WIDE, idempotency=None, now=later(seconds)).lease
