"""What the parts of the engine share: store, fleet, settings, clock, the bulletin, the log."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from instant_env.service.engine.executor import DaemonExecutor
from instant_env.service.engine.fleet import Catalogue, Fleet
from instant_env.service.engine.metrics import Metrics
from instant_env.service.logs import Logger
from instant_env.service.records import EventKind, Lease, Machine
from instant_env.service.store.protocol import Conflict, Store
from instant_env.service_settings import ServiceSettings

P = ParamSpec("P")
T = TypeVar("T")
Happening = tuple[EventKind, Mapping[str, Any]]

#: A row that changes under us so often is not changing: the change breaks a rule of the store.
_TRIES = 20


class Bulletin:
    """Wakes those who wait for a lease to change. A wake says nothing but "look again"."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def post(self, lease_id: str) -> None:
        for future in self._waiting.pop(lease_id, ()):
            if not future.done():
                future.set_result(None)

    def post_all(self) -> None:
        for lease_id in list(self._waiting):
            self.post(lease_id)

    def waiter(self, lease_id: str) -> asyncio.Future[None]:
        """Get it before the look, so that no change falls between look and wait."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(lease_id, set()).add(future)
        return future

    def forget(self, lease_id: str, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(lease_id)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[lease_id]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Context:
    """One per service. ``catalogue`` is replaced whole when it was looked up again."""

    store: Store
    fleet: Fleet
    settings: ServiceSettings
    id: str
    """Of this control plane: in the tags of all its machines."""
    metrics: Metrics
    log: Logger
    ssh_port: int
    """Of all its machines; in localec2 a host may have to take another."""
    now: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = time.monotonic
    catalogue: Catalogue = field(default_factory=lambda: Catalogue({}, {}, {}))
    bulletin: Bulletin = field(default_factory=Bulletin)
    closing: bool = False
    alarms: dict[str, str] = field(default_factory=dict)
    """What is wrong now, by check: shown by /readyz and the page."""
    _store_threads: DaemonExecutor = field(default_factory=lambda: DaemonExecutor(2, "store"))
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def db(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store in one of its threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._store_threads, functools.partial(method, *args, **kwargs))

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task that is kept, and whose unforeseen end is logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error(
                "a task ended by an error that nobody foresaw", task=task.get_name(), exc_info=error
            )

    async def cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def amend_lease(
        self,
        lease_id: str,
        change: Callable[[Lease], Lease | None],
        *events: Happening,
    ) -> Lease | None:
        """Read, change, write, again when somebody else wrote in between. ``change`` returns None to leave
        it. Returns the lease as it then is; None when there is none. Raises Conflict for a change that the
        store does not take."""
        for _ in range(_TRIES):
            lease = await self.db(self.store.lease, lease_id)
            if lease is None:
                return None
            changed = change(lease)
            if changed is None:
                return lease
            try:
                return await self._write_lease(changed, events)
            except Conflict as error:
                conflict = error
        raise conflict

    async def _write_lease(self, lease: Lease, events: Sequence[Happening]) -> Lease:
        written = await self.db(self.store.change_lease, lease, events=events, now=self.now())
        self.bulletin.post(lease.id)
        return written

    async def amend_machine(
        self, machine_id: str, change: Callable[[Machine], Machine | None]
    ) -> Machine | None:
        """As :meth:`amend_lease`."""
        for _ in range(_TRIES):
            machine = await self.db(self.store.machine, machine_id)
            if machine is None:
                return None
            changed = change(machine)
            if changed is None:
                return machine
            try:
                return await self.db(self.store.change_machine, changed)
            except Conflict as error:
                conflict = error
        raise conflict
