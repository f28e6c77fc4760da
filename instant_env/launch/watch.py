"""Watch machines become ``running``, and ``terminated``: one poll of DescribeInstances for all launches in
flight.

A poll per launch would drain EC2's request bucket (100, refilled at 20/s) in seconds. The poll filters by
instance id instead of naming the ids, so an id that EC2 does not know yet is no error: right after
RunInstances that is normal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.instances import ADDRESS_TIMEOUT_S, NoPublicAddress, address_of
from instant_env.cloud.launching.repeats import THROTTLING
from instant_env.cloud.session import Cloud, error_code
from instant_env.errors import InstantEnvError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

#: Poll this often while a launch waits for `running`, and this often to notice a machine that has ended.
_EAGER_S = 0.05
_IDLE_S = 2.0
#: And this often while a caller waits for the end of a machine, which is not measured.
_GONE_S = 0.25
_MAX_BACKOFF_S = 5.0

_ENDED = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


@dataclass(frozen=True)
class Running:
    """First sight of `running`; it began at most ``resolution_ns`` earlier."""

    seen_ns: int
    resolution_ns: int


class MachineEnded(InstantEnvError):
    """The machine ended by itself. ``code`` is EC2's StateReason: ``Server.SpotInstanceTermination``."""

    def __init__(self, state: str, code: str, message: str) -> None:
        super().__init__(f"the machine is {state}: {code or 'no reason given'} {message}".strip())
        self.code = code


class Watched:
    """One machine under watch. The futures fail with MachineEnded when the machine ends.

    ``private``: its private address is the one that counts; else ``address`` fails with NoPublicAddress when
    there is none for ADDRESS_TIMEOUT_S after `running`.
    """

    def __init__(
        self, instance_id: str, since_ns: int, *, restarted: bool = False, private: bool = False
    ) -> None:
        loop = asyncio.get_running_loop()
        self.instance_id = instance_id
        self.address: asyncio.Future[str] = loop.create_future()
        self.running: asyncio.Future[Running] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        """Never has a result: it fails when the machine ends, for waiting on beside something else."""
        self.zone = ""
        self._not_running_ns = since_ns
        self._may_be_stopped = restarted
        self._private = private

    @property
    def is_settled(self) -> bool:
        """Whether everything is known of it that a launch waits for."""
        return self.running.done() and self.address.done()

    def see(self, instance: InstanceTypeDef, asked_ns: int, answered_ns: int) -> None:
        """Evaluate one description; ``asked_ns`` is when the request went out."""
        state = instance["State"]["Name"]
        self.zone = instance.get("Placement", {}).get("AvailabilityZone", self.zone)
        if state == "stopped" and self._may_be_stopped:  # DescribeInstances is behind StartInstances
            self._not_running_ns = asked_ns
            return
        self._may_be_stopped = False
        if state in _ENDED:
            reason = instance.get("StateReason", {})
            error = MachineEnded(state, reason.get("Code", ""), reason.get("Message", ""))
            for future in (self.address, self.running, self.ended):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # not everybody looks at each of them
            return
        if state != "running":
            self._not_running_ns = asked_ns
        elif not self.running.done():
            self.running.set_result(Running(answered_ns, answered_ns - self._not_running_ns))
        self._see_address(address_of(instance, private=self._private), answered_ns)

    def _see_address(self, address: str, answered_ns: int) -> None:
        if self.address.done():
            return
        if address:
            self.address.set_result(address)
        elif self.running.done() and answered_ns - self.running.result().seen_ns > ADDRESS_TIMEOUT_S * 1e9:
            self.address.set_exception(NoPublicAddress(self.instance_id))
            self.address.exception()  # a launch that knows the address by itself does not look


