"""Get machines by a technique and follow them to a login: fill, launch, deliver, end.

A program that hands out or measures machines (the harness, the service) has one :class:`Launcher`. It owns
the shared poll of DescribeInstances and the prober, and knows neither rows nor money nor leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.instances import request_end
from instant_env.cloud.session import Cloud
from instant_env.launch import slots
from instant_env.launch.follow import follow
from instant_env.launch.launch import Launch
from instant_env.launch.login_check import LoginCheck
from instant_env.launch.parked import Parked
from instant_env.launch.techniques.base import (
    FillError,
    LaunchContext,
    LaunchSpec,
    PoolSlot,
    Prepared,
    Technique,
)
from instant_env.launch.techniques.warm_running import WarmRunning
from instant_env.launch.watch import Watcher
from instant_env.ssh.probe_client import Prober, probing

#: EC2 takes a minute or two for a guest that does not shut down by itself.
_END_TIMEOUT_S = 300.0


class Launcher:
    """``async with Launcher(cloud, timeout_s=600) as launcher:``, for one event loop.

    ``timeout_s``: a launch without a login by then has failed.
    """

    def __init__(self, cloud: Cloud, *, timeout_s: float) -> None:
        self.cloud = cloud
        self.timeout_s = timeout_s
        self._stack = contextlib.AsyncExitStack()
        self._watcher: Watcher | None = None
        self._prober: Prober | None = None

    async def __aenter__(self) -> Launcher:
        async with contextlib.AsyncExitStack() as stack:
            self._watcher = await stack.enter_async_context(Watcher(self.cloud))
            self._prober = await stack.enter_async_context(probing())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises ProberError when the prober has failed and no probe has raised it."""
        await self._stack.__aexit__(kind, error, trace)

    @property
    def cpu_s(self) -> float:
        """CPU time that the prober's process had used when its newest probe ended."""
        return self._prober.cpu_s if self._prober is not None else 0.0

    def _parts(self) -> tuple[Watcher, Prober]:
        if self._watcher is None or self._prober is None:
            raise RuntimeError("a Launcher works inside of `async with`")
        return self._watcher, self._prober

    async def fill(self, technique: Technique, prepared: Prepared, spec: LaunchSpec) -> PoolSlot:
        """Make one slot of the technique's pool. Raises FillError, and botocore's errors.

        With ``spec.pool`` its machine's tags say that it is ready, see :mod:`instant_env.launch.slots`.
        """
        context = LaunchContext(self.cloud, *self._parts(), self.timeout_s)
        slot = await technique.fill(context, prepared, spec)
        if spec.pool and slot.instance_id:
            await self._mark_ready(slot)
        return slot

    async def fill_parked(
        self, technique: WarmRunning, prepared: Prepared, spec: LaunchSpec
    ) -> tuple[PoolSlot, Parked]:
        """As :meth:`fill`, for a pool of running machines that are handed out by a parked connection: the
        login that proved the machine stays on it. Raises FillError, and botocore's errors."""
        context = LaunchContext(self.cloud, *self._parts(), self.timeout_s)
        slot, parked = await technique.fill_parked(context, prepared, spec)
        try:
            if spec.pool:
                await self._mark_ready(slot)
        except BaseException:
            parked.close()
            raise
        return slot, parked

    async def _mark_ready(self, slot: PoolSlot) -> None:
        try:
            await asyncio.to_thread(slots.mark_ready, self.cloud, slot)
        except (ClientError, BotoCoreError) as error:
            await asyncio.to_thread(request_end, self.cloud, slot.instance_id)
            raise FillError(f"{slot.instance_id} cannot be tagged as ready: {error}") from error

    def launch(self, technique: Technique, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launch:
        """A launch that :meth:`follow` starts. It delivers the key where the technique has to."""
        return Launch(self.cloud, *self._parts(), lambda: technique.launch(self.cloud, prepared, spec, slot))

    async def follow(self, launch: Launch, check: LoginCheck) -> None:
        """See :func:`instant_env.launch.follow.follow`."""
        await follow(launch, check, timeout_s=self.timeout_s)

    async def end(self, technique: Technique, instance_id: str, slot: PoolSlot) -> None:
        """End the machine, wait until it is gone, and release the slot; without a machine the slot alone.

        The wait is the shared poll's: one call asks for fifty machines that end at the same time. Raises
        CloudError, botocore's errors, and TimeoutError when the machine is still there after five minutes.
        """
        watcher, _ = self._parts()
        if instance_id:
            exists = await asyncio.to_thread(request_end, self.cloud, instance_id, has_nothing_to_lose=True)
            if exists:
                await watcher.until_gone(instance_id, _END_TIMEOUT_S)
        await asyncio.to_thread(technique.release, self.cloud, slot)
