"""Run an experiment: every attempt becomes a row at once, every machine is ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
from botocore.exceptions import BotoCoreError, ClientError

from harness import metadata
from harness.experiment import Experiment, Planned, check_limits
from harness.images import choose
from harness.record import progress_line, row_of
from harness.records import record_of
from harness.results import SCHEMA_VERSION, ResultFile, Row
from harness.signals import StopSignals
from harness.statistics import Summary, summarise
from instant_env.arch import Arch
from instant_env.cloud import runs
from instant_env.cloud.instances import Market, console_tail, default_market, default_type, terminate
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud, CloudError, connect
from instant_env.cloud.tags import Role, new_run_id, project_filter
from instant_env.errors import InstantEnvError, UsageError
from instant_env.launch.attempt import Attempt
from instant_env.launch.techniques import Order, Prepared, Technique, find_technique
from instant_env.launch.timeline import Outcome
from instant_env.launch.watch import Watcher
from instant_env.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef

Progress = Callable[[str], None]

#: The machine's own timer, at least. It only has to outlive an attempt and the ending of the machine.
_MIN_TTL_S = 1800
_TTL_MARGIN_S = 900

#: Lines of the serial console kept of a machine that did not let us in.
_CONSOLE_LINES = 400

_LIVE_STATES = ["pending", "running", "stopping", "stopped", "shutting-down"]


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
    summary: Summary
    rows: tuple[Row, ...]

    @property
    def failures(self) -> int:
        return sum(row.outcome != Outcome.OK for row in self.rows)


@dataclass(frozen=True)
class Access:
    """How every machine of the run is reached; made once, before the first t0."""

    key: asyncssh.SSHKey
    key_name: str
    security_group_id: str


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
            experiment = Experiment(
                techniques=names,
                arch=arch,
                instance_type=default_type(cloud, arch, instance_type),
                iterations=iterations,
                seed=secrets.randbelow(2**31) if seed is None else seed,
                timeout_s=timeout_s,
            )
            prepared = {technique: find_technique(technique).prepare(cloud, images) for technique in names}
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
        prepared: Mapping[str, Prepared],
        stop: StopSignals,
        progress: Progress,
    ) -> None:
        self.cloud = cloud
        self.experiment = experiment
        self.prepared = prepared
        self.run_id = new_run_id()
        self.market: Market = default_market(cloud)
        self.rows: list[Row] = []
        self._stop = stop
        self._progress = progress
        self._ttl_s = max(_MIN_TTL_S, int(experiment.timeout_s) + _TTL_MARGIN_S)

    def execute(self, csv_path: Path) -> BenchResult:
        """Run every attempt. Key pair, security group and machines are gone when it returns or raises."""
        metadata_path = csv_path.with_suffix(".json")
        about = self._metadata(csv_path)
        # Long enough for every attempt to use up its time: these two are shared by all of them.
        expires_at = datetime.now(UTC) + timedelta(seconds=self._ttl_s * self.experiment.total)
        pair = KeyPair.generate()
        status = "failed"
        for technique, prepared in self.prepared.items():
            if prepared.note:
                self._progress(f"note: {technique}: {prepared.note}")
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(runs.alive(self.cloud.settings, self.run_id))
                results = stack.enter_context(ResultFile(csv_path))
                metadata.write(metadata_path, about | {"status": "running"})
                for technique, prepared in self.prepared.items():
                    stack.callback(find_technique(technique).clean_up, self.cloud, prepared)
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
                access = Access(pair.for_asyncssh(), key_name, group_id)
                stack.callback(self._end_leftovers)
                asyncio.run(self._run_all(access, results))
            status = "finished"
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = "stopped"
            raise KeyboardInterrupt from None
        finally:
            if metadata_path.exists():
                ended = {"status": status, "finished_utc": _utc_text(), "load_at_end": metadata.load()}
                metadata.write(metadata_path, about | ended | {"attempts_done": len(self.rows)})
        summary = summarise([record_of(row) for row in self.rows], self.experiment.techniques)
        return BenchResult(csv_path, metadata_path, summary, tuple(self.rows))

    async def _run_all(self, access: Access, results: ResultFile) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None  # noqa: S101 - asyncio.run made one
        # A Python signal handler runs between any two bytecodes: the loop is only told to cancel.
        self._stop.hook = lambda: _forget(loop.call_soon_threadsafe(task.cancel))
        try:
            async with Watcher(self.cloud) as watcher:
                for planned in self.experiment.plan():
                    if self._stop.received:
                        raise asyncio.CancelledError
                    # Opens or revives the HTTPS connection, so that no t1 holds a TLS handshake, and makes
                    # sure that nothing of the run is alive beside the machine that is measured.
                    await asyncio.to_thread(self._end_leftovers)
                    await self._run_one(planned, watcher, access, results)
        finally:
            self._stop.hook = _note_only  # what follows is cleaning up

    async def _run_one(self, planned: Planned, watcher: Watcher, access: Access, results: ResultFile) -> None:
        technique = find_technique(planned.technique)
        prepared = self.prepared[planned.technique]
        order = self._order(planned, access)
        attempt = Attempt(
            self.cloud,
            watcher,
            start=lambda: technique.launch(self.cloud, prepared, order),
            username=prepared.username,
            key=access.key,
            timeout_s=self.experiment.timeout_s,
        )
        try:
            await attempt.run()
        except asyncio.CancelledError:
            if attempt.outcome is not Outcome.OK:  # else it was only the guest's report that was cut off
                attempt.outcome = Outcome.INTERRUPTED
                attempt.error = (
                    f"stopped by {self._stop.received.name if self._stop.received else 'the caller'}"
                )
            raise
        finally:
            row = row_of(attempt, planned, self.experiment, prepared, self.cloud, self.run_id)
            results.append(row)
            self.rows.append(row)
            self._progress(progress_line(row, self.experiment.total))
            if attempt.instance_id:
                await self._end(attempt, planned, results)

    def _order(self, planned: Planned, access: Access) -> Order:
        return Order(
            run_id=self.run_id,
            name=f"instant-env-bench-{planned.technique}-{planned.attempt}",
            role=Role.BENCH,
            instance_type=self.experiment.instance_type,
            key_name=access.key_name,
            security_group_id=access.security_group_id,
            market=self.market,
            expires_at=datetime.now(UTC) + timedelta(seconds=self._ttl_s),
            ttl_s=self._ttl_s,
            client_token=f"{self.run_id}-{planned.attempt}",
        )

    async def _end(self, attempt: Attempt, planned: Planned, results: ResultFile) -> None:
        """End the attempt's machine and wait until it is gone, so that it takes nothing from the next one."""
        if attempt.outcome not in (Outcome.OK, Outcome.INTERRUPTED):
            await self._keep_console(attempt.instance_id, planned, results.path)
        try:
            await asyncio.to_thread(terminate, self.cloud, [attempt.instance_id])
        except (InstantEnvError, ClientError, BotoCoreError) as error:
            # Tried again before the next attempt and at the end of the run, and there it counts.
            self._progress(f"warning: {attempt.instance_id} is not ended yet: {error}")

    async def _keep_console(self, instance_id: str, planned: Planned, csv_path: Path) -> None:
        text = await asyncio.to_thread(console_tail, self.cloud, instance_id, _CONSOLE_LINES)
        if text:
            directory = self.cloud.settings.state_dir / "consoles"
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"{csv_path.stem}-{planned.attempt}-{planned.technique}.txt"
            path.write_text(text + "\n", encoding="utf-8")
            self._progress(f"its serial console: {path}")

    def _end_leftovers(self) -> None:
        """End what is still alive of this run, found by tag: so also a machine whose id never reached us."""
        filters: list[FilterTypeDef] = [
            *project_filter(run=self.run_id),
            {"Name": "instance-state-name", "Values": _LIVE_STATES},
        ]
        pages = self.cloud.ec2.get_paginator("describe_instances").paginate(Filters=filters)
        alive = [i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]]
        if alive:
            terminate(self.cloud, alive)

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
            "accelerator": self.cloud.accelerator_for(experiment.arch),
            "arch": experiment.arch.value,
            "instance_type": experiment.instance_type,
            "market": self.market.value,
            "iterations": experiment.iterations,
            "seed": experiment.seed,
            "timeout_s": experiment.timeout_s,
            "order": [planned.technique for planned in experiment.plan()],
            "techniques": {name: _about(find_technique(name), self.prepared[name]) for name in self.prepared},
            "host": metadata.host_state(),
            "load_at_start": metadata.load(),
            "versions": metadata.library_versions(),
        }


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
