"""Compare what EC2 has with what the rows say, again and again: the third net under every promise.

What the tags and EC2 say wins over a row. A machine that has ended takes its lease along, with EC2's reason.
A machine without a row ends after two sightings, but for one that its tags promise to somebody: that gets its
row back. A sweep that would end many at a time ends only what has expired, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from instant_env.cloud.instances import Market
from instant_env.cloud.session import CloudError
from instant_env.cloud.tags import Role
from instant_env.public_key import PublicKey
from instant_env.service.engine.context import Context
from instant_env.service.engine.endings import ABSENCE_MEANS_GONE, Endings
from instant_env.service.engine.fleet import Sighting
from instant_env.service.engine.leases import TAG_MARGIN, Leases
from instant_env.service.engine.pools import Pools
from instant_env.service.records import (
    EndReason,
    Lease,
    LeaseRequest,
    LeaseState,
    Machine,
    MachineState,
    Source,
)

#: A difference of clocks that a promise's margins cover, with the second that HTTP's Date is rounded to.
_SKEW_MAX_S = 10.0
#: A machine that was described before may be missing from one answer; after this long it is gone.
_MISSING_S = 10.0
#: Between the two sightings that a machine without a row needs before it is ended.
_ORPHAN_S = 120.0
#: An expired machine without a row is ended this long after its tag: the machine itself was first.
_OVERDUE = timedelta(seconds=120)
#: The guard against mass kills: so many, or such a share of all that is seen.
_MANY, _SHARE = 5, 0.2
_INTERRUPTED = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")


class Tower:
    """One look at EC2 per :meth:`tick`, for all who need it."""

    def __init__(self, context: Context, endings: Endings, leases: Leases, pools: Pools) -> None:
        self._context = context
        self._endings = endings
        self._leases = leases
        self._pools = pools
        self._orphans_since_s: dict[str, float] = {}
        self._missing_since_s: dict[str, float] = {}
        self._success_s = context.monotonic()

    def age_s(self) -> float:
        """How long ago EC2 last answered; right after the start it counts as just now."""
        return self._context.monotonic() - self._success_s

    async def tick(self) -> None:
        """Raises nothing that EC2 can cause: what cannot be seen now is looked at next time."""
        context = self._context
        asked_at = context.now()
        try:
            sightings = await context.fleet.sightings()
        except CloudError as error:
            context.alarms["cloud"] = error.message
            return
        context.alarms.pop("cloud", None)
        self._compare_clocks()
        self._success_s = context.monotonic()
        context.metrics.sweep.set(context.now().timestamp())
        seen = {sighting.machine_id: sighting for sighting in sightings if sighting.machine_id}
        await self._endings.tick(seen)
        await self._check_rows(seen, asked_at)
        await self._check_strays(sightings)

    def _compare_clocks(self) -> None:
        """Promises are times of day: of a clock that is wrong, machines would end too early or too late."""
        skew_s = self._context.fleet.clock_skew_s
        if abs(skew_s) <= _SKEW_MAX_S:
            self._context.alarms.pop("clock", None)
            return
        ahead = "ahead of" if skew_s > 0 else "behind"
        self._context.alarms["clock"] = f"this host's clock is {abs(skew_s):.0f} s {ahead} EC2's"

    async def _check_rows(self, seen: Mapping[str, Sighting], asked_at: datetime) -> None:
        """Rows whose machine has ended by itself, or whose lease is over or was never written."""
        context = self._context
        machines = await context.db(context.store.machines)
        # In this order: a lease is there before its machine's row is leased.
        live = {lease.id for lease in await context.db(context.store.live_leases)}
        missing: dict[str, float] = {}
        for machine in machines:
            if machine.state is MachineState.ENDING:
                continue
            sighting = seen.get(machine.id)
            if machine.lease_id and machine.lease_id not in live:
                await self._check_lease(machine, machine.lease_id, sighting)
                continue
            if sighting is None:
                # A row without an id: a launch that was cut off by a restart, or is about to be made.
                young = context.now() - machine.created_at <= ABSENCE_MEANS_GONE
                if young or (not machine.instance_id and machine.state is not MachineState.READY):
                    continue
                since_s = self._missing_since_s.get(machine.id, context.monotonic())
                missing[machine.id] = since_s
                if context.monotonic() - since_s < _MISSING_S:
                    continue
                await self._lost(machine, EndReason.DIED, "EC2 does not know the machine any more", asked_at)
            elif sighting.is_gone or (sighting.state == "stopped" and machine.state is MachineState.LEASED):
                detail = f"the machine is {sighting.state}: {sighting.reason}"
                await self._lost(machine, _reason_of(sighting), detail, asked_at)
        self._missing_since_s = missing

    async def _check_lease(self, machine: Machine, lease_id: str, sighting: Sighting | None) -> None:
        """The lease of a machine is over: its row was written after the lease's end. Or it has no row: it was
        found by its tags, and the service was killed between the two rows."""
        context = self._context
        lease = await context.db(context.store.lease, lease_id)
        if lease is not None and lease.state.is_terminal:
            await self._endings.end_machine(machine.id, "its lease is over")
        elif lease is None and sighting is not None and self._is_somebodys(sighting):
            await context.db(context.store.adopt_lease, self._lease_of(sighting, machine), now=context.now())
        elif lease is None:
            await self._endings.end_machine(machine.id, "nobody knows its lease")

    async def _lost(self, machine: Machine, reason: EndReason, detail: str, asked_at: datetime) -> None:
        context = self._context
        lease = await context.db(context.store.lease, machine.lease_id) if machine.lease_id else None
        if lease is not None and lease.ready_at is not None and lease.ready_at > asked_at:
            return  # it was started, and proven, since EC2 was asked
        self._context.log.warning("a machine ended by itself", machine_id=machine.id, detail=detail)
        if lease is not None and lease.machine_id == machine.id and lease.state is LeaseState.READY:
            # A machine that obeys its own timer is not one that died.
            due = lease.expires_at is not None and context.now() >= lease.expires_at
            await self._leases.end(lease.id, EndReason.TTL if due else reason, "" if due else detail)
        # A launch that is being followed notices by itself, and tries another machine.
        if lease is None or lease.state is not LeaseState.PROVISIONING:
            await self._endings.end_machine(machine.id, detail)
        self._pools.kick()

    async def _check_strays(self, sightings: Sequence[Sighting]) -> None:
        """Machines that no row knows, or whose row says that they are over."""
        context = self._context
        strays = []
        for sighting in sightings:
            if sighting.is_gone:
                continue
            row = (
                await context.db(context.store.machine, sighting.machine_id) if sighting.machine_id else None
            )
            if row is None or row.state is MachineState.ENDED:
                strays.append(sighting)
        now_s = context.monotonic()
        self._orphans_since_s = {
            stray.instance_id: self._orphans_since_s.get(stray.instance_id, now_s) for stray in strays
        }
        doomed = []
        for stray in strays:
            if self._is_somebodys(stray) and not await self._is_over(stray):
                await self._adopt(stray)
            elif now_s - self._orphans_since_s[stray.instance_id] >= _ORPHAN_S or self._is_overdue(stray):
                doomed.append(stray)
        await self._end_strays(doomed, len(sightings))

    def _is_somebodys(self, stray: Sighting) -> bool:
        """An unexpired lease tag is a promise, row or not."""
        expires_at = stray.expires_at
        return stray.role == Role.LEASE and expires_at is not None and expires_at > self._context.now()

    async def _is_over(self, stray: Sighting) -> bool:
        """The lease of its tags has ended by its row. Its machine was taken for gone, because EC2 did not
        list it for a moment."""
        lease = await self._context.db(self._context.store.lease, stray.lease_id)
        return lease is not None and lease.state.is_terminal

    def _is_overdue(self, stray: Sighting) -> bool:
        expires_at = stray.expires_at
        return expires_at is not None and self._context.now() - expires_at > _OVERDUE

    async def _end_strays(self, doomed: Sequence[Sighting], total: int) -> None:
        context = self._context
        if len(doomed) > max(_MANY, _SHARE * total):
            context.alarms["sweep"] = (
                f"{len(doomed)} of {total} machines have no row: was an old store restored? "
                "Only those that have expired are ended"
            )
            doomed = [stray for stray in doomed if self._is_overdue(stray)]
        else:
            context.alarms.pop("sweep", None)
        for stray in doomed:
            self._context.log.warning(
                "a machine without a row is ended", instance_id=stray.instance_id, role=stray.role
            )
            try:
                await context.fleet.terminate(stray.instance_id)
            except CloudError as error:
                self._context.log.warning("terminate failed", instance_id=stray.instance_id, error=str(error))

    async def _adopt(self, stray: Sighting) -> None:
        """Write rows for a lease that the tags know and the store does not, so that it is seen and ended."""
        context = self._context
        lease_id, machine_id = stray.lease_id, stray.machine_id
        if not lease_id or not machine_id or stray.expires_at is None:
            return  # its own timer and the expiry rule end it
        if await context.db(context.store.machine, machine_id) is not None:
            return
        machine = Machine(
            id=machine_id, state=MachineState.LEASED, technique="", arch=stray.arch,
            instance_type=stray.instance_type, image_id=stray.image_id, market=Market.ON_DEMAND,
            client_token=machine_id, created_at=context.now(), expires_at=stray.expires_at,
            lease_id=lease_id, instance_id=stray.instance_id, address=stray.address,
        )  # fmt: skip
        if await context.db(context.store.lease, lease_id) is not None:
            return  # it is over by its row, and will be by its tag
        await context.db(context.store.add_machine, machine)
        await context.db(context.store.adopt_lease, self._lease_of(stray, machine), now=context.now())
        self._context.log.warning(
            "a lease was found again by its tags", lease_id=lease_id, instance_id=stray.instance_id
        )

    def _lease_of(self, stray: Sighting, machine: Machine) -> Lease:
        now = self._context.now()
        expires_at = (stray.expires_at or now) - TAG_MARGIN
        request = LeaseRequest(
            public_key=UNKNOWN_KEY, technique="", arch=stray.arch, instance_type=stray.instance_type,
            market=Market.ON_DEMAND, ttl_s=max(1, round((expires_at - now).total_seconds())),
        )  # fmt: skip
        return Lease(
            id=stray.lease_id, owner=stray.owner, state=LeaseState.READY, request=request, created_at=now,
            source=Source.COLD, machine_id=machine.id, instance_id=stray.instance_id, address=stray.address,
            port=self._context.ssh_port, market=Market.ON_DEMAND, ready_at=now, expires_at=expires_at,
            detail="found by its tags: the store did not know it",
        )  # fmt: skip


def _reason_of(sighting: Sighting) -> EndReason:
    """Why a machine that was not ended by the service is gone."""
    if sighting.by_operator:
        return EndReason.OPERATOR
    return EndReason.SPOT_INTERRUPTED if sighting.reason in _INTERRUPTED else EndReason.DIED


#: Whose a lease is that was found by its tags, nobody knows. All bytes of this key are zero.
UNKNOWN_KEY = PublicKey.parse(
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA unknown"
)
