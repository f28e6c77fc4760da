"""The prober's process: what it hands over, what is left of it, and what is said when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.harness_cloud import SshHost, fresh_key
from support.launch_servers import BANNER, eventually, free_port, serving, speak, until_closed
from support.processes import alive

from instant_env.ssh import probe_client as prober_module
from instant_env.ssh.connect_probe import DIRECT, ProbeStats, SshAnswer
from instant_env.ssh.login import authenticate, client_options
from instant_env.ssh.probe_client import Prober, ProberError, probing

#: Tells the pid of its prober, probes a port, and when interrupted tells how often that refused.
_PARENT = """
import asyncio, signal, sys
from instant_env.ssh.connect_probe import DIRECT, ProbeStats
from instant_env.ssh.probe_client import probing

async def main():
    stats = ProbeStats()
    async with probing() as prober:
        looking = asyncio.create_task(
            prober.probe("127.0.0.1", int(sys.argv[1]), DIRECT, stats, not_before_ns=0)
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, looking.cancel)
        print(prober.pid, flush=True)
        await asyncio.wait([looking])
    print(stats.refused, flush=True)

asyncio.run(main())
"""


async def look(prober: Prober, port: int, stats: ProbeStats | None = None) -> SshAnswer:
    return await prober.probe(
        "127.0.0.1", port, DIRECT, stats or ProbeStats(), not_before_ns=time.monotonic_ns()
    )


def files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def comes_true(what: Callable[[], bool], within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


@contextlib.contextmanager
def parent(port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a prober, and that one's pid; alone in a process group, as a terminal makes it."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(port)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_socket_that_is_handed_over_takes_a_login() -> None:
    async def work(port: int) -> None:
        async with probing() as prober:
            found = await look(prober, port)
        assert found.line.startswith("SSH-2.0-AsyncSSH")
        assert not os.get_inheritable(found.sock.fileno())
        # The prober is gone, and the connection is not.
        login = await authenticate(found.sock, client_options("admin", fresh_key().for_asyncssh()))
        assert login.authenticated_ns > found.banner_ns > found.accepted_ns
        login.connection.abort()

    with SshHost().serving() as ssh:
        asyncio.run(asyncio.wait_for(work(ssh.port), 60))


def test_nothing_stays_open_on_either_side_after_many_probes() -> None:
    async def work() -> None:
        async with (
            serving(lambda sock, _: speak(sock)) as open_,
            serving(lambda sock, _: until_closed(sock)) as silent,
            probing() as prober,
        ):
            gc.collect()  # what earlier tests left
            before = files(prober.pid), files(os.getpid())
            for _ in range(5):
                looking = [asyncio.create_task(look(prober, open_.port)) for _ in range(20)]
                waiting = [asyncio.create_task(look(prober, port)) for port in (free_port(), silent.port)]
                for found in await asyncio.gather(*looking):
                    found.sock.close()
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            await eventually(lambda: (open_.open_now, silent.open_now) == (0, 0))
            await eventually(lambda: (files(prober.pid), files(os.getpid())) == before)

    asyncio.run(asyncio.wait_for(work(), 60))


def test_answer_that_crosses_a_cancellation_is_closed() -> None:
    answered, closed = threading.Event(), threading.Event()

    def answer() -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(BANNER)
            answered.set()
            with contextlib.suppress(ConnectionResetError):  # closed with the answer unread
                accepted.recv(1)
            closed.set()

    async def work(port: int) -> None:
        async with probing() as prober:
            stats = ProbeStats()
            looking = asyncio.create_task(look(prober, port, stats))
            await asyncio.sleep(0)
            assert answered.wait(30)
            time.sleep(0.2)  # the answer comes, and this loop does not see it
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
            assert stats.opened == 1
            assert closed.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer)
        server.start()
        asyncio.run(asyncio.wait_for(work(listener.getsockname()[1]), 60))
        server.join(30)


def test_probe_that_outlives_its_prober_is_cancelled() -> None:
    async def work() -> None:
        async with probing() as prober:
            looking = [asyncio.create_task(look(prober, free_port())) for _ in range(2)]
            await asyncio.sleep(0.1)
        looking[0].cancel()  # as asyncio.run() does with what is left
        for task in looking:
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(ProberError, match="the prober is closed"):
            await look(prober, free_port())

    asyncio.run(asyncio.wait_for(work(), 60))


def test_prober_that_dies_fails_every_probe_and_those_to_come() -> None:
    async def work() -> None:
        async with probing() as prober:
            looking = [asyncio.create_task(look(prober, free_port())) for _ in range(2)]
            await asyncio.sleep(0.1)
            os.kill(prober.pid, signal.SIGKILL)
            for task in looking:
                with pytest.raises(ProberError, match="the prober has ended: SIGKILL"):
                    await task
            await look(prober, free_port())

    with pytest.raises(ProberError, match="SIGKILL"):
        asyncio.run(asyncio.wait_for(work(), 60))


def test_prober_that_died_while_nobody_probed_is_told_at_the_end() -> None:
    async def work() -> None:
        async with probing() as prober:
            os.kill(prober.pid, signal.SIGKILL)
            await asyncio.sleep(0.2)

    with pytest.raises(ProberError, match="SIGKILL"):
        asyncio.run(asyncio.wait_for(work(), 60))


def test_prober_that_fails_tells_its_last_words() -> None:
    async def work() -> None:
        async with probing() as prober:
            await prober.probe("no address", 22, DIRECT, ProbeStats(), not_before_ns=0)

    with pytest.raises(ProberError, match=r"the prober has ended: exit code 1, socket\.gaierror: "):
        asyncio.run(asyncio.wait_for(work(), 60))


def test_prober_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober_module, "_COMMAND", (sys.executable, "-c", "raise SystemExit('no')"))

    async def work() -> None:
        async with probing():
            pass

    with pytest.raises(ProberError, match="the prober has ended: exit code 1, no"):
        asyncio.run(asyncio.wait_for(work(), 60))


def test_prober_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    async def work() -> None:
        async with probing() as prober:
            monkeypatch.setattr(prober_module, "_PATIENCE_S", 0.5)
            pids.append(prober.pid)
            os.kill(prober.pid, signal.SIGSTOP)
            async with asyncio.timeout(0.1):
                await look(prober, free_port())

    with pytest.raises(ProberError, match=r"has not answered for .* s: killed"):
        asyncio.run(asyncio.wait_for(work(), 60))
    assert not alive(pids[0])


def test_prober_ends_with_its_parent_however_that_ends() -> None:
    with parent(free_port()) as (process, pid):
        assert alive(pid)
        process.kill()
        process.wait(30)
        assert comes_true(lambda: not alive(pid))


def test_ctrl_c_does_not_reach_it_and_it_still_tells_what_it_met() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        parent(listener.getsockname()[1]) as (process, pid),
    ):
        for _ in range(2):  # closed without a byte; the second one comes after the first was counted
            listener.accept()[0].close()
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert re.fullmatch(r"[1-9]\d*", output.strip())
        assert not alive(pid)


def test_prober_holds_nothing_of_its_parents(tmp_path: Path) -> None:
    """Not even what is inheritable: its channel, what it waits by, and /dev/null."""

    async def work() -> None:
        with (tmp_path / "secret").open("w") as file, socket.socket() as sock:
            os.set_inheritable(file.fileno(), True)
            os.set_inheritable(sock.fileno(), True)
            async with probing() as prober:
                held = [link.readlink() for link in Path(f"/proc/{prober.pid}/fd").iterdir()]
        kinds = sorted(re.sub(r"[:/].*", "", str(path).lstrip("/")) for path in held)
        assert kinds == ["anon_inode", "dev", "socket", "tmp"]

    asyncio.run(asyncio.wait_for(work(), 60))
