"""One measured attempt: fill a slot, launch, log in, ask the machine about itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import asyncssh

from harness.plan.experiment import Planned
from harness.run.lag import LagMeter
from instant_env.cloud.session import Cloud
from instant_env.launch.guest import GuestReadError, GuestReport
from instant_env.launch.launcher import Launcher
from instant_env.launch.login_check import PrivateKeyLogin
from instant_env.launch.techniques import LaunchSpec, PoolSlot, Prepared, Technique
from instant_env.launch.timeline import Outcome, Timeline


class Attempt:
    """What one attempt measured. The fields are set as it goes on, so a row can be made of it at any time."""

    def __init__(
        self,
        launcher: Launcher,
        planned: Planned,
        technique: Technique,
        prepared: Prepared,
        spec: LaunchSpec,
        key: asyncssh.SSHKey,
    ) -> None:
        self._launcher = launcher
        self.planned = planned
        self.technique = technique
        self.prepared = prepared
        self.spec = spec
        self.slot = PoolSlot()
        self.fill_s = 0.0
        """What filling the slot took; 0 where nothing was made ahead."""
        self.launch = launcher.launch(technique, prepared, spec, self.slot)
        self.login = PrivateKeyLogin(prepared.username, key)
        self.guest: GuestReport | None = None
        self.root_reads: tuple[int, int] | None = None
        """Requests and bytes by t4 as the cloud counts them, see :meth:`Cloud.root_reads`."""
        self.resumed: bool | None = None
        """Whether a machine that was to resume did, by its boot id; None where nothing was to."""
        self._lag = LagMeter()

    @property
    def cloud(self) -> Cloud:
        return self._launcher.cloud

    @property
    def timeline(self) -> Timeline:
        return self.launch.timeline

    @property
    def outcome(self) -> Outcome:
        return self.launch.outcome

    @property
    def machine(self) -> str:
        """The id of the machine that was launched, or else filled."""
        return self.launch.instance_id or self.slot.instance_id

    @property
    def lag_ms(self) -> float:
        """How late the event loop was at worst between t0 and t4, or a connect of the prober's."""
        return max(self._lag.worst_ms, round(self.launch.probes.worst_late_ns / 1e6, 3))

    async def fill(self) -> None:
        """Make the slot that the technique starts from. Raises FillError, and botocore's errors."""
        started = time.monotonic()
        self.slot = await self._launcher.fill(self.technique, self.prepared, self.spec)
        if not self.slot.is_empty:
            self.fill_s = time.monotonic() - started

    async def measure(self, ask: Callable[[asyncssh.SSHClientConnection], Awaitable[None]]) -> None:
        """Launch and log in on the clock, then ask the machine, with ``ask`` last.

        Every failure ends in the launch's outcome; only cancellation is raised, and what nobody foresaw.
        """
        self.launch = self._launcher.launch(self.technique, self.prepared, self.spec, self.slot)
        async with self._lag.measuring():
            await self._launcher.follow(self.launch, self.login)
        if self.outcome is not Outcome.OK:
            return
        try:
            await self._ask_guest()
            if self.login.connection is not None:
                await ask(self.login.connection)
        finally:
            self.login.close()
        self._check_resumed()

    async def _ask_guest(self) -> None:
        """The machine's own account; what it cannot tell becomes a note."""
        self.root_reads = await asyncio.to_thread(self.cloud.root_reads, self.launch.instance_id)
        try:
            self.guest = await self.login.report()
        except GuestReadError as error:
            self.launch.notes.append(f"guest: {error}")

    def _check_resumed(self) -> None:
        """A machine that booted afresh when it should have resumed has not done what was to be measured."""
        expected = self.launch.boot_id
        if not expected:
            return
        if self.guest is None:
            error = "no proof that it resumed: the guest's boot id is not known"
            self.launch.fail(Outcome.NOT_RESUMED, error)
            return
        self.resumed = self.guest.boot_id == expected
        if not self.resumed:
            error = f"it booted instead of resuming: boot id {self.guest.boot_id}, was {expected}"
            self.launch.fail(Outcome.NOT_RESUMED, error)
