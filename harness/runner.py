"""Run an experiment: every attempt becomes a row at once, every machine is ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from harness import metadata
from harness.conduct import Access, Conductor, end_leftovers, fillings_as_json
from harness.experiment import Cell, Experiment, check_limits
from harness.images import choose
from harness.record import progress_line
from harness.records import record_of
from harness.results import SCHEMA_VERSION, ResultFile, Row
from harness.signals import StopSignals
from harness.statistics import Summary, summarise_kinds
from instant_env.arch import Arch
from instant_env.cloud import runs
from instant_env.cloud.instances import Market, default_market, default_type
from instant_env.cloud.interfaces import delete_of_run
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud, CloudError, connect
from instant_env.cloud.tags import Role, new_run_id
from instant_env.errors import InstantEnvError, UsageError
from instant_env.launch.techniques import Prepared, Technique, find_technique
from instant_env.launch.timeline import Outcome
from instant_env.settings import Settings

Progress = Callable[[str], None]

#: The machine's own timer, at least. It only has to outlive an attempt and the ending of the machine.
_MIN_TTL_S = 1800
_TTL_MARGIN_S = 900


class BenchStopped(InstantEnvError):
    """Ctrl-C or SIGTERM. Exit code 128 + signal, as shells have it."""

    def __init__(self, message: str, *, hint: str, signal_number: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


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

    @property
    def summary(self) -> Summary:
        """Of a run on one kind of machine."""
        (summary,) = self.summaries
        return summary

    @property
    def failures(self) -> int:
        return sum(row.outcome != Outcome.OK for row in self.rows)


def bench(
    settings: Settings,
    *,
    ami: str = "latest",
    techniques: Sequence[str] | None = None,
    iterations: int = 3,
    arch: Arch = Arch.X86_64,
    instance_type: str | None = None,
    seed: int | None = None,
    name: str = "bench",
    timeout_s: float = 600.0,
    parallel: int = 1,
    progress: Progress,
    open_cloud: Callable[[Settings, Progress], Cloud] = connect,
) -> BenchResult:
    """Measure techniques side by side and write ``results/<utc>-<name>.csv`` with a JSON of metadata.

    ``techniques`` None means cold and all whose AMI is there. A failed attempt is a row, not an exception.
    Raises UsageError for what makes no sense, BenchStopped on Ctrl-C and SIGTERM (rows so far are in the
    CSV, machines are gone), CloudError when the cloud fails outside an attempt.
    """
    _check_name(name)
    check_limits(iterations, timeout_s)
    for technique in techniques or ():
        find_technique(technique)
    with StopSignals() as stop:
        csv_path: Path | None = None
        try:
            cloud = open_cloud(settings, progress)
            names, images = choose(cloud, arch, ami, techniques)
            experiment = Experiment.race(
                names,
                arch,
                default_type(cloud, arch, instance_type),
                iterations=iterations,
                seed=secrets.randbelow(2**31) if seed is None else seed,
                timeout_s=timeout_s,
                parallel=parallel,
            )
            prepared = {
                cell: find_technique(cell.technique).prepare(cloud, images) for cell in experiment.cells
            }
            run = Run(cloud, experiment, prepared, stop, progress)
            csv_path = _csv_path(settings.results_dir, name)
            return run.execute(csv_path)
        except KeyboardInterrupt:
            number = stop.received
            raise BenchStopped(
                f"stopped by {number.name if number else 'Ctrl-C'}; the machines are ended",
                hint=f"rows so far: {csv_path}" if csv_path and csv_path.exists() else "nothing was measured",
                signal_number=number.value if number else 2,
            ) from None
        except (ClientError, BotoCoreError) as error:
            raise CloudError(
                f"the cloud failed us outside of an attempt: {error}",
                hint=f"rows so far: {csv_path}; then run: invoke clean" if csv_path else "",
            ) from error


def result_dict(result: BenchResult) -> dict[str, Any]:
    """The result as JSON: the summary's own keys for a run on one kind of machine."""
    fillings = {"pools": result.fillings} if result.fillings else {}
    if len(result.summaries) == 1:
        return {**result.summary.as_json(), **fillings}
    return {"summaries": [summary.as_json() for summary in result.summaries], **fillings}


def _check_name(name: str) -> None:
    if not name or not all(character.isalnum() or character in "-_." for character in name):
        raise UsageError(f"{name!r} cannot name a file of results", hint="use letters, digits, - _ .")


def _csv_path(directory: Path, name: str) -> Path:
    """A path that is still free: runs may start within one second of each other."""
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
    path, number = directory / f"{stem}.csv", 2
    while path.exists():
        path, number = directory / f"{stem}-{number}.csv", number + 1
    return path


