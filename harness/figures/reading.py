"""Attempts as the statistics and the report see them: from a run in progress, or from any CSV of ours.

:func:`harness.results_file.read_rows` insists on today's columns, as a run that goes on must. What is only
looked at is read by the names of its columns: a CSV of an older version lacks some, one of a newer version
has more, and both can be reported on as far as they go.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.results_file import Row, cell, guests_path, label
from instant_env.errors import UsageError

#: Without these a file is no result of ours.
REQUIRED = ("technique", "block", "outcome", "timeout_s", "cloud", "accelerator", "arch", "instance_type")

#: What the metadata say of the host that make it this host and not another. Python's version does not.
_HOST_FACTS = ("cpu", "cores", "memory_mib", "kernel")


@dataclass(frozen=True, order=True)
class Kind:
    """What attempts have in common when their figures may be taken together."""

    cloud: str
    accelerator: str
    arch: str
    instance_type: str
    region: str = ""

    def __str__(self) -> str:
        return f"{self.arch} {self.instance_type}"


@dataclass(frozen=True)
class Record:
    """One attempt. ``technique`` is the row's label, variant included. ``numbers`` holds every cell that is a
    number, ``texts`` every cell that is not empty. ``boot`` is what the machine's systemd and cloud-init said
    of their boot: a line of the run's .guests.jsonl, empty without one."""

    kind: Kind
    technique: str
    block: int
    outcome: str
    timeout_ms: float
    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    boot: Mapping[str, Any] = field(default_factory=dict)

    def ms(self, column: str) -> float | None:
        """The cell as a number; None when it is empty, no number, or there is no such column."""
        return self.numbers.get(column)


def record_of(row: Row) -> Record:
    """The record of a row that a run has just made: the same as of its line in the CSV."""
    return _record({name: cell(value) for name, value in dataclasses.asdict(row).items()})


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _record(cells: Mapping[str, str]) -> Record:
    """Raises ValueError when a required cell is no number."""
    texts = {name: text for name, text in cells.items() if text}
    numbers = {name: value for name, text in texts.items() if (value := _number(text)) is not None}
    return Record(
        kind=Kind(
            cloud=texts["cloud"], accelerator=texts["accelerator"], arch=texts["arch"],
            instance_type=texts["instance_type"], region=texts.get("region", ""),
        ),
        technique=label(texts["technique"], texts.get("variant")),
        block=int(texts["block"]),
        outcome=texts["outcome"],
        timeout_ms=float(texts["timeout_s"]) * 1000,
        numbers=numbers,
        texts=texts,
    )  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A CSV and the JSON beside it; ``metadata`` is empty when there is none.

    ``warm_up`` counts the attempts of block 0, which came before the first block and are no records.
    """

    path: Path
    records: tuple[Record, ...]
    warm_up: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def techniques(self) -> tuple[str, ...]:
        """In the order in which the run named them, others after them as they come."""
        named = self.metadata.get("techniques")
        return tuple(dict.fromkeys([*(named or ()), *(record.technique for record in self.records)]))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(record.kind for record in self.records))

    def of(self, kind: Kind) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.kind == kind)

    @property
    def host(self) -> tuple[str, ...] | None:
        """What tells this host from another, None when it is not on record."""
        host = self.metadata.get("host")
        if not isinstance(host, Mapping) or not host.get("cpu"):
            return None
        return tuple(str(host.get(fact, "")) for fact in _HOST_FACTS)


def read_results(path: Path) -> Results:
    """Read a CSV of any version, and its metadata if they are there.

    Raises UsageError when the file cannot be read, is none of ours or has no attempts.
    """
    records: list[Record] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := [name for name in REQUIRED if name not in (reader.fieldnames or ())]:
                raise UsageError(
                    f"{path} is not a CSV of `invoke bench`: it has no column {lacking[0]}",
                    hint="results/README.md documents the columns",
                )
            for line in reader:
                # A crash in the middle of a write leaves half a row, and only ever as the last one.
                if None in line.values() or None in line:
                    raise UsageError(f"{path} line {reader.line_num}: not as many cells as columns")
                try:
                    records.append(_record(line))
                except (KeyError, ValueError) as error:
                    raise UsageError(f"{path} line {reader.line_num}: {error!r}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"cannot read {path}: {error}", hint="give a CSV that `invoke bench` wrote"
        ) from error
    boots = _boots(guests_path(path))
    counted = tuple(
        dataclasses.replace(record, boot=boots.get(record.texts.get("attempt", ""), {}))
        for record in records
        if record.block > 0
    )
    if not counted:
        raise UsageError(f"{path} holds no attempts", hint="it is of a run that was stopped at once")
    return Results(path, counted, len(records) - len(counted), _metadata(path.with_suffix(".json")))


def _boots(path: Path) -> dict[str, Mapping[str, Any]]:
    """By attempt. Raises UsageError."""
    boots: dict[str, Mapping[str, Any]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            boot = json.loads(line)
            boots[str(boot["attempt"])] = boot
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error!r}", hint="move it away to go without") from error
    return boots


def _metadata(path: Path) -> Mapping[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="move it away to go without") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds no JSON object", hint="move it away to go without")
    return loaded


def result_files(directory: Path) -> Sequence[Path]:
    """The CSVs of a directory, oldest first: their names begin with the UTC second of the run."""
    return sorted(directory.glob("*Z-*.csv"))


def newest(directory: Path) -> Path:
    """Raises UsageError when there is none."""
    if not (files := result_files(directory)):
        raise UsageError(f"no results in {directory} yet", hint="make some: invoke bench --ami latest")
    return files[-1]
