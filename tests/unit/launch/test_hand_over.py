"""A machine of a pool is handed out over a parked connection, and sshd's word is had once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from support.guests.handed_guest import HandedGuest, eventually

from instant_env.cloud.keys import KeyPair
from instant_env.errors import UsageError
from instant_env.launch.delivery import Proof, deliver
from instant_env.launch.hand_over import (
    MAX_LEASE,
    AlreadyHandedOut,
    Code,
    Contaminated,
    HandOverRequest,
    ParkBroken,
    Refused,
    read_answer,
    read_ready,
)
from instant_env.launch.parked import COMMAND, Parked
from instant_env.launch.standing_query import StandingQuery
from instant_env.launch.timeline import MarkName, Timeline
from instant_env.public_key import PublicKey
from instant_env.settings import ROOT
from instant_env.ssh.dial import dial
from instant_env.ssh.host_keys import HostKeyMismatch, HostKeys
from instant_env.ssh.key_query import PreparedQuery
from instant_env.ssh.login import HandshakeFailed, KeyRefused, authenticate, client_options
from instant_env.user_data import format_time

KEY = KeyPair.generate().public_key
REQUEST = HandOverRequest(
    "lease-1", KEY, datetime(2026, 12, 1, 12, 0, 0, 999, tzinfo=UTC), "2026-12-02T00:00:00Z"
)

ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGsX0fLhLEJH+Lzm5WOkQPJ3A32B"
    "LeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU="
)

#: `go test` reads this one; made by running this file.
GOLDEN = ROOT / "init/internal/handover/testdata/python.json"
#: The lines of the init, which its tests compare with what it writes.
ANSWERS = json.loads((ROOT / "init/internal/handover/testdata/answers.json").read_text(encoding="utf-8"))

NAMED_REQUESTS = {
    "plain": HandOverRequest(
        "lease-0198",
        PublicKey.parse(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUFrp1YpNdcv0sPLcKUXk8BCQZjDVwtDbyEFTgmZQDI me@home"
        ),
        datetime(2026, 12, 1, 12, 0, 0, 999, tzinfo=UTC),
        "2026-12-02T00:00:00Z",
    ),
    "no tag before, the longest lease, another zone": HandOverRequest(
        "\U0001f511" * MAX_LEASE,
        PublicKey.parse(ECDSA),
        datetime(2028, 2, 29, 23, 59, 59, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    ),
}


def case(name: str, request: HandOverRequest) -> dict[str, str]:
    return {
        "Name": name,
        "Line": request.as_line(),
        "Lease": request.lease,
        "Key": request.public_key.bare,
        "ExpiresAt": format_time(request.expires_at),
        "Replaces": request.replaces,
    }


def golden_cases() -> list[dict[str, str]]:
    return [case(name, request) for name, request in NAMED_REQUESTS.items()]


@pytest.fixture
def guest() -> Iterator[HandedGuest]:
    with HandedGuest().serving() as served:
        yield served


async def park(guest: HandedGuest) -> Parked:
    found = await dial("127.0.0.1", guest.port, timeout_s=60)
    login = await authenticate(
        found.sock, client_options("admin", guest.ours.for_asyncssh(), guest.host_keys)
    )
    return await Parked.on(login.connection, "admin", login.host_key)


def parked_and(guest: HandedGuest, work: Callable[[Parked], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        parked = await park(guest)
        try:
            await work(parked)
        finally:
            parked.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 120))


def test_a_machine_is_delivered_with_one_question(guest: HandedGuest) -> None:
    async def work(parked: Parked) -> None:
        assert parked.alive
        timeline = Timeline.start()
        delivery = await deliver(parked, guest.door, REQUEST, timeline)
        assert delivery.answer.ended_sessions == 2
        assert delivery.host_key == guest.host_keys.keys[0]
        marks = timeline.marks
        assert marks[MarkName.T1].ms == marks[MarkName.T2].ms <= marks[MarkName.T4].ms
        assert marks[MarkName.T3].ms <= marks[MarkName.T4].ms
        assert parked.written
        assert not parked.alive
        with pytest.raises(ParkBroken):
            await parked.hand_over(REQUEST)

    parked_and(guest, work)
    assert guest.commands == [f"sudo -n {COMMAND}"]
    assert guest.requests == [
        {
            "version": 1, "lease": "lease-1", "public_key": KEY.bare, "expires_at": "2026-12-01T12:00:00Z",
            "replaces": "2026-12-02T00:00:00Z",
        }
    ]  # fmt: skip
    assert [question.split()[1] for question in guest.questions].count(KEY.body) == 1


def test_the_question_waits_for_the_key(guest: HandedGuest) -> None:
    """Keys are exchanged while the machine does not know the key yet, and it is asked about it afterwards."""

    async def work() -> None:
        found = await dial("127.0.0.1", guest.port, timeout_s=60)
        query = PreparedQuery(found.sock, "admin", guest.host_keys)
        await query.exchange()
        assert not guest.questions
        assert not query.asked
        guest.known = KEY.bare
        assert (await query.ask(KEY)).accepted_ns
        assert query.asked

    asyncio.run(asyncio.wait_for(work(), 120))
    assert len(guest.questions) == 1


def test_a_standing_connection_is_asked_at_once(guest: HandedGuest) -> None:
    async def work(parked: Parked) -> None:
        parked.stand_by(guest.door)
        await eventually(lambda: len(guest.connections) == 2)
        await eventually(lambda: parked.standing is not None and parked.standing.is_ready)
        marks = (await deliver(parked, guest.door, REQUEST, Timeline.start())).timeline.marks
        assert marks[MarkName.T1].ms <= marks[MarkName.T3].ms <= marks[MarkName.T4].ms

    parked_and(guest, work)
    assert len(guest.connections) == 2, "none was made for the delivery"
    assert [question.split()[1] for question in guest.questions].count(KEY.body) == 1


def test_a_standing_connection_that_broke_costs_a_new_one(guest: HandedGuest) -> None:
    async def work(parked: Parked) -> None:
        parked.stand_by(guest.door)
        await eventually(lambda: len(guest.connections) == 2)
        guest.connections[1].abort()
        await deliver(parked, guest.door, REQUEST, Timeline.start())

    parked_and(guest, work)
    assert len(guest.connections) == 3


def test_a_standing_connection_is_made_anew_before_sshd_ends_it(guest: HandedGuest) -> None:
    async def work() -> None:
        guest.drops = 1
        standing = StandingQuery(guest.door, renew_s=0.01, retry_s=0.01)
        await eventually(lambda: len(guest.connections) > 4)
        await eventually(lambda: standing.is_ready)
        query = standing.take()
        assert query is not None
        count = len(guest.connections)
        guest.known = KEY.bare
        assert (await query.ask(KEY)).accepted_ns
        assert len(guest.connections) == count
        await eventually(lambda: all(connection.is_closed() for connection in guest.connections))

    asyncio.run(asyncio.wait_for(work(), 120))
    assert len(guest.questions) == 1, "those that were made anew have asked nothing"


def test_a_key_that_is_not_there_is_refused(guest: HandedGuest) -> None:
    async def work() -> None:
        async with Proof(guest.door, KEY, Timeline.start()) as proof:
            with pytest.raises(KeyRefused):
                await proof.ask()

    asyncio.run(asyncio.wait_for(work(), 120))
    assert len(guest.questions) == 1


def test_a_connection_that_broke_before_the_question_is_made_anew(guest: HandedGuest) -> None:
    async def work() -> None:
        guest.known = KEY.bare
        guest.drops = 1
        async with Proof(guest.door, KEY, Timeline.start()) as proof:
            assert (await proof.ask()).accepted_ns

    asyncio.run(asyncio.wait_for(work(), 120))
    assert len(guest.connections) == 2


def test_another_host_key_is_an_error_of_its_own(guest: HandedGuest) -> None:
    other = HandedGuest().host_keys

    async def work() -> None:
        found = await dial("127.0.0.1", guest.port, timeout_s=60)
        with pytest.raises(HostKeyMismatch):
            await authenticate(found.sock, client_options("admin", guest.ours.for_asyncssh(), other))
        async with Proof(dataclasses.replace(guest.door, host_keys=other), KEY, Timeline.start()) as proof:
            with pytest.raises(HostKeyMismatch):
                await proof.ask()

    asyncio.run(asyncio.wait_for(work(), 120))
    assert not guest.questions, "no key was offered to it"


def test_a_server_with_other_types_of_host_keys_is_a_mismatch(guest: HandedGuest) -> None:
    ecdsa = HostKeys.parse(ECDSA)

    async def work() -> None:
        options = client_options("admin", guest.ours.for_asyncssh(), ecdsa)
        # The server finds no common type either, and closes with bytes of ours unread. TCP may then drop what
        # the server has sent, and that is a HandshakeFailed, after which callers try again.
        while True:
            answer = await dial("127.0.0.1", guest.port, timeout_s=60)
            with contextlib.suppress(HandshakeFailed):
                await authenticate(answer.sock, options)

    with pytest.raises(HostKeyMismatch):
        asyncio.run(asyncio.wait_for(work(), 120))


@pytest.mark.parametrize(
    ("answer", "error", "word"),
    [
        ('{"ok":false,"code":"handed-out","lease":"lease-0"}', AlreadyHandedOut, "lease-0"),
        ('{"ok":false,"code":"handed-out"}', AlreadyHandedOut, "does not name"),
        ('{"ok":false,"code":"request","detail":"no version"}', Refused, "no version"),
        ('{"ok":false,"code":"mark","detail":"read-only"}', Refused, "read-only"),
        ('{"ok":false,"code":"keys","detail":"disk full"}', Contaminated, "disk full"),
        ('{"ok":false,"code":"sessions"}', Contaminated, "sessions"),
        ('{"ok":false,"code":"later"}', Contaminated, "later"),
        ("Segmentation fault", Contaminated, "Segmentation"),
        ("", Contaminated, "without an answer"),
    ],
)
def test_what_a_machine_answers_says_what_it_is_from_now_on(
    guest: HandedGuest, answer: str, error: type[Exception], word: str
) -> None:
    guest.answer = answer

    async def work(parked: Parked) -> None:
        with pytest.raises(error, match=word):
            await parked.hand_over(REQUEST)
        assert parked.written

    parked_and(guest, work)


def test_no_answer_in_time_leaves_the_machine_contaminated(guest: HandedGuest) -> None:
    guest.silent = True

    async def work(parked: Parked) -> None:
        with pytest.raises(Contaminated, match="TimeoutError"):
            await parked.hand_over(REQUEST, timeout_s=0.2)

    parked_and(guest, work)


def test_a_connection_that_breaks_before_the_write_leaves_the_machine_as_it_was(guest: HandedGuest) -> None:
    async def work(parked: Parked) -> None:
        guest.connections[0].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        await parked.closed
        assert not parked.alive
        with pytest.raises(ParkBroken):
            await parked.hand_over(REQUEST)
        assert not parked.written

    parked_and(guest, work)
    assert not guest.requests


def test_a_connection_that_breaks_after_the_write_contaminates(guest: HandedGuest) -> None:
    guest.silent = True

    async def work(parked: Parked) -> None:
        writing = asyncio.create_task(parked.hand_over(REQUEST, timeout_s=60))
        await eventually(lambda: guest.requests)
        guest.connections[0].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        with pytest.raises(Contaminated):
            await writing

    parked_and(guest, work)


@pytest.mark.parametrize(
    ("ready", "error", "word"),
    [
        ("", ParkBroken, "a password is required"),
        ("This account is currently not available.", ParkBroken, "not available"),
        ('{"ok":false,"code":"handed-out","lease":"lease-0"}', AlreadyHandedOut, "lease-0"),
    ],
)
def test_a_machine_that_cannot_be_parked_says_why(
    guest: HandedGuest, ready: str, error: type[Exception], word: str
) -> None:
    guest.ready = ready

    async def work() -> None:
        with pytest.raises(error, match=word):
            await park(guest)

    asyncio.run(asyncio.wait_for(work(), 120))


@pytest.mark.parametrize("line", ["", "{}", "[]", "{" * 10_000, '{"ok":1}', '{"code":["x"]}', "\x00"])
def test_whatever_a_machine_says_is_one_of_our_errors(line: str) -> None:
    with pytest.raises(Contaminated):
        read_answer(line)
    with pytest.raises(ParkBroken):
        read_ready(line)


def test_every_code_is_an_error() -> None:
    for code in Code:
        with pytest.raises((Refused, Contaminated)):
            read_answer(json.dumps({"ok": False, "code": code}))


def test_the_requests_that_go_test_reads_are_current() -> None:
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == golden_cases(), (
        f"the request has changed: python {Path(__file__).relative_to(ROOT)} writes {GOLDEN.name} anew"
    )


def test_what_the_init_answers_is_understood() -> None:
    read_ready(ANSWERS["ready"])
    assert read_answer(ANSWERS["ok"]).ended_sessions == 3
    assert ANSWERS.keys() == {"ready", "ok", *Code}
    for code in Code:
        with pytest.raises((Refused, Contaminated)) as caught:
            read_answer(ANSWERS[code])
        assert getattr(caught.value, "code", None) in (code, None)
        assert isinstance(caught.value, Contaminated) == (code in (Code.KEYS, Code.SESSIONS))
    with pytest.raises(AlreadyHandedOut, match='lease "0"'):
        read_ready(ANSWERS["handed-out"])


@pytest.mark.parametrize("lease", ["", "x" * 129, "a\nb"])
def test_a_request_has_a_lease(lease: str) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(REQUEST, lease=lease)


def test_a_request_has_a_time_with_a_zone_and_a_size() -> None:
    with pytest.raises(UsageError, match="zone"):
        dataclasses.replace(REQUEST, expires_at=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(UsageError, match="at most 16384"):
        dataclasses.replace(REQUEST, replaces="x" * 17_000)


def test_known_hosts_has_the_port_where_it_is_not_22(guest: HandedGuest) -> None:
    key = guest.host_keys.keys[0].bare
    assert guest.host_keys.known_hosts("192.0.2.1") == f"192.0.2.1 {key}\n"
    assert guest.host_keys.known_hosts("192.0.2.1", 2222) == f"[192.0.2.1]:2222 {key}\n"


def test_host_keys_are_parsed_as_keys() -> None:
    assert HostKeys.parse("\nssh-dss AAAA\nrubbish\n") is None
    keys = HostKeys.parse(f"{KEY} a comment\n{KEY.bare}\n")
    assert keys is not None
    assert keys.keys == (PublicKey(KEY.type, KEY.body),)


def test_nobody_there_is_said_in_time() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            dialling = dial("127.0.0.1", silent.getsockname()[1], timeout_s=0.2)
            with pytest.raises(HandshakeFailed, match="no version line"):
                await dialling
        with pytest.raises(HandshakeFailed):
            await dial("127.0.0.1", 1, timeout_s=5)

    asyncio.run(work())


def test_the_time_of_a_request_is_in_utc() -> None:
    later = dataclasses.replace(REQUEST, expires_at=REQUEST.expires_at + timedelta(hours=1))
    assert json.loads(later.as_line())["expires_at"] == "2026-12-01T13:00:00Z"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_cases(), indent=1) + "\n", encoding="utf-8")
