"""The probe against servers that open, refuse, stay silent and answer at instants that the test knows."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from support.launch_servers import BANNER, eventually, free_port, reset, serving, speak, until_closed

from instant_env.ssh import connect_probe, probe_loop
from instant_env.ssh.connect_probe import DIRECT, ProbePolicy, ProbeStats, SshAnswer
from instant_env.ssh.probe_client import Prober, probing
from instant_env.ssh.probe_loop import find

MS = 1_000_000

PACE_NS = int(DIRECT.pace_s * 1e9)


@dataclasses.dataclass
class Clock:
    """The probe's clock, in place of the module ``time``: it shows what a test sets it to."""

    now_ns: int = 1_000_000 * MS

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(connect_probe, "time", clock)
    monkeypatch.setattr(probe_loop, "time", clock)
    return clock


class Driven:
    """A probe of loopback in this process, whose time passes as a test says."""

    def __init__(self, clock: Clock, probes: probe_loop.Probes, port: int, policy: ProbePolicy) -> None:
        self.found: list[SshAnswer] = []
        self.began_ns = clock.now_ns
        self.probe = probes.start(
            "127.0.0.1", port, policy, not_before_ns=clock.now_ns, on_found=self.found.append
        )
        self.stats = self.probe.stats
        self._clock = clock
        self._probes = probes

    def step(self, late_ms: int = 0) -> None:
        """Do what is due next, at its time or later."""
        self._clock.now_ns = self.probe.next_ns + late_ms * MS
        self._probes.turn()

    def run(self, until_s: float) -> None:
        """Do all that is due in time until this long after the begin."""
        while self.probe.next_ns < self.began_ns + until_s * 1e9:
            self.step()

    def settle(self, condition: Callable[[], bool]) -> None:
        """Let the kernel's answers come, while the probe's time stands still."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.stats
            self._probes.turn(self._clock.now_ns + MS)


@contextlib.contextmanager
def driving(clock: Clock, port: int, policy: ProbePolicy = DIRECT) -> Iterator[Driven]:
    with contextlib.closing(probe_loop.Probes()) as probes:
        yield Driven(clock, probes, port, policy)


@dataclasses.dataclass(frozen=True)
class Looker:
    """Probes loopback by a prober's process."""

    prober: Prober

    async def find(
        self, port: int, policy: ProbePolicy = DIRECT, stats: ProbeStats | None = None
    ) -> SshAnswer:
        now_ns = time.monotonic_ns()
        return await self.prober.probe("127.0.0.1", port, policy, stats or ProbeStats(), not_before_ns=now_ns)


