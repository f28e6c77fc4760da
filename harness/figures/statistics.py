"""From attempts to figures; the one place that computes. results/README.md says it in words.

**Attempts that did not log in.** ``timeout``, ``ssh_refused`` and ``auth_failed`` all waited until the
deadline and were given up there: the login would have come later than that, so they are *right-censored*.
Such an attempt is worth the interval from the deadline to infinity, and every figure is computed twice, with
its lower and with its upper end. Where both agree the figure is exact; where they do not, the lower one is a
bound, and is shown as "> 600". A median of the survivors alone would get the better the more machines hang.
The other failures (``launch_error``, ``capacity``, ``interrupted``, ``cancelled``) say nothing of how long a
login takes: they are counted and shown, and have no part in the times. No outlier is removed.

**Intervals.** Attempts are interleaved in blocks, each technique once in each, so attempts of one block share
the host's or the cloud's mood of that minute. Blocks, not attempts, are therefore what the bootstrap
resamples (percentile method, 95 %): what both techniques suffered together cancels out. It takes blocks to be
independent of each other, which a drift over the whole run is not: the report plots attempts in their order
for that. Between two runs, each run's blocks are resampled on their own. Below :data:`MIN_BLOCKS` there is no
interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.figures.reading import Kind, Record
from instant_env.errors import UsageError
from instant_env.launch.techniques import BASELINE
from instant_env.launch.timeline import Outcome

Floats = NDArray[np.float64]

#: Phases in the order in which they are shown: the column, and how people call it.
PHASES = {"t1_ms": "t1", "t2_ms": "t2", "t3_ms": "t3", "t4_ms": "t4", "t2_t4_ms": "t2→t4"}

#: Phases that are compared with cold.
COMPARED = ("t4_ms", "t2_t4_ms")

#: Waited for until the deadline: the login would have come after it.
CENSORED = frozenset({Outcome.TIMEOUT, Outcome.SSH_REFUSED, Outcome.AUTH_FAILED})

CONFIDENCE = 0.95

#: Even from its smallest to its largest value, a sample of n covers its median with 1 - 2^(1-n) only: 94 %
#: with 5, 97 % with 6. Resampling cannot know more than the sample.
MIN_BLOCKS = 6

#: p99 of fewer is the maximum by another name.
MIN_FOR_P99 = 100

#: Same rows, same figures. Both are in every report.
SEED = 20_250_601
RESAMPLES = 10_000

#: Values held in memory at once while resampling.
_CHUNK_VALUES = 2_000_000


@dataclass(frozen=True)
class Figure:
    """A value in ms. When ``censored`` it is a lower bound: the true one is larger."""

    ms: float
    censored: bool = False


@dataclass(frozen=True)
class Estimate:
    """A difference in ms or a ratio. ``low == high`` when exact; censoring opens one end or both.

    ``interval`` is None when there were too few blocks; its ends may be infinite (or, of a ratio, 0).
    """

    low: float
    high: float
    interval: tuple[float, float] | None

    @property
    def exact(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Comparison:
    """Of medians, the other's against the base's. ``ratio`` is base / other: 5 is five times faster."""

    difference_ms: Estimate
    ratio: Estimate
    blocks: int
    """The blocks resampled; between two runs, those of the run that had fewer."""


@dataclass(frozen=True)
class PhaseStatistics:
    """Of attempts that were ok or censored. p99 only with :data:`MIN_FOR_P99`."""

    n: int
    censored: int
    min: Figure
    p50: Figure
    p90: Figure
    p99: Figure | None
    max: Figure
    p50_interval: tuple[float, float] | None


@dataclass(frozen=True)
class TechniqueStatistics:
    """``against`` is by phase, compared with ``base``; empty when there is no base, or it has no figures."""

    technique: str
    n: int
    failures: int
    outcomes: dict[str, int]
    phases: dict[str, PhaseStatistics]
    base: str | None = None
    against: dict[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Of one run on one kind of machine: figures of different ones are never pooled."""

    kind: Kind
    techniques: tuple[TechniqueStatistics, ...]
    seed: int = SEED
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE

    def get(self, technique: str) -> TechniqueStatistics | None:
        return next((item for item in self.techniques if item.technique == technique), None)

    def as_json(self) -> dict[str, Any]:
        return {item.name: plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


def plain(value: object) -> Any:
    """Dataclasses as JSON can have them: three decimals are a microsecond, and infinity is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value


class Sample:
    """The values of one technique and phase, by block: a low and a high end for each, equal when exact."""

    def __init__(self, values: Sequence[tuple[int, float, float]], blocks: Sequence[int]) -> None:
        """``values`` are (block, low, high), ``blocks`` all blocks there are to resample."""
        by_block: dict[int, list[tuple[float, float]]] = {block: [] for block in blocks}
        for block, low, high in values:
            by_block[block].append((low, high))
        width = max((len(pairs) for pairs in by_block.values()), default=0)
        # Blocks in which the technique has no value, or fewer than in others, are filled up with NaN.
        self.low = np.full((len(blocks), width), np.nan)
        self.high = np.full((len(blocks), width), np.nan)
        for row, pairs in enumerate(by_block.values()):
            for column, (low, high) in enumerate(pairs):
                self.low[row, column], self.high[row, column] = low, high
        self.n = len(values)
        self.filled_blocks = sum(bool(pairs) for pairs in by_block.values())

    def ends(self, q: float) -> tuple[float, float]:
        """The quantile's low and high end; NaN without values."""
        low, high = (float(quantiles(values.reshape(1, -1), q)[0]) for values in (self.low, self.high))
        return low, high

    def figure(self, q: float) -> Figure:
        low, high = self.ends(q)
        return Figure(low, censored=low != high)

    def medians(self, picks: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Low and high medians of resamples; ``picks`` has a row of block indices for each."""
        ends = []
        for values in (self.low, self.high):
            rows = max(1, _CHUNK_VALUES // max(1, picks.shape[1] * values.shape[1]))
            parts = [picks[start : start + rows] for start in range(0, len(picks), rows)]
            ends.append(
                np.concatenate([quantiles(values[part].reshape(len(part), -1), 0.5) for part in parts])
            )
        return ends[0], ends[1]


def quantiles(values: Floats, q: float) -> Floats:
    """Quantile of each row, linear between order statistics (Hyndman and Fan's type 7, NumPy's default).

    Unlike NumPy's it takes infinities, and passes over NaN; a row of nothing else gives NaN.
    """
    ordered = np.sort(values, axis=1)  # NaN goes last
    counts = np.count_nonzero(~np.isnan(values), axis=1)
    at = q * np.maximum(counts - 1, 0)
    below = np.floor(at).astype(np.intp)
    share = at - below
    above = np.minimum(below + 1, np.maximum(counts - 1, 0))
    first = np.take_along_axis(ordered, below[:, None], axis=1)[:, 0]
    second = np.take_along_axis(ordered, above[:, None], axis=1)[:, 0]
    # inf * 0 is NaN, so the ends are kept apart; equal neighbours stay exactly what they are.
    with np.errstate(invalid="ignore"):
        between = first * (1 - share) + second * share
    return np.where((share == 0) | (first == second), first, between)


def _picks(blocks: int, seed: int | Sequence[int], resamples: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).integers(0, blocks, size=(resamples, blocks), dtype=np.intp)


def _interval(low: Floats, high: Floats) -> tuple[float, float] | None:
    """Percentile interval. Resamples that drew no value of a technique are no resamples of it."""
    missing = np.isnan(low) | np.isnan(high)
    if missing.all():
        return None
    tail = (1 - CONFIDENCE) / 2
    return (
        float(quantiles(low[~missing][None, :], tail)[0]),
        float(quantiles(high[~missing][None, :], 1 - tail)[0]),
    )


def _divide(numerator: float | Floats, denominator: float | Floats) -> Floats:
    """Something over infinity is 0, over 0 it is infinite: so are ratios of which one part is censored."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(numerator, denominator))


def compare(base: Sample, other: Sample, *, same_run: bool, resamples: int = RESAMPLES) -> Comparison:
    """The other's median against the base's; neither sample may be empty.

    Of the same run, both are over the same blocks, which are resampled together.
    """
    base_low, base_high = base.ends(0.5)
    other_low, other_high = other.ends(0.5)
    blocks = min(base.filled_blocks, other.filled_blocks)
    difference = ratio = None
    if blocks >= MIN_BLOCKS:
        base_picks = _picks(len(base.low), (SEED, 0), resamples)
        other_picks = base_picks if same_run else _picks(len(other.low), (SEED, 1), resamples)
        base_lows, base_highs = base.medians(base_picks)
        other_lows, other_highs = other.medians(other_picks)
        difference = _interval(other_lows - base_highs, other_highs - base_lows)
        ratio = _interval(_divide(base_lows, other_highs), _divide(base_highs, other_lows))
    return Comparison(
        difference_ms=Estimate(other_low - base_high, other_high - base_low, difference),
        ratio=Estimate(float(_divide(base_low, other_high)), float(_divide(base_high, other_low)), ratio),
        blocks=blocks,
    )


def kaplan_meier(times: Sequence[tuple[float, bool]]) -> tuple[list[float], list[float]]:
    """The share of attempts that had ended by then: where it steps up, and to what.

    ``times`` are (seconds, censored). An attempt censored at some time counts among those that could have
    ended until then, and no longer (Kaplan and Meier 1958; at equal times, ends precede censorings).
    """
    values = np.array([seconds for seconds, _ in times], dtype=float)
    ended = values[[not censored for _, censored in times]]
    steps, ends = np.unique(ended, return_counts=True)
    at_risk = (values[None, :] >= steps[:, None]).sum(axis=1)
    shares = 1 - np.cumprod(1 - ends / at_risk)
    return steps.tolist(), shares.tolist()


def measured(records: Sequence[Record]) -> list[Record]:
    """The attempts that say how long a login takes: ok and censored ones."""
    return [record for record in records if record.outcome == Outcome.OK or record.outcome in CENSORED]


def bounds(record: Record, phase: str) -> tuple[float, float] | None:
    """The ends between which a measured attempt's value lies, equal when it was seen; None: it has none.

    t2→t4 is censored at what was left of the deadline after t2. A machine that never was seen running has
    used up its deadline elsewhere, and says nothing of its own part.
    """
    value = record.ms(phase)
    if value is not None:
        return value, value
    if record.outcome not in CENSORED:
        return None
    if phase == "t2_t4_ms":
        t2_ms = record.ms("t2_ms")
        return None if t2_ms is None else (max(record.timeout_ms - t2_ms, 0.0), math.inf)
    return record.timeout_ms, math.inf


def sample(
    records: Sequence[Record], technique: str, phase: str, blocks: Iterable[int] | None = None
) -> Sample:
    """One technique's values over ``blocks``: by default, those of all ``records``."""
    every = sorted(set(blocks) if blocks is not None else {record.block for record in records})
    values = [
        (record.block, *ends)
        for record in measured(records)
        if record.technique == technique and (ends := bounds(record, phase)) is not None
    ]
    return Sample(values, every)


def _phase(values: Sample, resamples: int) -> PhaseStatistics:
    interval = None
    if values.filled_blocks >= MIN_BLOCKS:
        interval = _interval(*values.medians(_picks(len(values.low), (SEED, 0), resamples)))
    return PhaseStatistics(
        n=values.n,
        censored=int(np.isinf(values.high).sum()),
        min=values.figure(0.0),
        p50=values.figure(0.5),
        p90=values.figure(0.9),
        p99=values.figure(0.99) if values.n >= MIN_FOR_P99 else None,
        max=values.figure(1.0),
        p50_interval=interval,
    )


def base_of(name: str, names: Sequence[str]) -> str | None:
    """What a label is compared with: cold, else cold of the same variant, else the first variant of the
    technique itself. None for that base."""
    technique, bracket, variant = name.partition(" [")
    own = [other for other in names if other.partition(" [")[0] == technique]
    for base in (BASELINE, f"{BASELINE}{bracket}{variant}", own[0]):
        if base in names:
            # Variants of cold are compared with one another.
            other = own[0] if base == name else base
            return None if other == name else other
    return None


def summarise_kinds(records: Sequence[Record], order: Sequence[str] = ()) -> tuple[Summary, ...]:
    """A summary for each kind of machine, in the order in which they come."""
    kinds = dict.fromkeys(record.kind for record in records)
    return tuple(summarise([record for record in records if record.kind == kind], order) for kind in kinds)


def summarise(records: Sequence[Record], order: Sequence[str] = (), *, resamples: int = RESAMPLES) -> Summary:
    """Sum up the attempts of one run; techniques in ``order``, others after them.

    Raises UsageError when there are none, or they are not of one kind of machine.
    """
    kinds = {record.kind for record in records}
    if len(kinds) != 1:
        raise UsageError(
            "no attempts to sum up" if not kinds else "these attempts ran on different kinds of machine",
            hint="" if not kinds else "sum up one kind at a time",
        )
    records = [record for record in records if record.block > 0]  # block 0 warmed up
    techniques = []
    present = {record.technique for record in records}
    names = [name for name in dict.fromkeys([*order, *sorted(present)]) if name in present]
    for name in names:
        own = [record for record in records if record.technique == name]
        samples = {phase: sample(records, name, phase) for phase in PHASES}
        technique = TechniqueStatistics(
            technique=name,
            n=len(own),
            base=base_of(name, names),
            failures=sum(record.outcome != Outcome.OK for record in own),
            outcomes=dict(sorted(Counter(record.outcome for record in own).items())),
            phases={phase: _phase(values, resamples) for phase, values in samples.items() if values.n},
        )
        for phase in COMPARED if technique.base else ():
            base = sample(records, str(technique.base), phase)
            if base.n and samples[phase].n:
                technique.against[phase] = compare(base, samples[phase], same_run=True, resamples=resamples)
        techniques.append(technique)
    return Summary(kinds.pop(), tuple(techniques), resamples=resamples)
