"""From rows to figures: per technique n, failures, p50, min and max per phase, and the ratio to cold."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.results import Row
from instant_env.errors import UsageError
from instant_env.launch.techniques import BASELINE
from instant_env.launch.timeline import Outcome

#: Phases in the order in which they are shown: the column, and how people call it.
PHASES = {"t1_ms": "t1", "t2_ms": "t2", "t3_ms": "t3", "t4_ms": "t4", "t2_t4_ms": "t2→t4"}

#: Phases for which the ratio to cold means something.
COMPARED = ("t4_ms", "t2_t4_ms")


@dataclass(frozen=True)
class Spread:
    """Of the attempts that were ok, in ms."""

    p50: float
    min: float
    max: float


@dataclass(frozen=True)
class TechniqueSummary:
    """``times_faster`` is cold's p50 over this one's, by phase; empty for cold, or when either has none."""

    technique: str
    n: int
    failures: int
    outcomes: dict[str, int]
    phases: dict[str, Spread]
    times_faster: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Of one run, on one host and accelerator: figures of different ones are never pooled."""

    cloud: str
    accelerator: str
    arch: str
    instance_type: str
    techniques: tuple[TechniqueSummary, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(round(statistics.median(values), 3), min(values), max(values))


def _of_technique(name: str, rows: Sequence[Row]) -> TechniqueSummary:
    good = [row for row in rows if row.outcome == Outcome.OK]
    phases: dict[str, Spread] = {}
    for phase in PHASES:
        values = [value for row in good if (value := getattr(row, phase)) is not None]
        if values:
            phases[phase] = _spread(values)
    return TechniqueSummary(
        technique=name,
        n=len(rows),
        failures=len(rows) - len(good),
        outcomes=dict(sorted(Counter(row.outcome for row in rows).items())),
        phases=phases,
    )


def _compare(technique: TechniqueSummary, cold: TechniqueSummary) -> dict[str, float]:
    return {
        phase: round(cold.phases[phase].p50 / technique.phases[phase].p50, 2)
        for phase in COMPARED
        if phase in cold.phases and phase in technique.phases and technique.phases[phase].p50 > 0
    }


def summarise(rows: Sequence[Row], order: Sequence[str] = ()) -> Summary:
    """Sum up the rows of one run; techniques in ``order``, others after them as they come.

    Raises UsageError when there are no rows, or they are not of one kind of machine.
    """
    kinds = {(row.cloud, row.accelerator, row.arch, row.instance_type) for row in rows}
    if len(kinds) != 1:
        raise UsageError(
            "no attempts to sum up" if not kinds else "these attempts ran on different kinds of machine",
            hint="" if not kinds else "sum up one run at a time",
        )
    cloud, accelerator, arch, instance_type = kinds.pop()
    names = list(dict.fromkeys([*order, *(row.technique for row in rows)]))
    found = {name: _of_technique(name, [row for row in rows if row.technique == name]) for name in names}
    if cold := found.get(BASELINE):
        for name, technique in found.items():
            if name != BASELINE:
                technique.times_faster.update(_compare(technique, cold))
    return Summary(cloud, accelerator, arch, instance_type, tuple(t for t in found.values() if t.n))
