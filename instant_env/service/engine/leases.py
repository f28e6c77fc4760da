"""Leases from the request to the login: claim or launch, follow, try again, extend, and be ended in time.

Rows come before resources. What EC2 has to know of a lease that came from a pool is written after the answer:
the machine itself knows its end from the hand-over on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from instant_env.cloud.session import CloudError
from instant_env.service.engine.context import Context, Happening
from instant_env.service.engine.endings import Endings
from instant_env.service.engine.fleet import Delivered, MachineFailed
from instant_env.service.engine.pools import Pools
from instant_env.service.engine.selection import Selector, sample_of
from instant_env.service.operations import Code, Refusal
from instant_env.service.records import (
    EndReason,
    EventKind,
    Idempotency,
    Lease,
    LeaseRequest,
    LeaseState,
    Machine,
    MachineState,
    Source,
    Timing,
    Token,
)
from instant_env.service.store.protocol import (
    Admission,
    Conflict,
    IdempotencyMismatch,
    Limits,
    PoolEmpty,
    QuotaExceeded,
)

#: The machine's own end is the promise and this: it looks at its tag every five seconds.
TAG_MARGIN = timedelta(seconds=30)
#: How many machines are tried for one lease.
_ATTEMPTS_MAX = 3
#: Before these times to the end, whoever watches is warned.
_WARNINGS_S = (600, 60)
#: So close to its end a lease is not extended any more: the machine may be looking at its tag already.
_TOO_LATE = timedelta(seconds=10)
_TAG_RETRY_S = (0.2, 1.0, 3.0, 10.0)
_ASLEEP = frozenset({"warm-stopped", "warm-hibernated"})
#: What host keys are known by.
CONSOLE, FIRST_CONTACT = "console", "first-contact"


@dataclass
class _Work:
    """One lease on its way: its task, and when its request came."""

    t0_ns: int
    task: asyncio.Task[None] | None = None


class Leases:
    """All leases of the service."""

    def __init__(self, context: Context, endings: Endings, pools: Pools, selector: Selector) -> None:
        self._context = context
        self._endings = endings
        self._pools = pools
        self._selector = selector
        self._works: dict[str, _Work] = {}
        self._warned: set[tuple[str, int]] = set()
        self._left_alone: set[str] = set()
        self._ends: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _end_of(self, lease_id: str) -> asyncio.Lock:
        """Held while a lease's end is moved or its tag is written: EC2 may answer an earlier call later, and
        an end that was replaced must not come over the one that was promised since."""
        return self._ends.setdefault(lease_id, asyncio.Lock())

    async def take(
        self, token: Token, request: LeaseRequest, limits: Limits, idempotency: Idempotency | None
    ) -> Admission:
        """Admit a request and set it to work. Raises Refusal."""
        context = self._context
        t0_ns = time.monotonic_ns()
        candidates = await self._selector.candidates(request, await self._pools.offers())
        if not candidates:
            known = None
            if idempotency is not None:
                known = await self._known(token, idempotency)
            if known is not None:
                return Admission(known, None, replayed=True)
            raise self._nothing_for(request)
        try:
            admission = await context.db(
                context.store.admit, token, request, candidates,
                limits=limits, idempotency=idempotency, now=context.now(),
            )  # fmt: skip
        except QuotaExceeded as error:
            raise Refusal(
                Code.QUOTA, error.message, hint=error.hint, limit=error.value, retry_after_s=30
            ) from error
        except IdempotencyMismatch as error:
            raise Refusal(Code.IDEMPOTENCY_MISMATCH, error.message, hint=error.hint) from error
        except PoolEmpty as error:
            self._pools.count(request, None)
            raise Refusal(
                Code.POOL_EMPTY, f"no machine of {request.technique} is ready",
                hint="ask again later, or allow another technique by fallback", retry_after_s=5,
            ) from error  # fmt: skip
        if not admission.replayed:
            machine = admission.machine
            self._pools.count(request, machine.pool if machine else None)
            self._pools.kick()
            self._set_to_work(admission.lease, machine, t0_ns)
        return admission

    async def _known(self, token: Token, idempotency: Idempotency) -> Lease | None:
        context = self._context
        try:
            return await context.db(context.store.idempotent_lease, token, idempotency, now=context.now())
        except IdempotencyMismatch as error:
            raise Refusal(Code.IDEMPOTENCY_MISMATCH, error.message, hint=error.hint) from error

    def _nothing_for(self, request: LeaseRequest) -> Refusal:
        missing = self._context.catalogue.missing.get((request.technique, request.arch))
        if missing:
            return Refusal(Code.UNSUPPORTED_TECHNIQUE, missing)
        return Refusal(
            Code.UNSUPPORTED_TECHNIQUE,
            f"{request.technique} is not to be had for {request.instance_type} ({request.arch}, "
            f"{request.market})",
            hint="see GET /v1/techniques",
        )

    def _set_to_work(self, lease: Lease, machine: Machine | None, t0_ns: int) -> None:
        work = self._works[lease.id] = _Work(t0_ns)
        work.task = self._context.spawn(self._carry(lease, machine, t0_ns), f"lease {lease.id}")
        work.task.add_done_callback(lambda _: self._works.pop(lease.id, None))

    async def _carry(self, lease: Lease, machine: Machine | None, t0_ns: int) -> None:
        """Until the lease is ready or has failed."""
        deadline_s = self._context.monotonic() + self._context.settings.launch_timeout_s
        failed_cold: set[str] = set()
        while True:
            begun_ns = time.monotonic_ns()
            try:
                async with asyncio.timeout(max(0.0, deadline_s - self._context.monotonic())):
                    delivered = await self._deliver(lease, machine, t0_ns)
            except MachineFailed as error:
                failure = error
            except TimeoutError:
                limit_s = self._context.settings.launch_timeout_s
                failure = MachineFailed(f"nobody could log in within {limit_s} s")
            except Conflict:
                return  # ended by somebody meanwhile, who sees to the machine
            else:
                await self._ready(lease.id, delivered)
                return
            self._context.metrics.launch_failed(lease.technique)
            self._add_sample(lease, (time.monotonic_ns() - begun_ns) / 1e6, ok=False)
            self._context.log.warning(
                "a machine came to nothing", lease_id=lease.id, technique=lease.technique, error=str(failure)
            )
            again = await self._again(lease, failure, deadline_s, failed_cold)
            if again is None:
                return
            lease, machine = again.lease, again.machine

    async def _deliver(self, lease: Lease, machine: Machine | None, t0_ns: int) -> Delivered:
        context = self._context

        async def notice(kind: EventKind, data: Mapping[str, Any]) -> None:
            await self._note(lease.id, kind, data)

        # The promise counts from ready, which is later than now by as long as this takes at most.
        latest = context.now() + timedelta(seconds=context.settings.launch_timeout_s + lease.request.ttl_s)
        ends_at = (latest + TAG_MARGIN).replace(microsecond=0)
        if machine is None:
            return await self._launch(lease, t0_ns, ends_at, notice)
        _check_leased(machine)
        if machine.technique in _ASLEEP:
            return await context.fleet.start(machine, lease, t0_ns, ends_at, notice)
        return await context.fleet.hand_over(machine, lease, t0_ns, ends_at, notice)

    async def _launch(self, lease: Lease, t0_ns: int, ends_at: datetime, notice: Any) -> Delivered:
        context = self._context
        request = lease.request
        offer = context.catalogue.offers.get((lease.technique, request.arch, request.instance_type))
        if offer is None:
            raise MachineFailed(f"there is no image for {lease.technique} any more")
        machine = await self._machine_row(lease, offer.image_id, ends_at)

        async def named(instance_id: str) -> None:
            await context.amend_machine(machine.id, lambda row: replace(row, instance_id=instance_id))
            self._pools.launch_answered(machine.id)

        self._pools.launch_ahead(machine.id)
        try:
            return await context.fleet.launch(offer, machine, lease, t0_ns, notice, named)
        finally:
            self._pools.launch_answered(machine.id)

    async def _machine_row(self, lease: Lease, image_id: str, ends_at: datetime) -> Machine:
        """The row of a machine that is to be launched; the one that there is, after a restart. Its id follows
        from the lease and the attempt, so a restart cannot make another one."""
        context = self._context
        machine_id = f"mc-{lease.id}-{lease.attempt}"
        machine = await context.db(context.store.machine, machine_id)
        if machine is None:
            machine = self._new_machine(machine_id, lease, image_id, ends_at)
            await context.db(context.store.add_machine, machine)

        def change(row: Lease) -> Lease | None:
            if row.state is not LeaseState.PROVISIONING:
                return None
            return row if row.machine_id == machine_id else replace(row, machine_id=machine_id)

        changed = await context.amend_lease(lease.id, change)
        if changed is None or changed.machine_id != machine_id:
            await self._endings.end_machine(machine_id, "its lease was ended before it was launched")
            raise Conflict(f"lease {lease.id} is not provisioning any more")
        _check_leased(machine)
        return machine

    def _new_machine(self, machine_id: str, lease: Lease, image_id: str, ends_at: datetime) -> Machine:
        return Machine(
            id=machine_id,
            state=MachineState.LEASED,
            technique=lease.technique,
            arch=lease.request.arch,
            instance_type=lease.request.instance_type,
            image_id=image_id,
            market=lease.request.market,
            client_token=machine_id,
            created_at=self._context.now(),
            expires_at=ends_at,
            lease_id=lease.id,
            usd_per_hour=lease.usd_per_hour,
        )

    async def _note(self, lease_id: str, kind: EventKind, data: Mapping[str, Any]) -> None:
        """Write what happened on the way into the lease's row and its events."""

        def change(lease: Lease) -> Lease | None:
            if lease.state is not LeaseState.PROVISIONING:
                return None
            known = {key: data[key] for key in ("instance_id", "address", "username") if key in data}
            marks = {key: data[key] for key in ("t1_ms", "t2_ms", "t3_ms") if key in data}
            return replace(lease, timing=replace(lease.timing, **marks), **known)

        await self._context.amend_lease(lease_id, change, (kind, data))

    async def _ready(self, lease_id: str, delivered: Delivered) -> None:
        context = self._context
        machine, now = delivered.machine, context.now()

        def change(lease: Lease) -> Lease | None:
            if lease.state is not LeaseState.PROVISIONING:
                return None
            return replace(
                lease,
                state=LeaseState.READY,
                instance_id=machine.instance_id,
                address=machine.address,
                port=context.ssh_port,
                username=machine.username,
                host_keys=machine.host_keys,
                host_keys_known_by=delivered.host_keys_known_by,
                market=machine.market,
                timing=_merged(lease.timing, delivered.timing),
                ready_at=now,
                expires_at=now + timedelta(seconds=lease.request.ttl_s),
            )

        event: Happening = (EventKind.READY, {"t4_ms": delivered.timing.t4_ms, "address": machine.address})
        lease = await context.amend_lease(lease_id, change, event)
        if lease is None or lease.state is not LeaseState.READY:
            return  # ended meanwhile: whoever ended it sees to the machine
        self._context.log.info(
            "lease is ready", lease_id=lease_id, instance_id=machine.instance_id, technique=lease.technique,
            t4_ms=delivered.timing.t4_ms,
        )  # fmt: skip
        await context.amend_machine(machine.id, lambda row: _as_delivered(row, machine))
        context.metrics.ready(lease.technique, lease.source or "", lease.timing)
        if delivered.timing.t4_ms is not None:
            self._add_sample(lease, delivered.timing.t4_ms, ok=True)
        if delivered.host_keys_known_by != CONSOLE:
            context.spawn(self._know_host_keys(lease.id, machine), f"host keys {lease.id}")
        await self._promise(lease)

    async def _know_host_keys(self, lease_id: str, machine: Machine) -> None:
        """A cold machine's console has its keys some time after the first connection has shown one."""
        context = self._context
        try:
            keys = await context.fleet.console_host_keys(machine)
        except MachineFailed as error:
            self._context.log.warning("host keys are not confirmed", lease_id=lease_id, error=str(error))
            return
        await context.amend_machine(machine.id, lambda row: replace(row, host_keys=keys))
        await context.amend_lease(
            lease_id, lambda row: replace(row, host_keys=keys, host_keys_known_by=CONSOLE)
        )

    async def _promise(self, lease: Lease) -> None:
        """Write the promise into the tags, and again until EC2 takes it. Until then the machine's own mark
        holds, or its tag says a later time."""
        for pause_s in (*_TAG_RETRY_S, None):
            try:
                async with self._end_of(lease.id):
                    await self._write_promise(lease.id)
            except CloudError as error:
                self._context.log.warning(
                    "tagging failed; it is repeated", lease_id=lease.id, error=str(error)
                )
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            else:
                return

    async def _write_promise(self, lease_id: str) -> None:
        """The end that the row has now. Raises CloudError."""
        context = self._context
        lease = await context.db(context.store.lease, lease_id)
        if lease is None or lease.expires_at is None or lease.state is not LeaseState.READY:
            return
        machine = await context.db(context.store.machine, lease.machine_id)
        if machine is None:
            return
        ends_at = (lease.expires_at + TAG_MARGIN).replace(microsecond=0)
        await context.fleet.promise(machine, lease, ends_at)

    async def _again(
        self, lease: Lease, failure: MachineFailed, deadline_s: float, failed_cold: set[str]
    ) -> Admission | None:
        """Put the machine away and claim another one; None when the lease has ended or failed."""
        context = self._context
        current = await context.db(context.store.lease, lease.id)
        if current is None or current.state is not LeaseState.PROVISIONING:
            return None
        if current.machine_id:
            await self._put_away(current.machine_id, failure)
        if lease.source is Source.COLD:
            failed_cold.add(lease.technique)
        out_of_time = context.monotonic() >= deadline_s
        if not out_of_time and current.attempt < _ATTEMPTS_MAX:
            candidates = await self._selector.candidates(
                lease.request, await self._pools.offers(), without=frozenset(failed_cold)
            )
            try:
                admission = await context.db(context.store.claim, lease.id, candidates, now=context.now())
            except PoolEmpty:
                pass
            except Conflict:
                return None
            else:
                context.bulletin.post(lease.id)
                return admission
        await self._endings.end_lease(lease.id, EndReason.FAILED_TO_START, str(failure))
        return None

    async def _put_away(self, machine_id: str, failure: MachineFailed) -> None:
        """End it, whether or not a key was on it: a machine that failed once is not offered again."""
        if not failure.taken:
            await self._endings.end_machine(machine_id, str(failure))
            return
        # Its tags say whose it is, and until when; the row only says that it is no pool's any more.
        await self._context.amend_machine(
            machine_id, lambda row: replace(row, state=MachineState.ENDED, detail=str(failure))
        )

    def _add_sample(self, lease: Lease, ms: float, *, ok: bool) -> None:
        source = lease.source or Source.COLD
        sample = sample_of(lease.request, lease.technique, source, self._context.now(), ms, ok=ok)
        self._selector.learn(sample)

    # the end

    async def end(self, lease_id: str, reason: EndReason, detail: str = "") -> Lease | None:
        """Begin to end it; what was on its way is given up."""
        lease = await self._endings.end_lease(lease_id, reason, detail)
        if lease is None or lease.reason is None:
            return lease
        work = self._works.get(lease_id)
        if work is not None and work.task is not None and work.task is not asyncio.current_task():
            work.task.cancel()
        return lease

    async def set_ttl(self, lease: Lease, ttl_s: int, *, shorten: bool) -> Lease:
        """Later: tag, then row. Earlier: row, then tag. So nobody ends it before what was promised."""
        async with self._end_of(lease.id):
            # As it is now: another change of its end may have gone before.
            current = await self._context.db(self._context.store.lease, lease.id)
            changed, is_later = await self._set_ttl(current or lease, ttl_s, shorten=shorten)
        if not is_later:
            await self._promise(changed)
        return changed

    async def _set_ttl(self, lease: Lease, ttl_s: int, *, shorten: bool) -> tuple[Lease, bool]:
        """Whether it ends later than before; if not, its tag is still to be written."""
        context = self._context
        now = context.now()
        wanted = now + timedelta(seconds=ttl_s)
        if lease.state is not LeaseState.READY or lease.expires_at is None or lease.ready_at is None:
            raise self._not_ready(lease)
        if lease.expires_at - now < _TOO_LATE:
            raise Refusal(Code.LEASE_ENDED, f"{lease.id} ends in less than ten seconds: that is too late")
        latest = lease.ready_at + timedelta(seconds=context.settings.max_lifetime_s)
        if wanted > latest:
            raise Refusal(
                Code.TTL_OUT_OF_RANGE,
                f"a lease lives at most {context.settings.max_lifetime_s} s: this one until "
                f"{latest:%Y-%m-%dT%H:%M:%SZ}",
                limit=max(0.0, (latest - now).total_seconds()),
            )
        if wanted < lease.expires_at and not shorten:
            raise Refusal(
                Code.TTL_OUT_OF_RANGE, f"{lease.id} would end earlier than promised",
                hint='say so: "shorten": true', limit=(lease.expires_at - now).total_seconds(),
            )  # fmt: skip
        machine = await context.db(context.store.machine, lease.machine_id)
        if machine is None:
            raise Refusal(Code.LEASE_ENDED, f"{lease.id} has no machine any more")
        ends_at = (wanted + TAG_MARGIN).replace(microsecond=0)
        if wanted < lease.expires_at:
            return await self._move_end(lease.id, wanted), False
        try:
            await context.fleet.promise(machine, lease, ends_at)
        except CloudError as error:
            raise Refusal(
                Code.UNAVAILABLE, f"EC2 did not take the new end: {error.message}", retry_after_s=2
            ) from error
        return await self._move_end(lease.id, wanted), True

    async def _move_end(self, lease_id: str, expires_at: datetime) -> Lease:
        def change(row: Lease) -> Lease | None:
            return replace(row, expires_at=expires_at) if row.state is LeaseState.READY else None

        event: Happening = (EventKind.EXTENDED, {"expires_at": expires_at.isoformat()})
        changed = await self._context.amend_lease(lease_id, change, event)
        if changed is None or changed.state is not LeaseState.READY:
            raise Refusal(Code.LEASE_ENDED, f"{lease_id} has ended meanwhile")
        self._warned = {(one, s) for one, s in self._warned if one != lease_id}
        return changed

    @staticmethod
    def _not_ready(lease: Lease) -> Refusal:
        if lease.state.is_terminal or lease.state is LeaseState.ENDING:
            return Refusal(Code.LEASE_ENDED, f"{lease.id} is {lease.state}")
        return Refusal(Code.CONFLICT, f"{lease.id} is not ready yet: its time begins then", retry_after_s=1)

    async def tick(self) -> None:
        """End what is due, warn of what soon will be, take up what nobody works on."""
        context = self._context
        now = context.now()
        leases = await context.db(context.store.live_leases)
        await self._take_up(leases)
        for lease in leases:
            if lease.state is not LeaseState.READY or lease.expires_at is None:
                continue
            left_s = (lease.expires_at - now).total_seconds()
            if left_s <= 0:
                await self.end(lease.id, EndReason.TTL)
                continue
            await self._warn(lease, left_s)

    async def _take_up(self, leases: Sequence[Lease]) -> None:
        """Leases on their way whose work ended by an error, as of a disk that was full for a moment. The
        second look counts: at the first, the work may have ended since the rows were read."""
        alone = {
            lease.id
            for lease in leases
            if lease.state in (LeaseState.PROVISIONING, LeaseState.REQUESTED) and lease.id not in self._works
        }
        for lease in leases:
            if lease.id in alone & self._left_alone:
                self._context.log.warning("a lease is taken up again", lease_id=lease.id)
                await self._resume(lease)
        self._left_alone = alone - self._left_alone

    async def _warn(self, lease: Lease, left_s: float) -> None:
        for before_s in _WARNINGS_S:
            known = (lease.id, before_s) in self._warned
            if left_s <= before_s < lease.request.ttl_s and not known:
                self._warned.add((lease.id, before_s))
                await self._context.amend_lease(
                    lease.id, lambda row: row, (EventKind.EXPIRING, {"seconds": round(left_s)})
                )

    async def resume(self) -> None:
        """After a restart: carry on with what was on its way, and write promises that may be missing.

        t0 lies before the restart, so the timings of such a lease are taken from the row's clock."""
        context = self._context
        for lease in await context.db(context.store.live_leases):
            if lease.state is LeaseState.READY:
                context.spawn(self._promise(lease), f"promise {lease.id}")
            elif lease.state in (LeaseState.PROVISIONING, LeaseState.REQUESTED):
                await self._resume(lease)

    async def _resume(self, lease: Lease) -> None:
        context = self._context
        age_s = (context.now() - lease.created_at).total_seconds()
        t0_ns = time.monotonic_ns() - round(age_s * 1e9)
        machine = None
        if lease.source is Source.POOL and lease.machine_id:
            machine = await context.db(context.store.machine, lease.machine_id)
        self._set_to_work(lease, machine, t0_ns)


def _check_leased(machine: Machine) -> None:
    """Raises MachineFailed for a machine that an earlier process had begun to put away when it was killed."""
    if machine.state is not MachineState.LEASED:
        raise MachineFailed(f"{machine.instance_id or machine.id} was being ended when the service stopped")


def _as_delivered(row: Machine, machine: Machine) -> Machine | None:
    """The row with what is known now; None when it says so already, or is over."""
    known = replace(machine, version=row.version)
    return known if row.state is MachineState.LEASED and known != row else None


def _merged(before: Timing, after: Timing) -> Timing:
    """What was delivered, with earlier marks where it says nothing."""
    values = {
        name: getattr(after, name) if getattr(after, name) is not None else getattr(before, name)
        for name in ("t1_ms", "t2_ms", "t3_ms", "t4_ms")
    }
    return Timing(**values, t4_by=after.t4_by, resolution_ms=after.resolution_ms)