class Run:
    """One run of an experiment; use :func:`bench`. Also for experiments that were prepared otherwise."""

    def __init__(
        self,
        cloud: Cloud,
        experiment: Experiment,
        prepared: Mapping[Cell, Prepared],
        stop: StopSignals,
        progress: Progress,
    ) -> None:
        self.cloud = cloud
        self.experiment = experiment
        self.prepared = prepared
        self.run_id = new_run_id()
        self._stop = stop
        self._progress = progress
        # A place may take as long to fill as an attempt may take.
        rest_s = max(cell.options.rest_s or 0.0 for cell in experiment.cells)
        self._ttl_s = max(_MIN_TTL_S, int(2 * experiment.timeout_s + rest_s) + _TTL_MARGIN_S)

    def execute(self, csv_path: Path) -> BenchResult:
        """Run every attempt. Key pair, security group and machines are gone when it returns or raises."""
        metadata_path = csv_path.with_suffix(".json")
        about = self._metadata(csv_path)
        # Long enough for every attempt to use up its time: these two are shared by all of them.
        expires_at = datetime.now(UTC) + timedelta(seconds=self._ttl_s * self.experiment.total)
        pair = KeyPair.generate()
        status = "failed"
        conductor: Conductor | None = None
        for cell, prepared in self.prepared.items():
            if prepared.note:
                self._progress(f"note: {cell.label}: {prepared.note}")
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(runs.alive(self.cloud.settings, self.run_id))
                results = stack.enter_context(ResultFile(csv_path))
                metadata.write(metadata_path, about | {"status": "running"})
                for cell, prepared in self.prepared.items():
                    stack.callback(find_technique(cell.technique).clean_up, self.cloud, prepared)
                key_name = stack.enter_context(
                    imported_key_pair(
                        self.cloud, pair, run_id=self.run_id, role=Role.BENCH, expires_at=expires_at
                    )
                )
                group_id = stack.enter_context(
                    temporary_security_group(
                        self.cloud, run_id=self.run_id, role=Role.BENCH, expires_at=expires_at
                    )
                )
                access = Access(pair, pair.for_asyncssh(), key_name, group_id)
                stack.callback(delete_of_run, self.cloud, self.run_id)
                stack.callback(end_leftovers, self.cloud, self.run_id)
                conductor = Conductor(
                    cloud=self.cloud,
                    experiment=self.experiment,
                    prepared=self.prepared,
                    run_id=self.run_id,
                    ttl_s=self._ttl_s,
                    access=access,
                    results=results,
                    stop=self._stop,
                    progress=self._progress,
                    on_row=self._tell,
                )
                asyncio.run(self._run_all(conductor))
            status = "finished"
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = "stopped"
            raise KeyboardInterrupt from None
        finally:
            if metadata_path.exists():
                ended = {"status": status, "finished_utc": _utc_text(), "load_at_end": metadata.load()}
                metadata.write(metadata_path, about | ended | _done(conductor))
        return BenchResult(
            csv_path,
            metadata_path,
            summarise_kinds(
                [record_of(row) for row in conductor.rows], [cell.label for cell in self.experiment.cells]
            ),
            tuple(conductor.rows),
            fillings_as_json(conductor.fillings),
        )

    def _tell(self, row: Row) -> None:
        self._progress(progress_line(row, self.experiment.total))

    async def _run_all(self, conductor: Conductor) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 - asyncio.run made one
        # A Python signal handler runs between any two bytecodes: the loop is only told to cancel.
        self._stop.hook = lambda: _forget(loop.call_soon_threadsafe(task.cancel))
        try:
            await conductor.run(self.experiment.plan())
        finally:
            self._stop.hook = _note_only  # what follows is cleaning up

    def _metadata(self, csv_path: Path) -> dict[str, Any]:
        experiment = self.experiment
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "csv": csv_path.name,
            "started_utc": _utc_text(),
            "command_line": metadata.command_line(),
            "git": metadata.git_state(),
            "cloud": self.cloud.name.value,
            "region": self.cloud.region,
            "accelerators": {arch.value: self.cloud.accelerator_for(arch) for arch in _archs(experiment)},
            "cells": [_cell(cell, self.cloud) for cell in experiment.cells],
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
            "host": metadata.host_state(),
            "load_at_start": metadata.load(),
            "versions": metadata.library_versions(),
        }


def _archs(experiment: Experiment) -> list[Arch]:
    return list(dict.fromkeys(cell.arch for cell in experiment.cells))


def _cell(cell: Cell, cloud: Cloud) -> dict[str, str]:
    technique = find_technique(cell.technique)
    market = cell.market or default_market(cloud)
    return {
        "technique": cell.technique,
        "variant": cell.variant,
        "arch": cell.arch.value,
        "instance_type": cell.instance_type,
        "market": Market.ON_DEMAND.value if technique.on_demand_only else market.value,
    }


def _done(conductor: Conductor | None) -> dict[str, Any]:
    """What is known of a run when it ends, however it ends."""
    if conductor is None:
        return {"attempts_done": 0}
    return {"attempts_done": len(conductor.rows), "pools": fillings_as_json(conductor.fillings)}


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
