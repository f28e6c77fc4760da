"""Which technique to use, as far as the figures say; and why, or why they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.figures import summary_table as table
from harness.figures.reading import Record
from harness.figures.statistics import (
    MIN_BLOCKS,
    PHASES,
    Comparison,
    Summary,
    TechniqueStatistics,
    compare,
    sample,
)
from instant_env.errors import UsageError
from instant_env.launch.techniques import BASELINE, find_technique

#: Of a technique's attempts that were neither interrupted nor cancelled, so many must have logged in.
MIN_OK_SHARE = 0.9

_CUT_OFF = ("interrupted", "cancelled")


@dataclass(frozen=True)
class Recommendation:
    """``technique`` is None when the figures do not carry one; ``reasons`` are sentences either way."""

    technique: str | None
    phase: str
    reasons: tuple[str, ...]

    @property
    def headline(self) -> str:
        return f"Use {self.technique}." if self.technique else "No recommendation."


def phase_for(cloud: str) -> str:
    """What to judge by: t4, but the machine's own part where t0 to t2 is not EC2's."""
    return "t4_ms" if cloud == "aws" else "t2_t4_ms"


def recommend(summary: Summary, records: Sequence[Record]) -> Recommendation:
    """The technique with the smallest median, if its intervals tell it from cold and from every other one.

    Each interval is at 95 %, not corrected for their number.
    """
    phase = phase_for(summary.kind.cloud)
    name = PHASES[phase]

    def no(*reasons: str) -> Recommendation:
        return Recommendation(None, phase, reasons)

    cold = summary.get(BASELINE)
    if cold is None:
        return no(
            "cold was not measured in this run; what was, against one another:", *_variants(summary, phase)
        )
    rivals = [t for t in summary.techniques if t.technique != BASELINE and phase in t.phases]
    if phase not in cold.phases or not rivals:
        return no(f"{name} is known of {'cold' if phase in cold.phases else 'no cold attempt'} only.")
    usable = [t for t in rivals if not t.phases[phase].p50.censored and _ok_share(t) >= MIN_OK_SHARE]
    excluded = tuple(f"{t.technique} is out: {_ok_count(t)} logged in." for t in rivals if t not in usable)
    if not usable:
        return no(*excluded, "No other technique is left.")
    best = min(usable, key=lambda t: t.phases[phase].p50.ms)
    against = best.against.get(phase)
    if against is None or against.difference_ms.interval is None:
        return no(
            *excluded,
            f"{best.technique} has the smallest median of {name} ({table.figure(best.phases[phase].p50)} s), "
            f"but that is of {against.blocks if against else 0} blocks; an interval takes {MIN_BLOCKS}.",
        )
    reasons = [_sentence(best.technique, BASELINE, name, against), *excluded]
    if against.difference_ms.interval[1] >= 0:
        return no(*reasons, "The interval holds 0: it may as well be no faster than cold.")
    ties = []
    for other in _by_interest(usable, best, phase):
        samples = (sample(records, t.technique, phase) for t in (other, best))
        between = compare(*samples, same_run=True)
        reasons.append(_sentence(best.technique, other.technique, name, between))
        interval = between.difference_ms.interval
        if interval is None or interval[1] >= 0:
            ties.append(other.technique)
    if ties:
        return no(*reasons, f"Nothing here tells {best.technique} from {' and '.join(ties)}.")
    return Recommendation(best.technique, phase, (*reasons, f"{_ok_count(best)} logged in."))


def _by_interest(
    usable: Sequence[TechniqueStatistics], best: TechniqueStatistics, phase: str
) -> list[TechniqueStatistics]:
    """All but the best, by their medians; first the one without a pool, against which a pool has to pay."""
    others = sorted((t for t in usable if t is not best), key=lambda t: t.phases[phase].p50.ms)
    without_pool = [t for t in others if not _has_pool(t.technique)][:1]
    return [*without_pool, *(t for t in others if t not in without_pool)]


def _has_pool(name: str) -> bool:
    """Whether its machines are there before they are asked for; of one that we do not know, no."""
    try:
        return find_technique(name).hands_over_key
    except UsageError:
        return False


def _variants(summary: Summary, phase: str) -> list[str]:
    """Of an experiment without cold: every comparison that there is."""
    return [
        _sentence(t.technique, t.base, PHASES[phase], t.against[phase])
        for t in summary.techniques
        if t.base and phase in t.against
    ]


def _ok_share(technique: TechniqueStatistics) -> float:
    counted = technique.n - sum(technique.outcomes.get(outcome, 0) for outcome in _CUT_OFF)
    return (technique.n - technique.failures) / counted if counted else 0.0


def _ok_count(technique: TechniqueStatistics) -> str:
    return f"{technique.n - technique.failures} of {technique.n} attempts of {technique.technique}"


def _sentence(technique: str, other: str, phase: str, comparison: Comparison) -> str:
    """``custom-init against cold: t2→t4 −47.46 s [−48.10, −46.90], 5.7 [5.4–6.0] times faster.``"""
    times = f", {table.ratio(comparison.ratio)} times faster" if math.isfinite(comparison.ratio.high) else ""
    return f"{technique} against {other}: {phase} {table.difference(comparison.difference_ms)} s{times}."
