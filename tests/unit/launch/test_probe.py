"""The probe against servers that open, refuse, stay silent and answer at instants that the test knows."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.launch_servers import BANNER, free_port, reset, serving, speak, until_closed

from instant_env.ssh.connect_probe import DIRECT, Found, ProbePolicy, ProbeStats
from instant_env.ssh.probe_client import Prober, probing
from instant_env.ssh.probe_loop import find

#: A two-core host that does other things as well is late by this much now and then.
SLACK_MS = 25.0


@dataclasses.dataclass(frozen=True)
class Looker:
    """Probes loopback by a prober's process."""

    prober: Prober

    async def find(self, port: int, policy: ProbePolicy = DIRECT, stats: ProbeStats | None = None) -> Found:
        now_ns = time.monotonic_ns()
        return await self.prober.probe("127.0.0.1", port, policy, stats or ProbeStats(), not_before_ns=now_ns)


def run(work: Callable[[Looker], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(20), probing() as prober:
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


def test_direct_tells_refused_and_stops_connecting_after_the_first_success() -> None:
    port, stats = free_port(), ProbeStats()

    async def slow_to_speak(sock: socket.socket, number: int) -> None:
        await asyncio.sleep(0.2)
        await speak(sock)

    async def work(looker: Looker) -> None:
        finding = asyncio.create_task(looker.find(port, stats=stats))
        await asyncio.sleep(0.2)
        opened_ns = time.monotonic_ns()
        async with serving(slow_to_speak, port) as server:
            found = await finding
            found.sock.close()
            assert len(server.accepted_ns) == 1
        assert stats.refused >= 5
        assert stats.silent == 0
        accepted_after_ms = (found.accepted_ns - opened_ns) / 1e6
        assert accepted_after_ms <= found.resolution_ns / 1e6 + SLACK_MS
        assert found.resolution_ns < 100e6
        assert found.banner_ns - found.accepted_ns >= 190e6

    run(work)


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


def test_direct_gives_up_silent_connects_and_opens_fresh_ones() -> None:
    """A listener with a full backlog drops SYNs, as a machine without a network does."""

    async def work(looker: Looker) -> None:
        policy = dataclasses.replace(DIRECT, keep_s=0.1)
        stats = ProbeStats()
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            fillers = [socket.socket() for _ in range(2)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(looker.find(full.getsockname()[1], policy, stats), 0.6)
            for filler in fillers:
                filler.close()
        assert stats.opened >= 20
        assert stats.silent >= 15
        assert stats.refused == 0

    run(work)


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
            await asyncio.sleep(0.7)
            assert server.open_now == 1
            finding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await finding
            await asyncio.sleep(0.05)
            assert server.open_now == 0

    run(work)


def test_connects_keep_their_pace() -> None:
    """A late one does not put off those that follow, and none is made up for."""
    stats = ProbeStats()

    async def work(looker: Looker) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(looker.find(free_port(), stats=stats), 1.0)
        assert stats.opened <= (time.monotonic() - began) * 100 + 1
        if stats.worst_late_ns < 10_000_000:  # not on a host that was busy just now
            assert stats.opened >= 95
        assert stats.refused >= stats.opened - 1

    run(work)


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
        found = find("127.0.0.1", listener.getsockname()[1], DIRECT, timeout_s=10)
        assert found is not None
        assert found.line == BANNER.decode().strip()
        assert found.sock.recv(100) == BANNER
        found.sock.close()
        server.join(10)


def test_find_gives_up_in_time() -> None:
    began = time.monotonic()
    assert find("127.0.0.1", free_port(), DIRECT, timeout_s=0.2) is None
    assert 0.2 <= time.monotonic() - began < 1.0
