"""Run an experiment: every attempt becomes a row at once, every machine is ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from harness import metadata
from harness.figures.bench_progress import Standing
from harness.figures.likeness import differences
from harness.figures.reading import record_of
from harness.figures.statistics import Summary, summarise_kinds
from harness.plan import planning, prices
from harness.plan.experiment import Cell, Experiment
from harness.plan.planning import Plan, Planner
from harness.results_file import SCHEMA_VERSION, ResultFile, Row, read_rows
from harness.run import estimates
from harness.run.lag import short_pauses
from harness.run.row import progress_line
from harness.run.scheduler import Access, AttemptScheduler, fillings_as_json
from instant_env import stopping
from instant_env.arch import Arch
from instant_env.cloud import copies, runs
from instant_env.cloud.instances import end_run
from instant_env.cloud.interfaces import delete_of_run
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.launching.places import Place, check_subnet
from instant_env.cloud.network import own_cidr, require_admission, temporary_security_group
from instant_env.cloud.rules.names import image_name
from instant_env.cloud.session import Cloud, CloudError, connect
from instant_env.cloud.tags import Role, new_run_id
from instant_env.errors import InstantEnvError, UsageError
from instant_env.launch.techniques import Prepared, Technique, find_technique
from instant_env.launch.timeline import Outcome
from instant_env.progress import Progress
from instant_env.provenance import git_state
from instant_env.settings import Settings
from instant_env.stopping import StopSignals

Watch = Callable[[Standing], None]
OpenCloud = Callable[[Settings, Progress], Cloud]

#: The machine's own timer, at least. It only has to outlive an attempt and the ending of the machine.
_MIN_TTL_S = 1800
_TTL_MARGIN_S = 900
#: Threads beside those of the attempts: the shared poll, and what a run does by itself.
_THREADS = 8


class BenchStopped(InstantEnvError):
    """Ctrl-C or SIGTERM. Exit code 128 + signal, as shells have it."""

    def __init__(self, message: str, *, hint: str, signal_number: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = stopping.exit_code(signal_number)


@dataclass(frozen=True)
class BenchResult:
    """A finished run. ``failures`` counts attempts that were not ok."""

    csv_path: Path
    metadata_path: Path
    summaries: tuple[Summary, ...]
    """One for each kind of machine: figures of different ones are never pooled."""
    rows: tuple[Row, ...]
    fillings: Mapping[str, Any]
    """What filling the pools took, by technique: places, machines, seconds."""
    spent_usd: float = 0.0
    left_out: int = 0
    """Attempts that ``max_usd`` did not allow."""

    @property
    def summary(self) -> Summary:
        """Of a run on one kind of machine."""
        (summary,) = self.summaries
        return summary

    @property
    def failures(self) -> int:
        """Attempts that are not ok. One that was interrupted and made again has two rows; the last counts."""
        last = {row.attempt: row for row in self.rows}
        return sum(row.outcome != Outcome.OK for row in last.values())


def carry_out(
    settings: Settings,
    planner: Planner,
    *,
    max_usd: float | None = None,
    progress: Progress,
    watch: Watch | None = None,
    open_cloud: OpenCloud = connect,
) -> BenchResult:
    """Measure what ``planner`` plans and write ``results/<utc>-<name>.csv`` with a JSON of metadata.

    A failed attempt is a row, not an exception. ``max_usd`` stops the run before an attempt that might cost
    more. ``watch`` gets the state of the run after each row. Raises UsageError for a plan that cannot be,
    BenchStopped on Ctrl-C and SIGTERM (rows so far are in the CSV, machines are gone), CloudError when the
    cloud fails outside an attempt.
    """
    with StopSignals() as stop:
        csv_path: Path | None = None
        try:
            cloud = open_cloud(settings, progress)
            check_subnet(cloud)
            if cloud.settings.security_group:
                require_admission(cloud, cloud.settings.security_group, own_cidr(cloud))
            plan = planner(cloud)
            estimate = prices.estimate(cloud, plan.experiment, plan.prices)
            if estimate.worst_usd or estimate.unknown:
                progress(f"cost: {estimate}")
            if max_usd is not None and estimate.unknown:
                raise UsageError(
                    f"--max-usd needs a price of {', '.join(estimate.unknown)}, and there is none"
                )
            run = Run(cloud, plan, stop, progress, max_usd=max_usd, watch=watch)
            csv_path = plan.csv_path or _csv_path(settings.results_dir, plan.name)
            return run.execute(csv_path)
        except KeyboardInterrupt as error:
            number = stop.received or signal.Signals(stopping.signal_number(error))
            raise BenchStopped(
                f"stopped by {number.name}; the machines are ended",
                hint=f"rows so far: {csv_path}; go on with: invoke bench --resume {csv_path}"
                if csv_path and csv_path.exists()
                else "nothing was measured",
                signal_number=number,
            ) from None
        except (ClientError, BotoCoreError) as error:
            raise CloudError(
                f"the cloud failed us outside of an attempt: {error}",
                hint=f"rows so far: {csv_path}; then run: invoke clean" if csv_path else "",
            ) from error


def dry_run(
    settings: Settings, planner: Planner, progress: Progress, open_cloud: OpenCloud = connect
) -> list[str]:
    """The plan in lines; nothing is launched."""
    cloud = open_cloud(settings, progress)
    check_subnet(cloud)
    return planning.lines(cloud, planner(cloud))


def result_dict(result: BenchResult) -> dict[str, Any]:
    """The result as JSON: the summary's own keys for a run on one kind of machine."""
    fillings = {"pools": result.fillings} if result.fillings else {}
    if len(result.summaries) == 1:
        return {**result.summary.as_json(), **fillings}
    return {"summaries": [summary.as_json() for summary in result.summaries], **fillings}


