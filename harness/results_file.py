"""The CSV of a run: one row per attempt, failures included, on the disk before the next attempt starts."""

from __future__ import annotations

import csv
import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from instant_env.errors import UsageError

SCHEMA_VERSION = 4


def _column(unit: str, doc: str, *, optional: bool = True) -> Any:
    metadata = {"unit": unit, "doc": doc}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


def label(technique: str, variant: str | None) -> str:
    """`custom-init [hop_limit=2]`: what figures are computed for."""
    return f"{technique} [{variant}]" if variant else technique


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attempt. Field order is column order; an empty cell is None: not reached, or not known."""

    run_id: str = _column("", "the run, as in the tag `instant-env:run`", optional=False)
    attempt: int = _column("", "number of the attempt in its run, from 1", optional=False)
    block: int = _column(
        "", "block of the interleaving, from 1; each has every technique once", optional=False
    )
    technique: str = _column("", "name of the technique", optional=False)
    variant: str | None = _column("", "what the experiment varies beside the technique, as `hop_limit=2`")
    arch: str = _column("", "`x86_64` or `arm64`", optional=False)
    cloud: str = _column("", "`local` (localec2) or `aws`", optional=False)
    accelerator: str = _column("", "how the machine ran: `tcg` (emulated), `kvm`, or `ec2`", optional=False)
    region: str = _column("", "region", optional=False)
    zone: str | None = _column("", "availability zone")
    instance_type: str = _column("", "instance type", optional=False)
    market: str | None = _column("", "`spot` or `on-demand`, as it was in the end")
    in_flight: int = _column("count", "attempts in flight at t0, this one included", optional=False)
    fill_ms: float | None = _column("ms", "what filling its place in a pool took, before t0")
    pool_age_ms: float | None = _column("ms", "how long its place had been ready at t0")
    resumed: str | None = _column("", "`yes` or `no`: whether a hibernated machine resumed, by its boot id")
    cost_usd: float | None = _column("USD", "estimate of what its machine cost, filling and ending included")
    ami: str = _column("", "AMI that was launched", optional=False)
    instance_id: str | None = _column("", "the machine; empty when none was launched")
    outcome: str = _column("", "`ok` or the kind of failure, see below", optional=False)
    error: str | None = _column("", "why it failed, in words")
    note: str | None = _column("", "what else is to be known of this attempt")
    timeout_s: float = _column(
        "s", "the attempt's deadline from t0: a timeout is censored there", optional=False
    )
    t0_utc: str = _column("UTC", "the one wall-clock anchor: when the request was received", optional=False)
    t1_ms: float | None = _column("ms from t0", "RunInstances returned an instance id")
    t2_ms: float | None = _column("ms from t0", "DescribeInstances first said `running`")
    t3_tcp_ms: float | None = _column("ms from t0", "TCP port accepted")
    t3_ms: float | None = _column("ms from t0", "the first `SSH-2.0-` line was read")
    t4_ms: float | None = _column("ms from t0", "SSH public-key authentication succeeded")
    t2_t4_ms: float | None = _column("ms", "t4 - t2: the machine's own part")
    t2_resolution_ms: float | None = _column("ms", "t2 happened at most this much earlier than it was seen")
    t3_resolution_ms: float | None = _column("ms", "the same for t3_tcp and t3")
    t4_resolution_ms: float | None = _column("ms", "the same for t4")
    probes: int = _column("count", "connects opened", optional=False)
    probes_refused: int = _column("count", "connects that the guest refused", optional=False)
    probes_silent: int = _column("count", "connects given up without an answer", optional=False)
    probes_garbage: int = _column("count", "connects answered by something other than SSH", optional=False)
    first_refused_ms: float | None = _column(
        "ms from t0",
        "first refusal: the guest's network was up by then; empty in localec2, where the host refuses",
    )
    keys_refused: int = _column("count", "authentications refused before t4", optional=False)
    guest_boot_ms: float | None = _column(
        "ms from t0", "zero of the guest's CLOCK_BOOTTIME: its kernel started"
    )
    guest_clock_error_ms: float | None = _column("ms", "bound of the error of guest_boot_ms")
    kernel_handoff_ms: float | None = _column("ms from kernel start", "the kernel executed our init (PID 1)")
    init_start_ms: float | None = _column("ms from kernel start", "our init started (PID 1 or key agent)")
    resumed_ms: float | None = _column("ms from kernel start", "our init went on after hibernation")
    network_up_ms: float | None = _column("ms from kernel start", "the guest had its address")
    key_received_ms: float | None = _column(
        "ms from kernel start",
        "the public key came from IMDS: the launch's, or without one that of user data",
    )
    key_written_ms: float | None = _column("ms from kernel start", "authorized_keys was written")
    sshd_started_ms: float | None = _column("ms from kernel start", "sshd was started by our init")
    sshd_listening_ms: float | None = _column("ms from kernel start", "sshd took connections, key included")
    first_login_ms: float | None = _column("ms from kernel start", "our init read that sshd let somebody in")
    disk_requests: int | None = _column("count", "reads from the root's disk by the kernel, just after t4")
    disk_bytes: int | None = _column("bytes", "what they read")
    volume_requests: int | None = _column(
        "count",
        "the same as QEMU counts it, firmware and loader included; not of a machine that ran before t0",
    )
    volume_bytes: int | None = _column("bytes", "what they read")
    boot_id: str | None = _column("", "the guest's boot id")
    kernel: str | None = _column("", "the guest's kernel release")
    ssh_version: str | None = _column("", "sshd's version line")
    host_key: str | None = _column("", "fingerprint of the guest's host key")
    harness_lag_ms: float | None = _column(
        "ms", "the worst lateness, t0 to t4, of the harness's event loop or of a connect"
    )

    @property
    def label(self) -> str:
        """Technique and variant, as people read them: what figures are computed for."""
        return label(self.technique, self.variant)


COLUMNS: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(Row)


def cell(value: object) -> str:
    """A value as the CSV has it, empty for what is not known. An attempt may cost some 0.001 USD."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return str(value)