class Watcher:
    """The shared poll: ``async with Watcher(cloud) as watcher: watched = watcher.follow(id, since_ns)``."""

    def __init__(self, cloud: Cloud, *, eager_s: float = _EAGER_S, idle_s: float = _IDLE_S) -> None:
        self._cloud = cloud
        self._eager_s = eager_s
        self._idle_s = idle_s
        self._gone_s = min(_GONE_S, idle_s)
        self._backoff_s = 0.0
        self._watched: dict[str, Watched] = {}
        self._ending: dict[str, asyncio.Future[None]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.polls = 0
        self.last_error = ""
        """What EC2 answered to the newest poll that failed, for the account of an attempt that timed out."""

    async def __aenter__(self) -> Watcher:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def follow(self, instance_id: str, since_ns: int, *, restarted: bool = False) -> Watched:
        """Watch a machine that was launched at ``since_ns`` (``time.monotonic_ns()``).

        ``restarted``: it was stopped before, so `stopped` is no end until another state was seen.
        """
        watched = Watched(
            instance_id, since_ns, restarted=restarted, private=self._cloud.settings.ssh_private
        )
        self._watched[instance_id] = watched
        self._changed.set()
        return watched

    async def until_gone(self, instance_id: str, timeout_s: float) -> None:
        """Wait for the end of a machine that is being terminated. Raises TimeoutError."""
        end = self._ending.setdefault(instance_id, asyncio.get_running_loop().create_future())
        self._changed.set()
        try:
            await asyncio.wait_for(end, timeout_s)
        finally:
            self._ending.pop(instance_id, None)

    def forget(self, instance_id: str) -> None:
        self._watched.pop(instance_id, None)

    def interval_s(self) -> float:
        """Short while a launch waits for `running` or an address, then long; never less than the back-off."""
        eager = any(not watched.is_settled for watched in self._watched.values())
        usual_s = self._eager_s if eager else self._gone_s if self._ending else self._idle_s
        return max(usual_s, self._backoff_s)

    async def _run(self) -> None:
        while True:
            if not self._watched and not self._ending:
                self._changed.clear()
                await self._changed.wait()
            started = time.monotonic()
            await self._poll()
            self._changed.clear()
            pause_s = max(0.0, started + self.interval_s() - time.monotonic())
            try:
                # A new launch does not wait for the idle interval to pass, but it does wait for a back-off.
                await asyncio.wait_for(self._wake(), pause_s)
            except TimeoutError:
                continue

    async def _wake(self) -> None:
        await asyncio.sleep(self._backoff_s)
        await self._changed.wait()

    async def _poll(self) -> None:
        ids = list(self._watched | self._ending)
        self.polls += 1
        try:
            asked_ns, answered_ns, instances = await asyncio.to_thread(self._describe, ids)
        except ClientError as error:
            self._fail(f"{error_code(error)}: {error}", throttled=error_code(error) in THROTTLING)
            return
        except BotoCoreError as error:
            self._fail(str(error), throttled=False)
            return
        self._backoff_s = self._backoff_s / 2 if self._backoff_s > self._eager_s else 0.0
        for instance in instances:
            if watched := self._watched.get(instance["InstanceId"]):
                watched.see(instance, asked_ns, answered_ns)
            ending = self._ending.get(instance["InstanceId"])
            if ending is not None and not ending.done() and instance["State"]["Name"] == "terminated":
                ending.set_result(None)

    def _fail(self, message: str, *, throttled: bool) -> None:
        self.last_error = message
        floor_s = 0.5 if throttled else 0.2
        self._backoff_s = min(_MAX_BACKOFF_S, max(floor_s, self._backoff_s * 2))

    def _describe(self, ids: Sequence[str]) -> tuple[int, int, list[InstanceTypeDef]]:
        """One poll. The instants are taken in the worker thread: the event loop's lag is not in them."""
        asked_ns = time.monotonic_ns()
        answer = self._cloud.ec2_polls.describe_instances(
            Filters=[{"Name": "instance-id", "Values": list(ids)}]
        )
        answered_ns = time.monotonic_ns()
        return asked_ns, answered_ns, [i for r in answer["Reservations"] for i in r["Instances"]]
