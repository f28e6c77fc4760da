"""The contract of the service's store: what protocol.py promises, on each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from support.service.records import (
    IMAGE,
    NOW,
    POOL,
    WIDE,
    cold,
    later,
    ready_machine,
    request,
    token,
    warm,
)

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.service.records import (
    Candidate,
    EndReason,
    EventKind,
    Idempotency,
    LaunchSample,
    Lease,
    LeaseState,
    MachineState,
    PoolControl,
    Scope,
    Source,
    Timing,
    Token,
    new_id,
)
from instant_env.service.store.protocol import (
    Admission,
    Conflict,
    IdempotencyMismatch,
    Limits,
    PoolEmpty,
    QuotaExceeded,
    Store,
    StoreError,
)
from instant_env.service.store.sqlite import SqliteStore

ME = token("me")


def sqlite_in(directory: Path) -> Callable[[], Store]:
    return lambda: SqliteStore.open(directory / "service" / "store.db")


#: Each engine: how to get, in a directory of the test's own, what opens the same store any number of times.
ENGINES = {"sqlite": sqlite_in}


@pytest.fixture(params=ENGINES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the test's store."""
    make: Callable[[Path], Callable[[], Store]] = ENGINES[request.param]
    return make(tmp_path)


@pytest.fixture
def store(opened: Callable[[], Store]) -> Iterator[Store]:
    made = opened()
    yield made
    made.close()


def admit(
    store: Store,
    *candidates: Candidate,
    who: Token = ME,
    limits: Limits = WIDE,
    idempotency: Idempotency | None = None,
    now: datetime = NOW,
) -> Admission:
    return store.admit(
        who, request(), candidates or (cold(),), limits=limits, idempotency=idempotency, now=now
    )


def end(store: Store, lease: Lease, now: datetime = NOW) -> Lease:
    return store.change_lease(
        replace(lease, state=LeaseState.ENDED, ended_at=now, reason=EndReason.DELETED),
        events=[(EventKind.ENDED, {})],
        now=now,
    )


# tokens


def test_a_token_comes_back_as_it_went_in(store: Store) -> None:
    full = token(
        "full",
        scopes=frozenset({Scope.ADMIN, Scope.READ}),
        expires_at=later(60),
        max_leases=3,
        max_usd_per_hour=0.25,
        instance_types=("m7i.large", "t3.micro"),
    )
    for one in (ME, full):
        store.add_token(one)
    assert store.tokens() == sorted((ME, full), key=lambda one: one.id)
    assert store.token_by_hash(full.sha256) == full
    assert store.token_by_hash("0" * 64) is None


def test_a_token_without_types_is_another_thing_than_one_of_all_types(store: Store) -> None:
    store.add_token(token("none", instance_types=()))
    store.add_token(token("all", instance_types=None))
    assert {one.name: one.instance_types for one in store.tokens()} == {"none": (), "all": None}


def test_two_tokens_have_two_ids_and_two_secrets(store: Store) -> None:
    store.add_token(ME)
    for other in (replace(ME, sha256="1" * 64), replace(ME, id="tk-other")):
        with pytest.raises(Conflict):
            store.add_token(other)
    assert store.tokens() == [ME]


def test_the_first_revocation_is_the_one_that_counts(store: Store) -> None:
    store.add_token(ME)
    assert store.revoke_token(ME.id, later(1)) == replace(ME, revoked_at=later(1))
    assert store.revoke_token(ME.id, later(2)) == replace(ME, revoked_at=later(1))
    assert store.revoke_token("tk-nobody", NOW) is None


# admission


def test_a_claim_takes_the_oldest_machine_of_the_pool(store: Store) -> None:
    older, newer = ready_machine(created_at=later(-20)), ready_machine(created_at=later(-10))
    for machine in (newer, older):
        store.add_machine(machine)
    outcome = admit(store, warm(), cold())
    lease = outcome.lease
    assert outcome.machine == replace(older, state=MachineState.LEASED, lease_id=lease.id, version=2)
    assert store.machine(older.id) == outcome.machine
    assert store.machine(newer.id) == newer
    assert store.lease(lease.id) == lease
    assert not outcome.replayed
    assert (lease.owner, lease.state, lease.attempt, lease.version) == (
        ME.id,
        LeaseState.PROVISIONING,
        1,
        1,
    )
    assert (lease.technique, lease.source, lease.market) == (
        "warm-running",
        Source.POOL,
        Market.ON_DEMAND,
    )
    assert (lease.machine_id, lease.instance_id, lease.usd_per_hour) == (older.id, older.instance_id, 0.1)
    assert (lease.created_at, lease.request) == (NOW, request())
    assert [(event.sequence, event.kind, event.at) for event in store.events(lease.id)] == [
        (1, EventKind.REQUESTED, NOW),
        (2, EventKind.CLAIMED, NOW),
    ]