def run(work: Callable[[Looker], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(60), probing() as prober:
            await work(Looker(prober))

    asyncio.run(all_of_it())


def test_answering_server_is_found_and_line_left_unread() -> None:
    async def work(looker: Looker) -> None:
        async with serving(lambda sock, _: speak(sock)) as server:
            found = await looker.find(server.port)
            assert found.line == BANNER.decode().strip()
            assert found.sock.recv(100) == BANNER
            found.sock.close()
            assert len(server.accepted_ns) == 1

    run(work)


def test_direct_stops_connecting_after_the_first_success() -> None:
    port, stats, spoken_ns = free_port(), ProbeStats(), list[int]()

    async def slow_to_speak(sock: socket.socket, number: int) -> None:
        await asyncio.sleep(0.2)
        spoken_ns.append(time.monotonic_ns())
        await speak(sock)

    async def work(looker: Looker) -> None:
        finding = asyncio.create_task(looker.find(port, stats=stats))
        await asyncio.sleep(0.2)
        opened_ns = time.monotonic_ns()
        async with serving(slow_to_speak, port) as server:
            found = await finding
            found.sock.close()
            assert len(server.accepted_ns) == 1
        assert stats.silent == 0
        assert opened_ns < found.accepted_ns < found.banner_ns
        assert spoken_ns[0] < found.banner_ns
        if stats.opened > 1:
            assert found.resolution_ns <= PACE_NS + stats.worst_late_ns

    run(work)


def test_resolution_reaches_back_to_the_connect_before(clock: Clock) -> None:
    """Connects are due every 10 ms: the third one is 27 ms late, and the one that is accepted 4 ms."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with driving(clock, listener.getsockname()[1]) as driven:
            for late_ms in (0, 0, 27, 0):
                driven.step(late_ms)
                driven.settle(lambda: driven.stats.refused == driven.stats.opened)
            listener.listen()
            driven.step(late_ms=4)
            driven.settle(lambda: driven.probe.next_ns == clock.now_ns + DIRECT.banner_s * 1e9)
            clock.now_ns += 200 * MS
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(BANNER)
                driven.settle(lambda: bool(driven.found))
    (found,) = driven.found
    found.sock.close()
    assert found.accepted_ns - driven.began_ns == 64 * MS
    assert found.banner_ns - driven.began_ns == 264 * MS
    assert found.resolution_ns == 14 * MS
    assert (driven.stats.opened, driven.stats.worst_late_ns) == (5, 27 * MS)
    assert driven.stats.first_refused_ns == driven.began_ns


def test_direct_goes_on_when_the_accepted_connection_is_dropped() -> None:
    async def drop_two(sock: socket.socket, number: int) -> None:
        if number == 0:
            reset(sock)
        elif number == 2:
            await speak(sock)

    async def work(looker: Looker) -> None:
        stats = ProbeStats()
        async with serving(drop_two) as server:
            found = await looker.find(server.port, stats=stats)
            found.sock.close()
        assert stats.refused == 2
        assert stats.opened == 3

    run(work)


def test_direct_gives_up_silent_connects_and_opens_fresh_ones(clock: Clock) -> None:
    """A listener with a full backlog drops SYNs, as a machine without a network does."""

    with socket.socket() as full, contextlib.ExitStack() as fillers:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        policy = dataclasses.replace(DIRECT, keep_s=0.1)
        with driving(clock, full.getsockname()[1], policy) as driven:
            driven.run(0.6)
    # One every 10 ms, and those of the last 100 ms are still open.
    assert (driven.stats.opened, driven.stats.silent, driven.stats.refused) == (60, 50, 0)


def test_lines_before_the_version_line_and_a_line_in_two_pieces() -> None:
    async def in_pieces(sock: socket.socket, _: int) -> None:
        loop = asyncio.get_running_loop()
        for piece in (b"maintenance at noon\r\nSSH-", b"2.0-Open", b"SSH_9.2p1\r\n"):
            await loop.sock_sendall(sock, piece)
            await asyncio.sleep(0.03)
        await until_closed(sock)

    async def work(looker: Looker) -> None:
        stats = ProbeStats()
        async with serving(in_pieces) as server:
            found = await looker.find(server.port, stats=stats)
            assert found.line == "SSH-2.0-OpenSSH_9.2p1"
            assert found.sock.recv(100).startswith(b"maintenance")
            found.sock.close()
        assert (stats.opened, stats.garbage) == (1, 0)

    run(work)


@pytest.mark.parametrize(
    "junk", [b"Exceeded MaxStartups\r\n", b"HTTP/1.1 400 no\r\n" * 1000], ids=["line", "flood"]
)
def test_garbage_is_counted_and_tried_again(junk: bytes) -> None:
    async def junk_first(sock: socket.socket, number: int) -> None:
        if number:
            await speak(sock)
        else:
            await asyncio.get_running_loop().sock_sendall(sock, junk)

    async def work(looker: Looker) -> None:
        stats = ProbeStats()
        async with serving(junk_first) as server:
            (await looker.find(server.port, stats=stats)).sock.close()
        assert stats.garbage == 1

    run(work)


def test_cancelling_closes_every_socket() -> None:
    async def work(looker: Looker) -> None:
        async with serving(lambda sock, _: until_closed(sock)) as server:
            finding = asyncio.create_task(looker.find(server.port))
            await eventually(lambda: server.open_now == 1)
            await asyncio.sleep(0.3)
            assert server.open_now == 1
            finding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await finding
            await eventually(lambda: server.open_now == 0)

    run(work)


def test_connects_keep_their_pace(clock: Clock) -> None:
    """A late one does not put off those that follow, and none is made up for."""
    with driving(clock, free_port()) as driven:
        driven.step()
        driven.step()
        driven.step(late_ms=35)  # at 55 ms, after which one is due at 60 ms
        driven.run(1.0)
        driven.settle(lambda: driven.stats.refused == driven.stats.opened)
    assert driven.stats.opened == 3 + 94
    assert driven.stats.worst_late_ns == 35 * MS


def test_what_several_probes_met_adds_up() -> None:
    stats = ProbeStats()
    stats.add(ProbeStats(opened=3, refused=2, first_refused_ns=7, worst_late_ns=5))
    stats.add(ProbeStats(opened=1, refused=1, first_refused_ns=9, worst_late_ns=4))
    assert stats == ProbeStats(opened=4, refused=3, first_refused_ns=7, worst_late_ns=5)


def test_find_waits_for_a_server_that_opens_later() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))

        def open_up() -> None:
            time.sleep(0.2)
            listener.listen()
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(BANNER)
                accepted.recv(1)

        server = threading.Thread(target=open_up)
        server.start()
        found = find("127.0.0.1", listener.getsockname()[1], DIRECT, timeout_s=30)
        assert found is not None
        assert found.line == BANNER.decode().strip()
        assert found.sock.recv(100) == BANNER
        found.sock.close()
        server.join(10)


def test_find_gives_up_in_time() -> None:
    began = time.monotonic()
    assert find("127.0.0.1", free_port(), DIRECT, timeout_s=0.2) is None
    assert 0.2 <= time.monotonic() - began < 20
