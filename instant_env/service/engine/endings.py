"""End machines for certain: ask EC2, ask again, and believe it only when EC2 says that they are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from instant_env.cloud.session import CloudError
from instant_env.service.engine.context import Context
from instant_env.service.engine.fleet import Sighting
from instant_env.service.records import EndReason, EventKind, Lease, LeaseState, Machine, MachineState

#: TerminateInstances is repeated after this, until the machine is gone.
_REPEAT_S = 10.0
#: A machine that EC2 has just been asked for may be missing in its listings for this long (EC2 API reference,
#: "Eventual consistency" names no time; a minute or two is what users see).
ABSENCE_MEANS_GONE = timedelta(minutes=2)


class Endings:
    """Machines that are ending. Their rows say so, so a restart carries on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asked_s: dict[str, float] = {}

    async def end_lease(self, lease_id: str, reason: EndReason, detail: str = "") -> Lease | None:
        """Begin to end a lease and its machine. Twice is the same; the first reason stays. By its time it is
        only ended when that has come: it may have been extended since somebody looked."""
        context = self._context
        failed = reason is EndReason.FAILED_TO_START

        def change(lease: Lease) -> Lease | None:
            if lease.state.is_terminal or lease.state is LeaseState.ENDING:
                return None
            if reason is EndReason.TTL and lease.expires_at and lease.expires_at > context.now():
                return None
            if failed:
                return replace(
                    lease, state=LeaseState.FAILED, reason=reason, detail=detail, ended_at=context.now()
                )
            return replace(lease, state=LeaseState.ENDING, reason=reason, detail=detail)

        kind = EventKind.FAILED if failed else EventKind.ENDING
        lease = await context.amend_lease(lease_id, change, (kind, {"reason": reason, "detail": detail}))
        if lease is None or lease.reason is None:
            return lease
        if lease.reason is reason:
            self._context.log.info("lease is ending", lease_id=lease_id, reason=reason.value, detail=detail)
        if lease.machine_id:
            await self.end_machine(lease.machine_id, detail or reason.value)
        elif lease.state is LeaseState.ENDING:
            await self._close_lease(lease_id)
        return await context.db(context.store.lease, lease_id)

    async def end_machine(self, machine_id: str, detail: str) -> None:
        """Begin to end a machine, whoever has it."""

        def change(machine: Machine) -> Machine | None:
            if machine.state in (MachineState.ENDING, MachineState.ENDED):
                return None
            return replace(machine, state=MachineState.ENDING, detail=detail)

        machine = await self._context.amend_machine(machine_id, change)
        if machine is not None and machine.state is MachineState.ENDING:
            await self.ask(machine)

    async def ask(self, machine: Machine) -> None:
        """Ask EC2 to end a machine whose row is `ending`, at most every ten seconds."""
        context = self._context
        last_s = self._asked_s.get(machine.id)
        if not machine.instance_id or (last_s is not None and context.monotonic() - last_s < _REPEAT_S):
            return
        self._asked_s[machine.id] = context.monotonic()
        try:
            await context.fleet.terminate(machine.instance_id)
        except CloudError as error:
            self._context.log.warning(
                "terminate failed; it is repeated", instance_id=machine.instance_id, error=str(error)
            )
        else:
            context.alarms.pop(f"terminate {machine.instance_id}", None)

    async def tick(self, seen: Mapping[str, Sighting]) -> None:
        """Carry on with what is ending. ``seen``: this service's machines by their machine id."""
        context = self._context
        for lease in await context.db(context.store.live_leases):
            if lease.state is LeaseState.ENDING:
                await self._drive(lease)
        for machine in await context.db(context.store.machines, states=[MachineState.ENDING]):
            sighting = seen.get(machine.id)
            if sighting is None:
                gone = context.now() - machine.created_at > ABSENCE_MEANS_GONE
            else:
                gone = sighting.is_gone
            if gone:
                await self._gone(machine)
            else:
                await self.ask(await self._with_id(machine, sighting))

    async def _drive(self, lease: Lease) -> None:
        """A process that was killed may have written the lease's end, and not yet its machine's, or the
        other way round."""
        machine = await self._context.db(self._context.store.machine, lease.machine_id)
        if machine is None or machine.state is MachineState.ENDED:
            await self._close_lease(lease.id)
        elif machine.state is not MachineState.ENDING:
            await self.end_machine(machine.id, lease.detail or str(lease.reason))

    async def _with_id(self, machine: Machine, sighting: Sighting | None) -> Machine:
        """A launch that was cut off between the request and its answer has no id in its row; the tags of what
        it made came with the request."""
        if machine.instance_id or sighting is None:
            return machine
        changed = await self._context.amend_machine(
            machine.id, lambda row: replace(row, instance_id=sighting.instance_id)
        )
        return changed or machine

    async def _gone(self, machine: Machine) -> None:
        context = self._context
        self._asked_s.pop(machine.id, None)
        await context.amend_machine(
            machine.id,
            lambda row: replace(row, state=MachineState.ENDED) if row.state is MachineState.ENDING else None,
        )
        self._context.log.info("machine is gone", machine_id=machine.id, instance_id=machine.instance_id)
        if machine.lease_id:
            lease = await context.db(context.store.lease, machine.lease_id)
            if lease is not None and lease.machine_id == machine.id:
                await self._close_lease(machine.lease_id)

    async def _close_lease(self, lease_id: str) -> None:
        """Its machine is gone."""
        context = self._context
        lease = await context.db(context.store.lease, lease_id)
        if lease is None or lease.state is not LeaseState.ENDING:
            return
        now = context.now()

        def change(row: Lease) -> Lease | None:
            if row.state is not LeaseState.ENDING:
                return None
            return replace(row, state=LeaseState.ENDED, ended_at=now)

        await context.amend_lease(lease_id, change, (EventKind.ENDED, {"reason": lease.reason}))
        context.metrics.lease_ended(lease.reason)