def test_the_selection_says_what_was_passed_over_and_what_came_after(store: Store) -> None:
    lease = admit(store, warm(), cold(), cold(technique="cold", n=0)).lease
    selection = lease.selection
    assert selection is not None
    assert (selection.chosen, selection.predicted_ms, selection.basis, selection.n) == (
        "custom-init",
        5200.0,
        "benchmark",
        30,
    )
    assert [(dict(one)["technique"], dict(one)["skipped"]) for one in selection.alternatives] == [
        ("warm-running", "pool-empty"),
        ("cold", ""),
    ]
    assert (lease.source, lease.machine_id) == (Source.COLD, "")
    assert store.lease(lease.id) == lease


@pytest.mark.parametrize(
    "unfit",
    [
        {"state": MachineState.FILLING},
        {"state": MachineState.ENDING},
        {"image_id": "ami-old"},
        {"pool": "another"},
        {"arch": Arch.ARM64},
        {"instance_type": "m7i.xlarge"},
        {"created_at": later(-3601)},
        {"created_at": later(-3600)},
        {"lease_id": "ls-somebodys"},
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_claimed(store: Store, unfit: dict[str, object]) -> None:
    machine = ready_machine(**unfit)
    store.add_machine(machine)
    with pytest.raises(PoolEmpty, match=POOL):
        admit(store, warm(born_after=later(-3600)))
    assert store.machine(machine.id) == machine
    assert store.leases().leases == ()


def test_a_refused_admission_leaves_nothing(store: Store) -> None:
    machine = ready_machine()
    store.add_machine(machine)
    key = Idempotency("k", "f")
    with pytest.raises(QuotaExceeded):
        admit(store, warm(), limits=replace(WIDE, leases=0), idempotency=key)
    with pytest.raises(PoolEmpty):
        admit(store, warm(image_id="ami-other"), idempotency=key)
    assert store.machine(machine.id) == machine
    assert store.leases().leases == ()
    assert store.idempotent_lease(ME, key, now=NOW) is None


def test_the_number_of_leases_is_limited_by_those_that_live(store: Store) -> None:
    limits = replace(WIDE, leases=2)
    first = admit(store, limits=limits).lease
    admit(store, limits=limits)
    with pytest.raises(QuotaExceeded) as refusal:
        admit(store, limits=limits)
    assert (refusal.value.limit, refusal.value.value, refusal.value.used) == ("leases", 2, 2)
    admit(store, who=token("other"), limits=limits)
    ending = store.change_lease(replace(first, state=LeaseState.ENDING), now=NOW)
    with pytest.raises(QuotaExceeded):
        admit(store, limits=limits)
    end(store, ending)
    admit(store, limits=limits)


def test_the_price_of_a_tokens_leases_is_limited(store: Store) -> None:
    limits = replace(WIDE, usd_per_hour=0.3)
    for _ in range(3):  # the sum of three times 0.1 is a little above 0.3
        admit(store, cold(usd_per_hour=0.1), limits=limits)
    with pytest.raises(QuotaExceeded) as refusal:
        admit(store, cold(usd_per_hour=0.1), limits=limits)
    assert (refusal.value.limit, refusal.value.value) == ("usd-per-hour", 0.3)
    assert refusal.value.used == pytest.approx(0.3)
    admit(store, cold(usd_per_hour=0.1), who=token("other"), limits=limits)


def test_a_candidate_that_is_too_dear_is_passed_over(store: Store) -> None:
    limits = replace(WIDE, usd_per_hour=0.3)
    lease = admit(
        store, cold(usd_per_hour=0.4), cold(technique="cold", usd_per_hour=0.2), limits=limits
    ).lease
    assert lease.selection is not None
    assert lease.technique == "cold"
    assert dict(lease.selection.alternatives[0])["skipped"] == "quota"


def test_the_price_of_the_service_counts_what_lives_once(store: Store) -> None:
    machine = ready_machine(usd_per_hour=0.1)
    store.add_machine(machine)
    limits = replace(WIDE, service_usd_per_hour=0.35)
    # A claim adds nothing: the machine cost as much before.
    pooled = admit(store, warm(usd_per_hour=0.1), limits=limits)
    assert store.spending(ME.id).service_usd_per_hour == pytest.approx(0.1)
    launched = admit(store, cold(usd_per_hour=0.2), limits=limits).lease
    assert store.spending(ME.id).service_usd_per_hour == pytest.approx(0.3)
    machine = ready_machine(state=MachineState.LEASED, pool=None, lease_id=launched.id, usd_per_hour=0.2)
    store.add_machine(machine)
    store.change_lease(replace(launched, machine_id=machine.id), now=NOW)
    assert store.spending(ME.id).service_usd_per_hour == pytest.approx(0.3)
    with pytest.raises(QuotaExceeded) as refusal:
        admit(store, cold(usd_per_hour=0.1), who=token("other"), limits=limits)
    assert (refusal.value.limit, refusal.value.value) == ("service-usd-per-hour", 0.35)
    assert pooled.machine is not None
    store.change_machine(replace(pooled.machine, state=MachineState.ENDED))
    spending = store.spending(ME.id)
    assert spending.leases == 2
    assert spending.usd_per_hour == pytest.approx(0.3)
    assert spending.service_usd_per_hour == pytest.approx(0.2)
    admit(store, cold(usd_per_hour=0.1), who=token("other"), limits=limits)


def test_a_machine_that_the_ceiling_does_not_admit_gets_no_row(store: Store) -> None:
    for _ in range(3):
        store.add_machine(ready_machine(usd_per_hour=0.1), service_usd_per_hour=0.35)
    with pytest.raises(QuotaExceeded) as refusal:
        store.add_machine(ready_machine(usd_per_hour=0.1), service_usd_per_hour=0.35)
    assert (refusal.value.limit, refusal.value.value) == ("service-usd-per-hour", 0.35)
    store.add_machine(ready_machine(usd_per_hour=0.0), service_usd_per_hour=0.35)
    store.add_machine(ready_machine(usd_per_hour=0.05), service_usd_per_hour=0.35)
    store.add_machine(ready_machine(usd_per_hour=0.1))
    assert len(store.machines()) == 6


# idempotency


def test_the_same_key_and_request_is_the_same_lease(store: Store) -> None:
    store.add_machine(ready_machine())
    key = Idempotency("k-1", "fingerprint")
    first = admit(store, warm(), idempotency=key)
    changed = store.change_lease(replace(first.lease, address="192.0.2.7"), now=NOW)
    again = admit(store, warm(), idempotency=key, limits=replace(WIDE, leases=0), now=later(60))
    assert again == Admission(changed, None, replayed=True)
    assert store.idempotent_lease(ME, key, now=later(60)) == changed
    assert len(store.leases().leases) == 1


def test_the_same_key_with_another_request_is_refused(store: Store) -> None:
    admit(store, idempotency=Idempotency("k-1", "one"))
    other = Idempotency("k-1", "two")
    with pytest.raises(IdempotencyMismatch, match="k-1"):
        admit(store, idempotency=other)
    with pytest.raises(IdempotencyMismatch):
        store.idempotent_lease(ME, other, now=NOW)
    assert len(store.leases().leases) == 1


def test_keys_are_a_tokens_own_and_live_a_day(store: Store) -> None:
    key = Idempotency("k-1", "one")
    mine = admit(store, idempotency=key).lease
    theirs = admit(store, who=token("other"), idempotency=key).lease
    assert mine.id != theirs.id
    day = timedelta(hours=24)
    assert store.idempotent_lease(ME, key, now=NOW + day - timedelta(seconds=1)) == mine
    assert store.idempotent_lease(ME, key, now=NOW + day) is None
    renewed = Idempotency("k-1", "two")
    next_day = admit(store, idempotency=renewed, now=NOW + day).lease
    assert next_day.id != mine.id
    assert store.idempotent_lease(ME, renewed, now=NOW + day) == next_day


# another machine


def test_another_machine_for_a_lease_whose_first_came_to_nothing(store: Store) -> None:
    one, two = ready_machine(created_at=later(-2)), ready_machine(created_at=later(-1))
    for machine in (one, two):
        store.add_machine(machine)
    lease = admit(store, warm()).lease
    touched = store.change_lease(
        replace(
            lease, address="192.0.2.7", username="debian", host_keys=("a b",), host_keys_known_by="console"
        ),
        now=later(1),
    )
    second = store.claim(lease.id, (warm(), cold()), now=later(2))
    assert second.machine is not None
    assert (second.machine.id, second.machine.lease_id) == (two.id, lease.id)
    assert (second.lease.attempt, second.lease.machine_id, second.lease.version) == (2, two.id, 3)
    assert (second.lease.address, second.lease.username, second.lease.host_keys) == ("", "", ())
    with pytest.raises(Conflict, match="version"):
        store.change_lease(touched, now=later(3))
    with pytest.raises(PoolEmpty):
        store.claim(lease.id, (warm(),), now=later(3))
    third = store.claim(lease.id, (warm(), cold(usd_per_hour=0.3)), now=later(4))
    assert third.machine is None
    assert (third.lease.attempt, third.lease.source, third.lease.machine_id, third.lease.instance_id) == (
        3,
        Source.COLD,
        "",
        "",
    )
    assert third.lease.usd_per_hour == 0.3
    assert store.lease(lease.id) == third.lease
    kinds = [event.kind for event in store.events(lease.id)]
    assert kinds == [EventKind.REQUESTED, EventKind.CLAIMED, EventKind.CLAIMED]


@pytest.mark.parametrize("state", sorted(set(LeaseState) - {LeaseState.PROVISIONING}))
def test_only_a_provisioning_lease_gets_another_machine(store: Store, state: LeaseState) -> None:
    machine = ready_machine()
    store.add_machine(machine)
    lease = store.change_lease(replace(admit(store).lease, state=state), now=NOW)
    with pytest.raises(Conflict, match=f"{lease.id} is {state}"):
        store.claim(lease.id, (warm(), cold()), now=NOW)
    assert store.machine(machine.id) == machine


def test_no_machine_for_a_lease_that_is_not_there(store: Store) -> None:
    with pytest.raises(Conflict, match="ls-none is not there"):
        store.claim("ls-none", (cold(),), now=NOW)


# leases


def test_a_lease_comes_back_as_it_went_in(store: Store) -> None:
    lease = admit(store).lease
    full = replace(
        lease,
        state=LeaseState.READY,
        machine_id="mc-1",
        instance_id="i-1",
        address="2001:db8::7",
        port=2222,
        username="débian",
        host_keys=("ssh-ed25519 AAAA", "ssh-rsa BBBB"),
        host_keys_known_by="console",
        market=Market.SPOT,
        usd_per_hour=0.125,
        timing=Timing(1.5, 2.5, 3.25, 4.0, "pk_ok", {"t2_ms": 50.0}),
        ready_at=later(1),
        expires_at=later(3600.000001),
        detail="a word",
    )
    written = store.change_lease(full, events=[(EventKind.READY, {"ms": 4.0})], now=later(1))
    assert written == replace(full, version=2)
    assert store.lease(lease.id) == written
    assert store.live_leases() == [written]
    ended = end(store, written, later(5))
    assert store.lease(lease.id) == ended
    assert (ended.reason, ended.ended_at, ended.version) == (EndReason.DELETED, later(5), 3)
    assert store.live_leases() == []
    assert store.lease("ls-none") is None


def test_a_change_of_an_old_version_changes_nothing(store: Store) -> None:
    lease = admit(store).lease
    written = store.change_lease(replace(lease, detail="first"), now=NOW)
    with pytest.raises(Conflict, match=f"{lease.id} has version 2, the change is of version 1"):
        store.change_lease(replace(lease, detail="second"), events=[(EventKind.READY, {})], now=NOW)
    assert store.lease(lease.id) == written
    assert [event.kind for event in store.events(lease.id)] == [EventKind.REQUESTED]
    with pytest.raises(Conflict, match="no lease ls-none"):
        store.change_lease(replace(lease, id="ls-none"), now=NOW)


def test_what_is_terminal_stays_terminal(store: Store) -> None:
    ended = end(store, admit(store).lease)
    for state in (LeaseState.READY, LeaseState.ENDING, LeaseState.PROVISIONING):
        with pytest.raises(Conflict, match="is ended"):
            store.change_lease(replace(ended, state=state), now=NOW)
    assert store.change_lease(replace(ended, detail="why"), now=NOW).detail == "why"


@pytest.mark.parametrize("state", [LeaseState.READY, LeaseState.ENDING, LeaseState.FAILED])
def test_a_lease_that_was_found_by_its_tags_gets_a_row_once(store: Store, state: LeaseState) -> None:
    lease = Lease(
        id=new_id("ls"),
        owner=ME.id,
        state=state,
        request=request(),
        created_at=NOW,
        instance_id="i-7",
        expires_at=later(60),
        detail="found by its tags",
        version=1,
    )
    store.adopt_lease(lease, now=later(1))
    assert store.lease(lease.id) == lease
    events = store.events(lease.id)
    assert [(event.sequence, event.kind, event.at) for event in events] == [
        (1, EventKind(state.value), later(1))
    ]
    changed = store.change_lease(replace(lease, detail="changed"), now=later(2))
    store.adopt_lease(lease, now=later(3))
    assert store.lease(lease.id) == changed
    assert store.events(lease.id) == events


def test_events_are_numbered_from_one_in_each_lease(store: Store) -> None:
    lease, other = admit(store).lease, admit(store).lease
    for number in range(1, 4):
        lease = store.change_lease(
            lease,
            events=[(EventKind.EXTENDED, {"n": number}), (EventKind.EXPIRING, {"in_s": [600, None]})],
            now=later(number),
        )
    events = store.events(lease.id)
    assert [event.sequence for event in events] == list(range(1, 8))
    assert [event.lease_id for event in events] == [lease.id] * 7
    assert (events[1].at, dict(events[1].data)) == (later(1), {"n": 1})
    assert dict(events[2].data) == {"in_s": [600, None]}
    assert store.events(lease.id, after=5) == events[5:]
    assert store.events(lease.id, after=7) == []
    assert [event.sequence for event in store.events(other.id)] == [1]
    assert store.events("ls-none") == []


# lists


def pages(store: Store, limit: int, **filters: object) -> list[Lease]:
    rows: list[Lease] = []
    cursor = ""
    while True:
        page = store.leases(limit=limit, cursor=cursor, **filters)  # type: ignore[arg-type]
        rows += page.leases
        cursor = page.cursor
        if not cursor:
            return rows
        assert len(page.leases) == limit


@pytest.mark.parametrize("limit", [1, 3, 7, 8])
def test_pages_have_every_lease_once_newest_first(store: Store, limit: int) -> None:
    # Some at the same microsecond: the id decides.
    made = [admit(store, now=later(number // 3)).lease for number in range(7)]
    expected = sorted(made, key=lambda lease: (lease.created_at, lease.id), reverse=True)
    assert pages(store, limit) == expected


def test_lists_are_of_an_owner_and_of_states(store: Store) -> None:
    mine = [admit(store, now=later(number)).lease for number in range(3)]
    theirs = admit(store, who=token("other"), now=later(9)).lease
    ended = end(store, mine[1])
    assert pages(store, 2, owner=ME.id) == [mine[2], ended, mine[0]]
    assert pages(store, 2, owner="tk-nobody") == []
    assert pages(store, 2, states={LeaseState.ENDED}) == [ended]
    assert pages(store, 2, states={LeaseState.PROVISIONING}) == [theirs, mine[2], mine[0]]
    assert pages(store, 2, states=frozenset()) == []


def test_rows_that_come_and_go_between_pages_move_no_other(store: Store) -> None:
    made = [admit(store, now=later(number)).lease for number in range(6)]
    first = store.leases(limit=2)
    assert first.leases == (made[5], made[4])
    admit(store, now=later(10))
    admit(store, now=later(4.5))  # newer than where the next page begins
    end(store, made[5], later(1))
    end(store, made[4], later(1))
    assert store.forget(later(2)) > 0
    second = store.leases(limit=2, cursor=first.cursor)
    assert second.leases == (made[3], made[2])
    assert store.leases(limit=2, cursor=second.cursor).leases == (made[1], made[0])


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "ls-0193",
        "MTIz",
        "é",
        "=",
        "' OR 1=1 --",
        "MS4yLjM",
        "A" * 5000,
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjMuYQ",
    ],
)
def test_a_cursor_that_is_not_ours_is_refused(store: Store, text: str) -> None:
    admit(store)
    with pytest.raises(StoreError, match="cursor"):
        store.leases(cursor=text)


# machines


def test_a_machine_comes_back_as_it_went_in(store: Store) -> None:
    filling = ready_machine(
        state=MachineState.FILLING, instance_id="", address="", host_keys=(), ready_at=None, boot_id=""
    )
    store.add_machine(filling)
    assert store.machine(filling.id) == filling
    ready = replace(
        filling,
        state=MachineState.READY,
        instance_id="i-7",
        address="192.0.2.9",
        boot_id="b-1",
        host_keys=("ssh-ed25519 AAAA", "ssh-rsa BBBB"),
        ready_at=later(3),
        market=Market.SPOT,
        usd_per_hour=0.25,
        detail="x",
    )
    written = store.change_machine(ready)
    assert written == replace(ready, version=2)
    assert store.machine(filling.id) == written
    assert store.machine("mc-none") is None


def test_two_rows_are_never_one_machine(store: Store) -> None:
    first = ready_machine()
    store.add_machine(first)
    for alike in (
        ready_machine(id=first.id),
        ready_machine(instance_id=first.instance_id),
        ready_machine(client_token=first.client_token),
    ):
        with pytest.raises(Conflict):
            store.add_machine(alike)
    second = ready_machine(instance_id="")
    store.add_machine(second)
    store.add_machine(ready_machine(instance_id="", client_token=""))
    store.add_machine(ready_machine(instance_id="", client_token=""))
    with pytest.raises(Conflict):
        store.change_machine(replace(second, instance_id=first.instance_id))
    assert store.machine(second.id) == second


def test_a_machine_that_was_leased_is_never_claimable_again(store: Store) -> None:
    store.add_machine(ready_machine())
    claimed = admit(store, warm()).machine
    assert claimed is not None
    for change in (
        replace(claimed, state=MachineState.READY),
        replace(claimed, state=MachineState.FILLING),
        replace(claimed, lease_id=None),
        replace(claimed, lease_id="ls-another"),
    ):
        with pytest.raises(Conflict, match=claimed.id):
            store.change_machine(change)
    ending = store.change_machine(replace(claimed, state=MachineState.ENDING))
    with pytest.raises(Conflict):
        store.change_machine(replace(ending, state=MachineState.LEASED, lease_id=None))
    ended = store.change_machine(replace(ending, state=MachineState.ENDED))
    for state in set(MachineState) - {MachineState.ENDED}:
        with pytest.raises(Conflict, match="is ended"):
            store.change_machine(replace(ended, state=state))
    assert store.machine(claimed.id) == ended


def test_a_ready_machine_that_was_claimed_meanwhile_is_not_retired(store: Store) -> None:
    machine = ready_machine()
    store.add_machine(machine)
    admit(store, warm())
    with pytest.raises(Conflict, match="version 2"):
        store.change_machine(replace(machine, state=MachineState.ENDING))
    with pytest.raises(Conflict, match="no machine mc-none"):
        store.change_machine(replace(machine, id="mc-none"))


def test_lists_of_machines(store: Store) -> None:
    ended = ready_machine(state=MachineState.ENDED, created_at=later(0))
    older = ready_machine(created_at=later(1))
    filling = ready_machine(state=MachineState.FILLING, created_at=later(2), pool="another")
    launched = ready_machine(state=MachineState.LEASED, created_at=later(3), pool=None, lease_id="ls-1")
    for machine in (launched, filling, older, ended):
        store.add_machine(machine)
    assert store.machines() == [older, filling, launched]
    assert store.machines(pool=POOL) == [older]
    assert store.machines(pool=POOL, states=set(MachineState)) == [ended, older]
    assert store.machines(states={MachineState.FILLING, MachineState.LEASED}) == [filling, launched]
    assert store.machines(states=()) == []


# pools, samples, forgetting


def test_what_an_operator_changed_of_a_pool_lasts(store: Store, opened: Callable[[], Store]) -> None:
    assert store.pool_control(POOL) == PoolControl(POOL)
    for control in (
        PoolControl(POOL, target=0, paused=True),
        PoolControl(POOL, failures=3, open_until=later(30), last_error="no capacity"),
    ):
        store.set_pool_control(control)
        assert store.pool_control(POOL) == control
    other = opened()
    assert other.pool_control(POOL).failures == 3
    other.close()


def test_samples_are_of_their_kind_and_newest_first(store: Store) -> None:
    def sample(number: int, technique: str = "custom-init", **changes: object) -> LaunchSample:
        plain = LaunchSample(
            technique, Arch.X86_64, "m7i.large", Source.COLD, later(number), number * 1.5, ok=number % 2 == 0
        )
        return replace(plain, **changes)  # type: ignore[arg-type]

    wanted = [sample(number) for number in range(5)]
    for one in (
        *wanted,
        sample(2, "cold"),
        sample(2, arch=Arch.ARM64),
        sample(2, instance_type="t3.micro"),
    ):
        store.add_sample(one)
    kind = ("custom-init", Arch.X86_64, "m7i.large")
    assert store.samples(*kind, since=NOW) == wanted[::-1]
    assert store.samples(*kind, since=later(3)) == [wanted[4], wanted[3]]
    assert store.samples(*kind, since=NOW, limit=2) == [wanted[4], wanted[3]]


def test_forget_removes_what_is_over_and_nothing_else(store: Store) -> None:
    store.add_machine(ready_machine())
    key = Idempotency("k", "f")
    over = admit(store, warm(), idempotency=key)
    assert over.machine is not None
    machine = store.change_machine(replace(over.machine, state=MachineState.ENDED))
    end(store, over.lease, later(10))
    failed = admit(store).lease
    store.change_lease(replace(failed, state=LeaseState.FAILED, ended_at=later(10)), now=later(10))
    zombie = ready_machine(state=MachineState.ENDING, lease_id=failed.id)
    store.add_machine(zombie)
    live = admit(store).lease
    recent = end(store, admit(store, idempotency=Idempotency("k-2", "f"), now=later(50)).lease, later(60))
    slot = ready_machine(state=MachineState.ENDED, created_at=later(-5))
    store.add_machine(slot)
    waiting = ready_machine(created_at=later(-5))
    store.add_machine(waiting)
    sample = LaunchSample("cold", Arch.X86_64, "m7i.large", Source.COLD, NOW, 1.0, ok=True)
    store.add_sample(sample)
    store.add_sample(replace(sample, at=later(60)))

    # The lease, its two events and claim, its machine; the ended slot; the key; the old sample.
    assert store.forget(later(30)) == 1 + 3 + 1 + 1 + 1 + 1
    assert store.lease(over.lease.id) is None
    assert store.events(over.lease.id) == []
    assert store.machine(machine.id) is None
    assert store.machine(slot.id) is None
    assert store.machine(waiting.id) == waiting
    assert store.machine(zombie.id) == zombie
    assert {lease.id for lease in store.leases().leases} == {failed.id, live.id, recent.id}
    assert store.idempotent_lease(ME, key, now=NOW) is None
    assert store.idempotent_lease(ME, Idempotency("k-2", "f"), now=later(60)) == recent
    assert len(store.samples("cold", Arch.X86_64, "m7i.large", since=later(-100))) == 1
    assert store.forget(later(30)) == 0
    store.change_machine(replace(zombie, state=MachineState.ENDED))
    assert store.forget(later(30)) == 3


def test_everything_is_there_after_a_restart(opened: Callable[[], Store]) -> None:
    store = opened()
    store.add_token(ME)
    store.add_machine(ready_machine())
    key = Idempotency("k", "f")
    lease = admit(store, warm(), idempotency=key).lease
    events, machines = store.events(lease.id), store.machines()
    store.close()
    again = opened()
    assert again.tokens() == [ME]
    assert again.lease(lease.id) == lease
    assert again.events(lease.id) == events
    assert again.machines() == machines
    assert again.idempotent_lease(ME, key, now=NOW) == lease
    again.close()


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises((TypeError, StoreError)):
        store.add_machine(ready_machine(created_at=NOW.replace(tzinfo=None)))
    assert store.machines() == []


def test_ids_sort_by_the_time_they_were_made_at() -> None:
    first = new_id("ls")
    assert first.startswith("ls-")
    assert IMAGE not in first
    assert new_id("ls")[:14] >= first[:14]
