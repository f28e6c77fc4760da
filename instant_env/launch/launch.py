"""One machine, from the request to sshd's version line: t0, t1, t2, t3.

A login (t4) is a :mod:`instant_env.launch.login_check`, and :mod:`instant_env.launch.launcher` runs the two
together.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.launch.launched import Launched
from instant_env.launch.timeline import MarkName, Outcome, Timeline
from instant_env.launch.watch import Running, Watched, Watcher
from instant_env.ssh.connect_probe import DIRECT, ProbeStats, SshAnswer
from instant_env.ssh.probe_client import Prober

T = TypeVar("T")


class Launch:
    """One launch and everything that is known of it.

    The fields are set as the launch goes on, so they also describe one that was cancelled half-way; in
    particular ``instance_id`` is set as soon as EC2 has named the machine, which is the caller's to end.
    """

    def __init__(
        self, cloud: Cloud, watcher: Watcher, prober: Prober, request: Callable[[], Launched]
    ) -> None:
        """``request`` asks EC2 for the machine; it runs in a worker thread."""
        self.cloud = cloud
        self._watcher = watcher
        self._prober = prober
        self._request = request
        self._watched: Watched | None = None
        self._delivery: asyncio.Task[None] | None = None
        self._launched: Launched | None = None
        self.timeline = Timeline.start()
        self.outcome = Outcome.CANCELLED
        self.error = ""
        """Why ``outcome`` is not ``ok``, in one line."""
        self.notes: list[str] = []
        self.instance_id = ""
        self.address = ""
        self.market: Market | None = None
        self.no_spot = ""
        """EC2's code when it gives this account no spot machines at all."""
        self.boot_id = ""
        """The boot id that a machine which resumes must still have; empty where none is known."""
        self.probes = ProbeStats()
        self.banner = ""

    @property
    def zone(self) -> str:
        return self._watched.zone if self._watched else ""

    @property
    def last_poll_error(self) -> str:
        """What EC2 answered to the newest poll that failed; empty when none has."""
        return self._watcher.last_error

    def fail(self, outcome: Outcome, error: str) -> None:
        """End as ``outcome``. ``error`` becomes one line."""
        self.outcome = outcome
        self.error = " ".join(error.split())

    async def start(self) -> None:
        """Ask for the machine (t0, t1), and begin to watch it and to deliver the key. botocore's errors are
        passed on."""
        self.timeline = Timeline.start()
        launched = self._launched = await self._ask()
        watched = self._watched = self._watcher.follow(
            launched.instance_id, launched.returned_ns, restarted=launched.restarted
        )
        watched.running.add_done_callback(self._mark_running)
        self._delivery = asyncio.create_task(self._deliver(watched, launched))

    async def version_line(self, *, not_before_ns: int | None = None) -> SshAnswer:
        """Wait until sshd sends its version line (t3) and the key was delivered; the caller owns the socket.

        Call it again, with ``not_before_ns`` (``time.monotonic_ns()``), for another connection. It never
        times out by itself. sshd refuses a key that is still on its way, and makes us wait for it; so the
        version line is held until then.
        """
        watched, launched, delivery = self._watched, self._launched, self._delivery
        if watched is None or launched is None or delivery is None:
            raise RuntimeError("start() comes first")
        self.address = launched.address or await watched.address
        answer = await self._prober.probe(
            self.address,
            self.cloud.ssh_port,
            DIRECT,
            self.probes,
            not_before_ns=launched.returned_ns if not_before_ns is None else not_before_ns,
        )
        self.timeline.mark(MarkName.T3_TCP, answer.accepted_ns, answer.resolution_ns)
        self.timeline.mark(MarkName.T3, answer.banner_ns, answer.resolution_ns)
        self.banner = self.banner or answer.line
        try:
            await asyncio.shield(delivery)
        except BaseException:
            answer.sock.close()
            raise
        return answer

    async def while_it_lives(self, work: Coroutine[Any, Any, T]) -> T:
        """``work``'s result, once `running` was seen as well (t2). Raises MachineEnded when the machine ends
        before that, and then ``work`` is cancelled."""
        watched = self._watched
        if watched is None:
            work.close()
            raise RuntimeError("start() comes first")
        task = asyncio.create_task(work)
        either: set[asyncio.Future[Any]] = {task, watched.ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                watched.ended.result()
            result = await task
            await watched.running
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return result

    async def close(self) -> None:
        """Stop watching and delivering. The machine goes on."""
        if self._watched is not None:
            self._watcher.forget(self._watched.instance_id)
        if self._delivery is not None:
            self._delivery.cancel()
            await asyncio.gather(self._delivery, return_exceptions=True)

    async def _ask(self) -> Launched:
        """The request, in a thread. It cannot be called back: a cancellation waits for the id it returns."""
        task = asyncio.create_task(asyncio.to_thread(self._request))
        try:
            launched = await asyncio.shield(task)
        except asyncio.CancelledError:
            with contextlib.suppress(ClientError, BotoCoreError):
                self._take(await task)
            raise
        self._take(launched)
        return launched

    def _take(self, launched: Launched) -> None:
        self.instance_id = launched.instance_id
        self.market = launched.market
        self.no_spot = launched.no_spot
        self.boot_id = launched.resumes
        if launched.note:
            self.notes.append(launched.note)
        self.timeline.mark(MarkName.T1, launched.returned_ns)
        if launched.running:
            self.timeline.mark(MarkName.T2, launched.returned_ns)

    def _mark_running(self, running: asyncio.Future[Running]) -> None:
        if not running.cancelled() and running.exception() is None:
            self.timeline.mark(MarkName.T2, running.result().seen_ns, running.result().resolution_ns)

    async def _deliver(self, watched: Watched, launched: Launched) -> None:
        """Hand the key over as soon as the machine runs, where it has to run for that."""
        if launched.deliver is not None:
            await watched.running
            if note := await asyncio.to_thread(launched.deliver):
                self.notes.append(note)
