"""Run planned attempts, at most k at a time: each is a row, and each machine is ended."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncssh
from botocore.exceptions import BotoCoreError, ClientError

from harness import metadata
from harness.plan.experiment import Cell, Experiment, Planned
from harness.plan.prices import Prices, market_of
from harness.results_file import ResultFile, Row
from harness.run import guests
from harness.run.api_calls import ApiCalls
from harness.run.attempt import Attempt
from harness.run.row import row_of
from instant_env.cloud import copies
from instant_env.cloud.handover import HandOver
from instant_env.cloud.instances import LaunchOptions, Market, console_tail, end_run, open_connection
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.launching.places import Place
from instant_env.cloud.launching.refusals import hint_of_code
from instant_env.cloud.rules.names import image_name
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role
from instant_env.errors import InstantEnvError
from instant_env.launch.boot_records import RecordsError, read_boot_records
from instant_env.launch.launcher import Launcher
from instant_env.launch.techniques import (
    LaunchSpec,
    Prepared,
    find_technique,
)
from instant_env.launch.timeline import MarkName, Outcome
from instant_env.progress import Progress
from instant_env.stopping import StopSignals
from instant_env.user_data import UserData

#: Lines of the serial console kept of a machine that did not let us in.
_CONSOLE_LINES = 400


@dataclass(frozen=True)
class Access:
    """How every machine of the run is reached; made once, before the first t0."""

    pair: KeyPair
    key_name: str
    security_group_id: str


@dataclass
class FillStats:
    """What filling the places of one technique took so far."""

    places: int = 0
    machines: int = 0
    seconds: float = 0.0


@dataclass
class AttemptScheduler:
    """Runs planned attempts of one run. ``rows`` are those written so far, ``fillings`` by technique."""

    cloud: Cloud
    experiment: Experiment
    prepared: Mapping[Cell, Prepared]
    run_id: str
    ttl_s: int
    access: Access
    results: ResultFile
    prices: Prices
    max_usd: float | None
    stop: StopSignals
    progress: Progress
    on_row: Callable[[Row], None]
    rows: list[Row] = field(default_factory=list)
    fillings: dict[str, FillStats] = field(default_factory=dict)
    places: Mapping[Cell, Place] = field(default_factory=dict)
    """Where each cell's machines go; EC2's choice for those that are not in it."""
    in_flight: int = 0
    _cpu_from_s: float = 0.0
    _launcher: Launcher | None = None
    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    api_calls: ApiCalls = field(default_factory=ApiCalls)
    root_volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What a root volume of each cell is like, by the cell's label: of its first attempt that is ok."""
    no_spot: str = ""
    """EC2's code since it has refused spot machines for good: what follows is asked for on demand."""
    over_budget: bool = False
    """Whether attempts were left out because they might have cost more than was allowed."""

    async def run(self, planned: Iterable[Planned]) -> None:
        """Run them all. Cancelled, it ends what is in flight first; the run's leftovers are the caller's."""
        slots = asyncio.Semaphore(self.experiment.parallel)
        techniques = {name: find_technique(name) for name in self.experiment.techniques}
        quotas = {
            technique.quota: asyncio.Semaphore(technique.most_in_flight)
            for technique in techniques.values()
            if technique.most_in_flight is not None
        }
        # Different techniques may need the same thing: they share what the account has of it.
        caps = {
            name: quotas[technique.quota]
            for name, technique in techniques.items()
            if technique.most_in_flight is not None
        }
        gate = _Gate(self.experiment.launches_per_s if self.experiment.parallel > 1 else None)

        async def one(item: Planned, launcher: Launcher) -> None:
            try:
                await self._run_one(item, launcher)
            finally:
                slots.release()
                if item.technique in caps:
                    caps[item.technique].release()

        self._cpu_from_s = time.process_time()
        try:
            async with (
                self.api_calls.counting(self.cloud),
                Launcher(self.cloud, timeout_s=self.experiment.timeout_s) as launcher,
                asyncio.TaskGroup() as group,
            ):
                self._launcher = launcher
                for item in planned:
                    if item.technique in caps:
                        await caps[item.technique].acquire()
                    await slots.acquire()
                    if self.stop.received:
                        raise asyncio.CancelledError
                    if not self._affords(item.cell):  # what had this slot before is paid by now
                        self.over_budget = True
                        break
                    # When nothing else is in flight, nothing of the run is alive beside the machine that is
                    # measured.
                    if self.in_flight == 0:
                        await self._end_leftovers()
                    await asyncio.to_thread(open_connection, self.cloud, self.run_id)
                    await gate.wait()
                    self.in_flight += 1
                    self.reserved_usd += self._worst_usd(item.cell)
                    group.create_task(one(item, launcher))
        except BaseExceptionGroup as errors:  # of one attempt: the group has ended the others
            raise errors.exceptions[0] from None

    async def _end_leftovers(self) -> None:
        """A look that fails costs no run: the run's end looks again, and there it counts. A machine that is
        left and cannot be ended does end it."""
        try:
            await asyncio.to_thread(end_run, self.cloud, self.run_id)
        except ClientError as error:
            if error.operation_name != "DescribeInstances":
                raise
            self.progress(f"warning: whether a machine of the run is left is not known: {error}")

    def cpu_s(self) -> float:
        """CPU time of this process and the prober's since the first attempt was planned."""
        prober_s = self._launcher.cpu_s if self._launcher else 0.0
        return time.process_time() - self._cpu_from_s + prober_s

    def _worst_usd(self, cell: Cell) -> float:
        return self.prices.worst_usd(self.cloud, cell, self.experiment.timeout_s)

    def _affords(self, cell: Cell) -> bool:
        """Whether one more attempt stays within the limit, even if it and those in flight time out."""
        if self.max_usd is None:
            return True
        return self.spent_usd + self.reserved_usd + self._worst_usd(cell) <= self.max_usd

    async def _run_one(self, planned: Planned, launcher: Launcher) -> None:
        technique = find_technique(planned.technique)
        pair = KeyPair.generate() if technique.hands_over_key else self.access.pair
        attempt = Attempt(
            launcher,
            planned,
            technique,
            self.prepared[planned.cell],
            self._spec(planned, pair),
            pair.for_asyncssh(),
        )
        in_flight = self.in_flight
        try:
            if await self._filled(attempt):
                in_flight = self.in_flight
                await attempt.measure(lambda connection: self._read_boot_records(connection, attempt))
                await self._note_volume(attempt)
        except asyncio.CancelledError:
            if attempt.outcome is not Outcome.OK:  # else it was only the guest's report that was cut off
                stopped_by = self.stop.received.name if self.stop.received else "the caller"
                attempt.launch.fail(Outcome.INTERRUPTED, f"stopped by {stopped_by}")
            raise
        finally:
            self._see_market(attempt)
            row = row_of(attempt, self.experiment, self.run_id, in_flight)
            row = dataclasses.replace(row, cost_usd=self._cost_usd(attempt))
            self.spent_usd += row.cost_usd or 0.0
            self.reserved_usd -= self._worst_usd(planned.cell)
            self.results.append(row)
            self.rows.append(row)
            self.on_row(row)
            await self._end(attempt, launcher)
            if attempt.prepared is not self.prepared[planned.cell]:
                await self._delete_copy(attempt.prepared.image_id)
            self.in_flight -= 1

    async def _note_volume(self, attempt: Attempt) -> None:
        label = attempt.planned.cell.label
        if attempt.outcome is Outcome.OK and label not in self.root_volumes:
            self.root_volumes[label] = await asyncio.to_thread(
                metadata.root_volume, self.cloud, attempt.machine, attempt.prepared.root_device
            )

    def _market(self, cell: Cell) -> Market:
        """What to ask for: spot only as long as EC2 gives this account any."""
        return Market.ON_DEMAND if self.no_spot else market_of(self.cloud, cell)

    def _see_market(self, attempt: Attempt) -> None:
        """The first refusal for good is said once, and the run goes on without spot machines."""
        launch = attempt.launch
        if attempt.spec.market is not market_of(self.cloud, attempt.planned.cell):
            launch.notes.append(f"on demand, because earlier in this run spot was refused: {self.no_spot}")
        if launch.no_spot and not self.no_spot:
            self.no_spot = launch.no_spot
            remedy = hint_of_code(launch.no_spot)
            self.progress(
                f"warning: EC2 gives this account no spot machines ({launch.no_spot}); the run goes on on "
                f"demand. {remedy}"
            )

    async def _filled(self, attempt: Attempt) -> bool:
        """Make what the attempt starts from, off the clock. A failure is the attempt's outcome."""
        options = attempt.planned.cell.options
        try:
            if options.fresh_copy:
                image_id = await self._copy(attempt.prepared, attempt.spec)
                attempt.prepared = dataclasses.replace(attempt.prepared, image_id=image_id)
            if options.pause_s:
                await asyncio.sleep(options.pause_s)
            await attempt.fill()
        except (InstantEnvError, ClientError, BotoCoreError) as error:
            attempt.launch.fail(Outcome.LAUNCH_ERROR, f"filling its slot: {error}")
            return False
        self._count(attempt)
        if options.rest_s:
            await asyncio.sleep(options.rest_s)
        return True

    async def _read_boot_records(self, connection: asyncssh.SSHClientConnection, attempt: Attempt) -> None:
        """A systemd machine's own account of this boot, to the side file; what it cannot tell is a note."""
        guest = attempt.guest
        if guest is None or guest.pid1 or guest.boot_at_ns < attempt.timeline.t0_ns:
            return
        try:
            records = await read_boot_records(connection)
        except RecordsError as error:
            attempt.launch.notes.append(f"boot records: {error}")
            return
        if records is not None:
            guests.append(self.results.path, attempt, records)

    async def _copy(self, prepared: Prepared, spec: LaunchSpec) -> str:
        """A copy of the AMI that nothing was launched from yet."""
        return await asyncio.to_thread(
            copies.fresh_copy,
            self.cloud,
            prepared.image_id,
            run_id=self.run_id,
            name=image_name(spec.name, self.run_id),
            expires_at=spec.expires_at,
        )

    def _cost_usd(self, attempt: Attempt) -> float | None:
        """Of the attempt's machine, up to now; a pool's fill and its attempt are two starts, or one."""
        launch, slot = attempt.launch, attempt.slot
        if not attempt.machine:
            return 0.0
        t0_ns = attempt.timeline.t0_ns
        lives_s = [(time.monotonic_ns() - t0_ns) / 1e9] if launch.instance_id else []
        if slot.instance_id:
            if MarkName.T2 in attempt.timeline.marks and slot.runs:
                lives_s[0] += (t0_ns - slot.filled_ns) / 1e9 + attempt.fill_s
            else:
                lives_s.append(attempt.fill_s)
        market = launch.market or attempt.spec.market
        cost = self.prices.cost_usd(attempt.spec.instance_type, market, *lives_s)
        return None if cost is None else round(cost, 6)

    def _count(self, attempt: Attempt) -> None:
        if attempt.fill_s:
            stats = self.fillings.setdefault(attempt.planned.technique, FillStats())
            stats.places += 1
            stats.machines += 1 if attempt.slot.instance_id else 0
            stats.seconds = round(stats.seconds + attempt.fill_s, 3)

    def _spec(self, planned: Planned, pair: KeyPair) -> LaunchSpec:
        cell = planned.cell
        padding = cell.options.user_data_bytes
        return LaunchSpec(
            run_id=self.run_id,
            name=f"instant-env-bench-{cell.technique}-{planned.attempt}",
            role=Role.BENCH,
            instance_type=cell.instance_type,
            key_name=self.access.key_name,
            security_group_id=self.access.security_group_id,
            market=self._market(cell),
            expires_at=datetime.now(UTC) + timedelta(seconds=self.ttl_s),
            user_data=UserData(ttl_s=self.ttl_s),
            client_token=f"{self.run_id}-{planned.attempt}",
            public_key=pair.public_key,
            options=self._options(cell),
            hand_over=cell.options.hand_over or HandOver.CONNECT,
            beside_user_data={"padding": "x" * padding} if padding else {},
        )

    def _options(self, cell: Cell) -> LaunchOptions:
        place = self.places.get(cell)
        options = cell.options.for_launch()
        return dataclasses.replace(options, subnet_id=place.subnet_id) if place else options

    async def _end(self, attempt: Attempt, launcher: Launcher) -> None:
        """End the attempt's machine and wait until it is gone, so that it takes nothing from the next one."""
        machine = attempt.machine
        if machine and attempt.outcome not in (Outcome.OK, Outcome.INTERRUPTED):
            await self._keep_console(machine, attempt.planned)
        try:
            await launcher.end(attempt.technique, machine, attempt.slot)
        except (InstantEnvError, ClientError, BotoCoreError, TimeoutError) as error:
            # Tried again before the next attempt and at the end of the run, and there it counts.
            resource_id = machine or attempt.slot.interface_id
            self.progress(f"warning: {resource_id} is not ended yet: {error or type(error).__name__}")

    async def _delete_copy(self, image_id: str) -> None:
        """What is left of it is tried again at the end of the run, and has an expiry."""
        try:
            await asyncio.to_thread(copies.delete_copy, self.cloud, image_id)
        except (InstantEnvError, ClientError, BotoCoreError) as error:
            self.progress(f"warning: the copy {image_id} is not gone yet: {error}")

    async def _keep_console(self, instance_id: str, planned: Planned) -> None:
        text = await asyncio.to_thread(console_tail, self.cloud, instance_id, _CONSOLE_LINES)
        if text:
            directory = self.cloud.settings.state_dir / "consoles"
            path = directory / f"{self.results.path.stem}-{planned.attempt}-{planned.technique}.txt"
            try:
                directory.mkdir(parents=True, exist_ok=True)
                path.write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                self.progress(f"warning: its serial console is not kept: {error}")
                return
            self.progress(f"its serial console: {path}")


class _Gate:
    """Lets callers through one by one, at most ``per_s`` a second; None is no limit."""

    def __init__(self, per_s: float | None) -> None:
        self._interval_s = 1 / per_s if per_s else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        due = max(self._next, now)
        self._next = due + self._interval_s
        await asyncio.sleep(due - now)


def fillings_as_json(fillings: Mapping[str, FillStats]) -> dict[str, Any]:
    """For the metadata: what the pools cost, apart from what was measured."""
    return {name: dataclasses.asdict(filling) for name, filling in fillings.items()}
