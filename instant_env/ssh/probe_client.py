"""Probe many machines at a time, from a process of its own.

Twenty machines are two thousand connects a second. In the event loop of a process that reads botocore's
answers and shakes hands as well they come late, and so does the reading of their answers: t3 would be as
late as the loop. So a child makes them and takes the instants (``time.monotonic_ns()`` is one clock for all
processes), and hands over the socket that won.

The child ends when our end of its socket is closed, so also when this process is killed. It has a session of
its own, so that Ctrl-C ends the parent alone, which still needs the statistics of its probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import IO, Any

from instant_env.errors import InstantEnvError
from instant_env.ssh.connect_probe import ProbePolicy, ProbeStats, SshAnswer

#: What a probe ended with: nothing was found when it was cancelled.
_Answer = tuple[SshAnswer | None, ProbeStats]

_COMMAND = (sys.executable, "-m", "instant_env.ssh.probe_worker")

#: The child starts, answers and ends within milliseconds; after this it is taken for lost.
_PATIENCE_S = 10.0

_READ_BYTES = 65536
_READ_SOCKETS = 64


class ProberError(InstantEnvError):
    """The prober's process has ended, or does not answer: nothing can be measured any more."""


class Prober:
    """Probes for one event loop; made by :func:`probing`.

    ``pid`` is its process, ``cpu_s`` the CPU time which that had used when its newest probe ended.
    """

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes], stderr: int) -> None:
        self.pid = process.pid
        self.cpu_s = 0.0
        self._channel = channel
        self._process = process
        self._stderr = stderr
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[_Answer]] = {}
        self._unread = b""
        self._sockets: deque[socket.socket] = deque()
        self._failure = ""
        self._loop.add_reader(channel, self._read)

    async def ready(self) -> None:
        """Wait until the process listens. Raises ProberError."""
        await asyncio.wait([self._ready], timeout=_PATIENCE_S)
        if not self._ready.done():
            self._fail(f"the prober has not started within {_PATIENCE_S:.0f} s")
        self.check()

    def check(self) -> None:
        """Raises ProberError when the process has failed."""
        if self._failure:
            raise ProberError(self._failure)

    def close(self) -> None:
        """Close the socket, which ends the process. A probe that is under way is cancelled."""
        self._loop.remove_reader(self._channel)
        self._channel.close()
        self._failure = self._failure or "the prober is closed"
        for answer in self._answers.values():
            answer.cancel()

    async def probe(
        self, address: str, port: int, policy: ProbePolicy, stats: ProbeStats, *, not_before_ns: int
    ) -> SshAnswer:
        """Wait until sshd at ``address`` sends its version line; the caller owns the socket that is returned.

        It never times out by itself: cancel it. ``stats`` is added to when it ends, either way.
        ``not_before_ns``: see :meth:`instant_env.ssh.probe_loop.Probes.start`. Raises ProberError.
        """
        number = next(self._numbers)
        answer: asyncio.Future[_Answer] = self._loop.create_future()
        self._answers[number] = answer
        try:
            self._ask(
                probe=number, address=address, port=port, policy=asdict(policy), not_before_ns=not_before_ns
            )
            await asyncio.wait([answer])  # which leaves the future alone when it is cancelled
            sshd, met = answer.result()
        except asyncio.CancelledError:
            sshd, met = await self._cancel(number, answer)
            stats.add(met)
            if sshd is not None:  # it answered before the cancellation
                sshd.sock.close()
            raise
        finally:
            self._answers.pop(number, None)
        stats.add(met)
        assert sshd is not None  # noqa: S101 - it was not cancelled
        return sshd

    async def _cancel(self, number: int, answer: asyncio.Future[_Answer]) -> _Answer:
        if not answer.done():
            self._ask(cancel=number)
            await asyncio.wait([answer], timeout=_PATIENCE_S)
        if not answer.done():
            self._fail(f"the prober has not answered for {_PATIENCE_S:.0f} s")
        return answer.result()

    def _ask(self, **what: object) -> None:
        self.check()
        try:
            self._channel.send(json.dumps(what).encode() + b"\n")
        except OSError as error:  # it has ended, or reads no more
            self._fail(f"the prober cannot be asked ({error})")
            self.check()

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, _READ_BYTES, _READ_SOCKETS)
        except BlockingIOError:
            return
        except ConnectionResetError:  # it has ended, with something of ours unread
            data, descriptors = b"", []
        self._sockets.extend(map(_adopt, descriptors))
        if not data:
            self._fail("the prober has ended")
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            if message := json.loads(line):
                self._hear(message)
            else:
                self._ready.set_result(None)

    def _hear(self, message: Mapping[str, Any]) -> None:
        self.cpu_s = message["cpu_s"]
        sock = self._sockets.popleft() if message["found"] and self._sockets else None
        answer = self._answers.pop(message["probe"], None)
        if answer is None:  # nothing waits for it any more
            if sock is not None:
                sock.close()
        elif message["found"] and sock is None:  # recvmsg(2) drops what there is no room for
            answer.set_exception(
                ProberError("a machine's connection is lost: too many open files", hint="raise ulimit -n")
            )
        else:
            sshd = SshAnswer(sock, **message["found"]) if sock else None
            answer.set_result((sshd, ProbeStats(**message["stats"])))

    def _fail(self, what: str) -> None:
        """Give the process up, and raise the reason in everything that waits."""
        self._loop.remove_reader(self._channel)
        self._failure = f"{what}: {self._last_words()}"
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._answers.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(ProberError(self._failure))
                future.exception()  # not everybody looks

    def _last_words(self) -> str:
        """How it ended, and the last line that it wrote. It is made to, unless it has all but ended."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "killed"
        ended = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        lines = os.pread(self._stderr, _READ_BYTES, 0).decode(errors="replace").splitlines()
        return ", ".join([ended, *lines[-1:]])


def _adopt(descriptor: int) -> socket.socket:
    """A socket that was received, as Python makes its own: not for children, and non-blocking."""
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def probing() -> AsyncIterator[Prober]:
    """Start a prober; its process ends, and its sockets are closed, with the context.

    Raises ProberError when it does not start, and on the way out when it has failed and no probe raised it.
    """
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as stderr:
        with theirs:
            process = _start(theirs.fileno(), stderr)
        ours.setblocking(False)
        prober = Prober(ours, process, stderr.fileno())
        try:
            await prober.ready()
            yield prober
            prober.check()
        finally:
            prober.close()
            await asyncio.to_thread(_reap, process)


def _start(channel: int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _COMMAND, stdin=channel, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