class ResultFile:
    """The CSV being written; a context manager. Every row is flushed and synced as it is appended.

    ``resumed``: the file is there, with these columns, and gets more rows.
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path = path
        self._resumed = resumed
        self._file: IO[str] | None = None

    def __enter__(self) -> ResultFile:
        if self._resumed:
            _cut_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8", newline="")
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # "x": a result is never overwritten.
        self._file = self.path.open("x", encoding="utf-8", newline="")
        self._write([column.name for column in COLUMNS])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, row: Row) -> None:
        self._write([cell(getattr(row, column.name)) for column in COLUMNS])

    def _write(self, cells: list[str]) -> None:
        if self._file is None:
            raise RuntimeError(f"{self.path} is not open")
        csv.writer(self._file, lineterminator="\n").writerow(cells)
        self._file.flush()
        os.fsync(self._file.fileno())


def _parse(column: dataclasses.Field[Any], text: str) -> Any:
    # Annotations are strings here (PEP 563): "str", "int", "float | None", ...
    kind = str(column.type)
    if text == "":
        return None if "None" in kind else ""
    if kind.startswith("int"):
        return int(text)
    if kind.startswith("float"):
        return float(text)
    return text


def _cut_torn_line(path: Path) -> None:
    """Take away what a crash left of a row that was being written."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def read_rows(path: Path) -> list[Row]:
    """Read a CSV back. Raises UsageError when it is none of ours or of another schema."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != tuple(column.name for column in COLUMNS):
                raise UsageError(f"{path} has not the columns of schema {SCHEMA_VERSION}")
            whole = (record for record in reader if None not in record.values())  # a crash tears the last one
            return [Row(**{c.name: _parse(c, record[c.name]) for c in COLUMNS}) for record in whole]
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read {path}: {error}") from error


def guests_path(csv_path: Path) -> Path:
    """``<stem>.guests.jsonl``, beside the CSV."""
    return csv_path.with_suffix(".guests.jsonl")


def check_name(name: str) -> None:
    if not name or not all(character.isalnum() or character in "-_." for character in name):
        raise UsageError(f"{name!r} cannot name a file of results", hint="use letters, digits, - _ .")
