"""One attempt: launch a machine, follow it to a login, fill its timeline, sort out what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh
from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.instances import CAPACITY_ERRORS, Market
from instant_env.cloud.session import Cloud, error_code
from instant_env.launch.guest import GuestReadError, GuestReport, read_guest
from instant_env.launch.lag import LagMeter
from instant_env.launch.launched import Launched
from instant_env.launch.timeline import MarkName, Outcome, Timeline
from instant_env.launch.watch import MachineEnded, Running, Watched, Watcher
from instant_env.ssh import pauses
from instant_env.ssh.connect_probe import DIRECT, Found, ProbeStats
from instant_env.ssh.login import HandshakeFailed, KeyRefused, Login, authenticate, client_options
from instant_env.ssh.probe_client import Prober

#: Reading the machine's own account may take this long; it is off the clock and never fails an attempt.
_GUEST_READ_S = 60.0


class Attempt:
    """One launch and everything that became known of it.

    The fields fill as it goes, so they tell the state also of an attempt that was cancelled half-way; in
    particular ``instance_id`` is set as soon as EC2 has named the machine, which is the caller's to end.
    """

    def __init__(
        self,
        cloud: Cloud,
        watcher: Watcher,
        prober: Prober,
        *,
        start: Callable[[], Launched],
        username: str,
        key: asyncssh.SSHKey,
        timeout_s: float,
        afterwards: Callable[[asyncssh.SSHClientConnection], Awaitable[None]] | None = None,
    ) -> None:
        """``start`` asks for the machine. ``afterwards`` gets the connection once the clock has stopped and
        the
        guest was asked; what it raises, ``run`` raises."""
        self._cloud = cloud
        self._watcher = watcher
        self._prober = prober
        self._start = start
        self._options = client_options(username, key)
        self._timeout_s = timeout_s
        self.afterwards = afterwards
        self._trouble = ""
        self._lag = LagMeter()
        self._watched: Watched | None = None
        self._login: Login | None = None
        self._resumes = ""
        self.timeline = Timeline.start()
        self.outcome = Outcome.CANCELLED
        self.error = ""
        self.notes: list[str] = []
        self.instance_id = ""
        self.address = ""
        self.resumed: bool | None = None
        """Whether a machine that was to resume did, by its boot id; None where nothing was to."""
        self.market: Market | None = None
        self.stats = ProbeStats()
        self.keys_refused = 0
        self.banner = ""
        self.host_key_fingerprint = ""
        self.guest: GuestReport | None = None
        self.root_reads: tuple[int, int] | None = None
        """Requests and bytes by t4 as the cloud counts them, see :meth:`Cloud.root_reads`."""

    @property
    def zone(self) -> str:
        return self._watched.zone if self._watched else ""

    @property
    def lag_ms(self) -> float:
        """How late the event loop was at worst between t0 and t4, or a connect of the prober's."""
        return max(self._lag.worst_ms, round(self.stats.worst_late_ns / 1e6, 3))

    async def run(self) -> None:
        """Run it. Every failure ends in ``outcome`` and ``error``; only cancellation is raised."""
        self.timeline = Timeline.start()
        try:
            async with self._lag.measuring(), asyncio.timeout(self._timeout_s):
                await self._reach(await self._launch())
            self.outcome = Outcome.OK
        except TimeoutError:
            self._fail(*self._after_timeout())
        except MachineEnded as error:
            self._fail(_outcome_of_end(error), str(error))
        except ClientError as error:
            capacity = error_code(error) in CAPACITY_ERRORS
            self._fail(Outcome.CAPACITY if capacity else Outcome.LAUNCH_ERROR, str(error))
        except BotoCoreError as error:
            self._fail(Outcome.LAUNCH_ERROR, str(error))
        except Exception as error:
            self._fail(Outcome.LAUNCH_ERROR, f"{type(error).__name__}: {error}")
            raise  # nothing we foresaw: the record is kept, the run ends
        finally:
            if self._login is not None and self.outcome is not Outcome.OK:
                self._login.connection.abort()
        if self._login is not None and self.outcome is Outcome.OK:
            try:
                await self._ask_guest(self._login)
                if self.afterwards is not None:
                    await self.afterwards(self._login.connection)
            finally:
                self._login.connection.abort()
            self._check_resumed()

    def _fail(self, outcome: Outcome, error: str) -> None:
        self.outcome = outcome
        self.error = " ".join(error.split())

    def _check_resumed(self) -> None:
        """A machine that booted afresh when it should have resumed has not done what was to be measured."""
        if self._resumes and self.guest is None:
            self._fail(Outcome.NOT_RESUMED, "no proof that it resumed: the guest did not tell its boot id")
        elif self._resumes and self.guest is not None:
            self.resumed = self.guest.boot_id == self._resumes
            if not self.resumed:
                self._fail(
                    Outcome.NOT_RESUMED,
                    f"it booted instead of resuming: boot id {self.guest.boot_id}, was {self._resumes}",
                )

    def _after_timeout(self) -> tuple[Outcome, str]:
        after = f"after {self._timeout_s:.0f} s"
        if self.keys_refused:
            return (
                Outcome.AUTH_FAILED,
                f"sshd still refused the key {after}, {self.keys_refused} times in all",
            )
        trouble = self._trouble or self._watcher.last_error
        reached = max(self.timeline.marks, key=lambda name: self.timeline.marks[name].ms, default="t0")
        detail = f"no login {after}; got as far as {reached}" + (f"; {trouble}" if trouble else "")
        refused = self._cloud.refusals_from_guest and self.stats.first_refused_ns is not None
        if refused and MarkName.T3 not in self.timeline.marks:
            return Outcome.SSH_REFUSED, f"{detail}; {self.stats.refused} connects refused"
        return Outcome.TIMEOUT, detail

    async def _launch(self) -> Launched:
        """RunInstances in a thread. It cannot be called back: a cancellation waits for the id it returns."""
        task = asyncio.create_task(asyncio.to_thread(self._start))
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
        self._resumes = launched.resumes
        if launched.note:
            self.notes.append(launched.note)
        self.timeline.mark(MarkName.T1, launched.returned_ns)
        if launched.running:
            self.timeline.mark(MarkName.T2, launched.returned_ns)

    async def _reach(self, launched: Launched) -> None:
        """From the instance id to the login, while the watch looks out for the machine's end."""
        watched = self._watched = self._watcher.follow(
            launched.instance_id, launched.returned_ns, restarted=launched.restarted
        )
        watched.running.add_done_callback(self._mark_running)
        delivery = asyncio.create_task(self._deliver(watched, launched))
        login = asyncio.create_task(self._log_in(watched, launched, delivery))
        either: set[asyncio.Future[Any]] = {login, watched.ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not login.done():
                watched.ended.result()
            await login
            await watched.running
        finally:
            self._watcher.forget(launched.instance_id)
            login.cancel()
            delivery.cancel()
            await asyncio.gather(login, delivery, return_exceptions=True)

    def _mark_running(self, running: asyncio.Future[Running]) -> None:
        if not running.cancelled() and running.exception() is None:
            self.timeline.mark(MarkName.T2, running.result().seen_ns, running.result().resolution_ns)

    async def _deliver(self, watched: Watched, launched: Launched) -> None:
        """Hand the key over as soon as the machine runs, where it has to run for that."""
        if launched.deliver is not None:
            await watched.running
            await asyncio.to_thread(launched.deliver)

    async def _log_in(self, watched: Watched, launched: Launched, delivery: asyncio.Task[None]) -> None:
        """Probe and authenticate until sshd lets us in; the deadline is the caller's.

        sshd refuses a key that is still on its way, and makes us wait for it; so the version line is held
        until the key was handed over.
        """
        address = self.address = launched.address or await watched.address
        not_before_ns = launched.returned_ns
        previous: Found | None = None
        while True:
            found = await self._prober.probe(
                address, self._cloud.ssh_port, DIRECT, self.stats, not_before_ns=not_before_ns
            )
            self._mark_answer(found)
            try:
                await asyncio.shield(delivery)
            except BaseException:
                found.sock.close()
                raise
            try:
                login = self._login = await authenticate(found.sock, self._options)
            except KeyRefused:
                pause_s = pauses.after_refusal(self.keys_refused)
                self.keys_refused += 1
            except HandshakeFailed as error:
                self._trouble = str(error)
                pause_s = pauses.HANDSHAKE_S
            else:
                # Without a retry an ideal prober would have been ahead by t3's resolution; with one, sshd may
                # have been willing since just after it last was not.
                resolution_ns = found.banner_ns - previous.banner_ns if previous else found.resolution_ns
                self.timeline.mark(MarkName.T4, login.authenticated_ns, resolution_ns)
                self.host_key_fingerprint = login.host_key_fingerprint
                return
            previous = found
            await asyncio.sleep(pause_s)
            not_before_ns = time.monotonic_ns()

    def _mark_answer(self, found: Found) -> None:
        self.timeline.mark(MarkName.T3_TCP, found.accepted_ns, found.resolution_ns)
        self.timeline.mark(MarkName.T3, found.banner_ns, found.resolution_ns)
        self.banner = self.banner or found.line

    async def _ask_guest(self, login: Login) -> None:
        """The machine's own account; what it cannot tell becomes a note."""
        try:
            async with asyncio.timeout(_GUEST_READ_S):
                self.root_reads = await asyncio.to_thread(self._cloud.root_reads, self.instance_id)
                self.guest = await read_guest(login.connection)
        except GuestReadError as error:
            self.notes.append(f"guest: {error}")
        except TimeoutError:
            self.notes.append(f"guest: no report within {_GUEST_READ_S:.0f} s")


def _outcome_of_end(error: MachineEnded) -> Outcome:
    """EC2 tells by the state reason why a machine ended (API reference, StateReason)."""
    if error.code in ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown"):
        return Outcome.INTERRUPTED
    if error.code == "Server.InsufficientInstanceCapacity":
        return Outcome.CAPACITY
    return Outcome.LAUNCH_ERROR