def _csv_path(directory: Path, name: str) -> Path:
    """A path that is still free: runs may start within one second of each other."""
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
    path, number = directory / f"{stem}.csv", 2
    while path.exists():
        path, number = directory / f"{stem}-{number}.csv", number + 1
    return path


class Run:
    """One run of a plan; use :func:`bench` or :func:`carry_out`. Also for plans that were made otherwise."""

    def __init__(
        self,
        cloud: Cloud,
        plan: Plan,
        stop: StopSignals,
        progress: Progress,
        *,
        max_usd: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.cloud = cloud
        self.plan = plan
        self.experiment = plan.experiment
        self.prepared = dict(plan.prepared)
        self.run_id = new_run_id()
        self.max_usd = max_usd
        self._watch = watch
        self._stop = stop
        self._progress = progress
        self._begun_s = time.monotonic()
        # A place may take as long to fill as an attempt may take.
        options = [cell.options for cell in plan.experiment.cells]
        stand_s = max((option.rest_s or 0.0) + (option.pause_s or 0.0) for option in options)
        self._ttl_s = max(_MIN_TTL_S, int(2 * plan.experiment.timeout_s + stand_s) + _TTL_MARGIN_S)

    def execute(self, csv_path: Path) -> BenchResult:
        """Run every attempt. Key pair, security group and machines are gone when it returns or raises."""
        metadata_path = csv_path.with_suffix(".json")
        about = self._metadata(csv_path)
        # Long enough for every attempt to use up its time: these two are shared by all of them.
        expires_at = datetime.now(UTC) + timedelta(seconds=self._ttl_s * self.experiment.total)
        pair = KeyPair.generate()
        status = "failed"
        scheduler: AttemptScheduler | None = None
        for cell, prepared in self.prepared.items():
            if prepared.note:
                self._progress(f"note: {cell.label}: {prepared.note}")
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(runs.alive(self.cloud.settings, self.run_id))
                results = stack.enter_context(ResultFile(csv_path, resumed=self.plan.csv_path is not None))
                metadata.write(metadata_path, about | {"status": "running"})
                key_name = stack.enter_context(
                    imported_key_pair(
                        self.cloud, pair, run_id=self.run_id, role=Role.BENCH, expires_at=expires_at
                    )
                )
                group_id = self.cloud.settings.security_group or stack.enter_context(
                    temporary_security_group(
                        self.cloud, run_id=self.run_id, role=Role.BENCH, expires_at=expires_at
                    )
                )
                access = Access(pair, key_name, group_id)
                stack.callback(delete_of_run, self.cloud, self.run_id)
                stack.callback(self._delete_copies)
                self._apply_boot_modes(expires_at)
                stack.callback(end_run, self.cloud, self.run_id)
                scheduler = AttemptScheduler(
                    cloud=self.cloud,
                    experiment=self.experiment,
                    prepared=self.prepared,
                    run_id=self.run_id,
                    ttl_s=self._ttl_s,
                    access=access,
                    results=results,
                    prices=self.plan.prices,
                    places=self.plan.places,
                    max_usd=self.max_usd,
                    stop=self._stop,
                    progress=self._progress,
                    on_row=lambda row: self._tell(row, scheduler),
                    spent_usd=float(self.plan.before.get("spent_usd") or 0.0),
                )
                with short_pauses():
                    asyncio.run(self._run_all(scheduler))
            status = "over_budget" if scheduler.over_budget else "finished"
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = "stopped"
            raise KeyboardInterrupt from None
        finally:
            if metadata_path.exists():
                ended = {"status": status, "finished_utc": _utc_text(), "load_at_end": metadata.load()}
                about["sessions"][-1] |= ended | _closing_facts(scheduler)
                about["root_volumes"] |= scheduler.root_volumes if scheduler else {}
                metadata.write(metadata_path, about | ended | _total(about["sessions"], scheduler))
        # Of a resumed run, also those from before.
        rows = tuple(read_rows(csv_path)) if self.plan.csv_path else tuple(scheduler.rows)
        estimates.record(self.cloud, rows, run=csv_path.name)
        for difference in differences([record_of(row) for row in rows], about["root_volumes"]):
            self._progress(f"note: {difference}")
        return BenchResult(
            csv_path,
            metadata_path,
            summarise_kinds([record_of(row) for row in rows], [cell.label for cell in self.experiment.cells]),
            rows,
            fillings_as_json(scheduler.fillings),
            spent_usd=round(scheduler.spent_usd, 6),
            left_out=len(self.plan.remaining()) - len(scheduler.rows),
        )

    def _apply_boot_modes(self, expires_at: datetime) -> None:
        """Put copies with the boot mode asked for in place of AMIs."""
        copies_made: dict[tuple[str, str], str] = {}
        for cell, prepared in self.prepared.items():
            if mode := cell.options.boot_mode:
                key = (prepared.image_id, mode)
                if key not in copies_made:
                    name = image_name(f"instant-env-{mode}-{prepared.image_id}", self.run_id)
                    copies_made[key] = copies.with_boot_mode(
                        self.cloud, *key, run_id=self.run_id, name=name, expires_at=expires_at
                    )
                self.prepared[cell] = dataclasses.replace(prepared, image_id=copies_made[key])

    def _delete_copies(self) -> None:
        """What was measured is not lost for a copy that stays: it has an expiry, and costs cents a month."""
        try:
            copies.delete_copies_of_run(self.cloud, self.run_id)
        except (InstantEnvError, ClientError, BotoCoreError) as error:
            self._progress(f"warning: copies of AMIs are left; run: invoke clean ({error})")

    def _tell(self, row: Row, scheduler: AttemptScheduler | None) -> None:
        self._progress(progress_line(row, self.experiment.total))
        if self._watch is not None and scheduler is not None:
            took_s = time.monotonic() - self._begun_s
            self._watch(
                Standing(
                    rows=tuple(scheduler.rows),
                    to_do=len(self.plan.remaining()),
                    spent_usd=scheduler.spent_usd,
                    took_s=took_s,
                )
            )

    async def _run_all(self, scheduler: AttemptScheduler) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        # Calls take 0.2 to 2 s on AWS. With asyncio's own few threads those of many attempts would queue, and
        # the wait would count as EC2's. An attempt has a launch or a poll, and something that is being ended.
        threads = _THREADS + 2 * self.experiment.parallel
        loop.set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="cloud"))
        assert task is not None  # noqa: S101 - asyncio.run made one
        # A Python signal handler runs between any two bytecodes: the loop is only told to cancel.
        self._stop.hook = lambda: _forget(loop.call_soon_threadsafe(task.cancel))
        try:
            await scheduler.run(self.plan.remaining())
        finally:
            self._stop.hook = _note_only  # what follows is cleaning up

    def _metadata(self, csv_path: Path) -> dict[str, Any]:
        experiment = self.experiment
        before = self.plan.before
        session = {
            "run_id": self.run_id,
            "started_utc": _utc_text(),
            "command_line": metadata.command_line(),
            "git": git_state().as_json(),
            "load": metadata.load(),
            "attempts": len(self.plan.remaining()),
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": before.get("run_id", self.run_id),
            "name": self.plan.name,
            "about": self.plan.about or before.get("about", ""),
            "csv": csv_path.name,
            "started_utc": before.get("started_utc", session["started_utc"]),
            "command_line": before.get("command_line", session["command_line"]),
            "git": before.get("git", session["git"]),
            "sessions": [*before.get("sessions", []), session],
            "cloud": self.cloud.name.value,
            "region": self.cloud.region,
            "accelerators": {arch.value: self.cloud.accelerator_for(arch) for arch in _archs(experiment)},
            "cells": [_cell(cell, self.cloud, self.plan.places.get(cell)) for cell in experiment.cells],
            "parallel": experiment.parallel,
            "launches_per_s": experiment.launches_per_s if experiment.parallel > 1 else None,
            "warm_up": experiment.warm_up,
            "iterations": experiment.iterations,
            "seed": experiment.seed,
            "timeout_s": experiment.timeout_s,
            "order": [planned.cell.label for planned in experiment.plan()],
            "techniques": {
                cell.label: _about(find_technique(cell.technique), prepared)
                for cell, prepared in self.prepared.items()
            },
            **self.plan.as_json(),
            "images": metadata.images(self.cloud, {one.image_id for one in self.prepared.values()}),
            "encrypted_by_default": metadata.encrypted_by_default(self.cloud),
            "root_volumes": dict(before.get("root_volumes", {})),
            "prices": self.plan.prices.as_json(),
            "max_usd": self.max_usd,
            "client": metadata.client(self.cloud),
            "host": metadata.host_state(),
            "load_at_start": metadata.load(),
            "versions": metadata.library_versions(),
        }


def _archs(experiment: Experiment) -> list[Arch]:
    return list(dict.fromkeys(cell.arch for cell in experiment.cells))


def _cell(cell: Cell, cloud: Cloud, place: Place | None) -> dict[str, str | None]:
    return {
        "technique": cell.technique,
        "variant": cell.variant,
        "arch": cell.arch.value,
        "instance_type": cell.instance_type,
        "market": prices.market_of(cloud, cell).value,
        "zone": place.zone if place else cell.options.zone or "",
        "subnet": place.subnet_id if place else "",
    }


def _closing_facts(scheduler: AttemptScheduler | None) -> dict[str, Any]:
    """What is known of a run when it ends, however it ends."""
    if scheduler is None:
        return {"attempts_done": 0}
    return {
        "attempts_done": len(scheduler.rows),
        "pools": fillings_as_json(scheduler.fillings),
        "api_calls": scheduler.api_calls.as_json(),
        "cpu_s": round(scheduler.cpu_s(), 3),
    }


def _total(sessions: Sequence[Mapping[str, Any]], scheduler: AttemptScheduler | None) -> dict[str, Any]:
    """What all sessions of a run took: sums of what each has, whatever is inside of it."""
    total: dict[str, Any] = {}
    summed = ("attempts_done", "pools", "api_calls", "cpu_s")
    for session in sessions:
        _add(total, {key: session[key] for key in summed if key in session})
    # The scheduler goes on with what was spent before.
    return total | ({"spent_usd": round(scheduler.spent_usd, 6)} if scheduler else {})


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = round(total.get(key, 0) + value, 3)


def _about(technique: Technique, prepared: Prepared) -> dict[str, str]:
    return {
        "what": (technique.__doc__ or "").strip().partition("\n")[0],
        "ami": prepared.image_id,
        "base_ami": prepared.base_ami,
        "recipe": prepared.recipe,
        "plan_hash": prepared.plan_hash,
        "username": prepared.username,
        "note": prepared.note,
    }


def _forget(_: object) -> None:
    """For a hook whose result nobody wants."""


def _note_only() -> None:
    """The hook while cleaning up: the signal is on record, and nothing is cut short."""


def _utc_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
