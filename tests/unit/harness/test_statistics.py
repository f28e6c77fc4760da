"""Known answers (some of them SciPy's), and a simulation of what "95 %" is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.harness_rows import race, records, row

from harness.figures.statistics import (
    MIN_BLOCKS,
    Estimate,
    Figure,
    Sample,
    base_of,
    compare,
    kaplan_meier,
    quantiles,
    sample,
    summarise,
)  # fmt: skip
from harness.results_file import Row
from instant_env.errors import UsageError

INF = math.inf


def of(values: Sequence[float | None], technique: str = "cold", **changes: Any) -> list[Row]:
    """A row per block; None is a time-out."""
    return [row(technique, value, block=number, **changes) for number, value in enumerate(values, 1)]


def t4(rows: list[Row], technique: str = "cold") -> Any:
    found = summarise(records(*rows), resamples=200).get(technique)
    assert found is not None
    return found.phases["t4_ms"]


@pytest.mark.parametrize(
    ("values", "p50", "p90"),
    [
        ([7.0], Figure(7.0), Figure(7.0)),
        ([3.0, 1.0], Figure(2.0), Figure(2.8)),
        ([3.0, 1.0, 2.0], Figure(2.0), Figure(2.8)),
        ([float(n) for n in range(11, 0, -1)], Figure(6.0), Figure(10.0)),
        ([1.0, 2.0, 10_000.0], Figure(2.0), Figure(8000.4)),  # no outlier is removed
        # 600 s were waited for. One of three, two of four, two of three, all.
        ([1.0, 2.0, None], Figure(2.0), Figure(480_000.4, censored=True)),
        ([1.0, 2.0, None, None], Figure(300_001.0, censored=True), Figure(600_000.0, censored=True)),
        ([1.0, None, None], Figure(600_000.0, censored=True), Figure(600_000.0, censored=True)),
        ([None], Figure(600_000.0, censored=True), Figure(600_000.0, censored=True)),
    ],
)
def test_quantiles_and_their_bounds(values: list[float | None], p50: Figure, p90: Figure) -> None:
    found = t4(of(values))
    assert found.p50 == p50
    assert (found.p90.ms, found.p90.censored) == (pytest.approx(p90.ms), p90.censored)
    assert found.n == len(values)
    assert found.censored == values.count(None)


def test_quantiles_are_numpys_where_numpy_has_an_answer() -> None:
    values = np.random.default_rng(3).normal(size=(20, 13))
    for q in (0.0, 0.025, 0.5, 0.9, 1.0):
        assert quantiles(values, q) == pytest.approx(np.quantile(values, q, axis=1))
    holes = np.where(values > 1, np.nan, values)
    assert quantiles(holes, 0.5) == pytest.approx(np.nanmedian(holes, axis=1))
    assert np.isnan(quantiles(np.array([[np.nan]]), 0.5)[0])
    assert quantiles(np.array([[1.0, INF, INF]]), 0.5)[0] == INF


def test_p99_only_of_a_hundred() -> None:
    assert t4(of([float(n) for n in range(99)])).p99 is None
    assert t4(of([float(n) for n in range(101)])).p99 == Figure(99.0)


def test_which_failures_are_waits_and_which_are_none() -> None:
    rows = [
        *of([1000.0, 3000.0]),
        row(t4_ms=None, outcome="ssh_refused", block=3),
        row(t4_ms=None, outcome="auth_failed", block=4, t3_ms=900.0),
        *(row(t4_ms=None, outcome=kind) for kind in ("launch_error", "capacity", "interrupted", "cancelled")),
        # As long as the machine itself took; the rest of the deadline went by before it ran.
        row(t4_ms=None, block=5, t2_ms=100_000.0),
        row(t4_ms=None, block=6, t2_ms=None),
    ]
    summary = summarise(records(*rows), resamples=100)
    (cold,) = summary.techniques
    assert (cold.n, cold.failures) == (10, 8)
    assert cold.outcomes == {
        "auth_failed": 1, "cancelled": 1, "capacity": 1, "interrupted": 1, "launch_error": 1, "ok": 2,
        "ssh_refused": 1, "timeout": 2,
    }  # fmt: skip
    assert (cold.phases["t4_ms"].n, cold.phases["t4_ms"].censored) == (6, 4)
    assert (cold.phases["t2_t4_ms"].n, cold.phases["t2_t4_ms"].censored) == (5, 3)
    assert cold.phases["t2_t4_ms"].p50 == Figure(500_000.0, censored=True)
    assert cold.phases["t2_ms"].p50 == Figure(500.0)
    # t3 was seen by the attempt whose key was refused, though it never logged in.
    assert cold.phases["t3_ms"].min == Figure(900.0)


def test_difference_and_ratio_to_cold() -> None:
    rows = [*of([40_500.0, 38_500.0, 90_500.0]), *of([8_100.0, 8_900.0, 8_500.0], "custom-init")]
    first, second = summarise(records(*rows), ["custom-init", "cold"]).techniques
    assert first.technique == "custom-init"
    assert second.against == {}
    assert first.against["t4_ms"].difference_ms == Estimate(-32_000.0, -32_000.0, None)
    assert first.against["t4_ms"].ratio.low == pytest.approx(40_500 / 8_500)
    assert first.against["t2_t4_ms"].ratio.low == pytest.approx(40_000 / 8_000)
    assert first.against["t4_ms"].blocks == 3  # too few for an interval


def test_what_an_experiments_cells_are_compared_with() -> None:
    race_of_three = ["cold", "minimal-ami", "custom-init"]
    assert [base_of(name, race_of_three) for name in race_of_three] == [None, "cold", "cold"]
    variants = ["custom-init [hop_limit=1]", "custom-init [hop_limit=2]", "minimal-ami [hop_limit=2]"]
    assert [base_of(name, variants) for name in variants] == [None, variants[0], None]
    markets = [
        f"{name} [market={market}]" for name in ("cold", "custom-init") for market in ("spot", "on-demand")
    ]
    assert [base_of(name, markets) for name in markets] == [None, markets[0], markets[0], markets[1]]


def test_what_is_beyond_the_deadline_opens_the_estimate() -> None:
    slow, fast = [None, None, None], [8_000.0, 8_000.0, 8_000.0]
    faster = summarise(records(*of(slow), *of(fast, "custom-init"))).techniques[1].against["t4_ms"]
    assert faster.ratio == Estimate(75.0, INF, None)
    assert faster.difference_ms == Estimate(-INF, -592_000.0, None)
    slower = summarise(records(*of(fast), *of(slow, "custom-init"))).techniques[1].against["t4_ms"]
    assert slower.ratio == Estimate(0.0, pytest.approx(8 / 600), None)  # type: ignore[arg-type]
    assert slower.difference_ms == Estimate(592_000.0, INF, None)
    assert summarise(records(*of(slow))).as_json()["techniques"][0]["phases"]["t4_ms"]["p50"] == {
        "ms": 600_000.0, "censored": True,
    }  # fmt: skip


def test_an_interval_with_some_censored_is_open_upwards() -> None:
    rows = [*of([8_000.0 + n for n in range(10)]), *of([9_000.0] * 6 + [None] * 4, "custom-init")]
    found = summarise(records(*rows)).techniques[1].against["t4_ms"].difference_ms
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(996, abs=5)
    assert found.interval[1] == INF
    json.dumps(summarise(records(*rows)).as_json(), allow_nan=False)


def test_no_interval_below_six_blocks() -> None:
    for blocks in (MIN_BLOCKS - 1, MIN_BLOCKS):
        summary = summarise(records(*race(blocks, cold=40_000, custom_init=8_000)))
        estimate = summary.techniques[1].against["t4_ms"].ratio
        assert (estimate.interval is not None) == (blocks >= MIN_BLOCKS)
    # Six in all, but only five in which the technique got a machine.
    rows = race(6, cold=40_000, custom_init=8_000)
    rows[-1] = row("custom-init", None, "capacity", block=6)
    assert summarise(records(*rows)).techniques[1].against["t4_ms"].ratio.interval is None


def test_what_a_block_suffered_as_a_whole_cancels_out() -> None:
    """A host that is busier in some blocks: paired, the difference is known to the millisecond."""
    busy = [0, 30_000, 0, 30_000, 0, 30_000, 0, 30_000, 0, 30_000, 0]
    rows = [*of([20_000.0 + b for b in busy]), *of([15_000.0 + b for b in busy], "custom-init")]
    found = summarise(records(*rows)).techniques[1]
    assert found.against["t4_ms"].difference_ms.interval == (-5_000.0, -5_000.0)
    assert found.phases["t4_ms"].p50_interval == (15_000.0, 45_000.0)
    cold, other = (sample(records(*rows), name, "t4_ms") for name in ("cold", "custom-init"))
    apart = compare(cold, other, same_run=False).difference_ms.interval
    assert apart is not None
    assert apart[1] - apart[0] > 30_000


def test_same_rows_same_figures_whatever_their_order() -> None:
    rows = race(12, cold=40_000, minimal_ami=20_000, custom_init=8_000)
    order = ["cold", "minimal-ami", "custom-init"]
    once = summarise(records(*rows), order)
    assert once == summarise(records(*reversed(rows)), order)
    assert (once.seed, once.resamples, once.confidence) == (20_250_601, 10_000, 0.95)


def test_interval_agrees_with_scipys() -> None:
    rows = race(15, cold=40_000, custom_init=8_000)
    found = summarise(records(*rows)).techniques[1].against["t4_ms"].difference_ms.interval
    # scipy.stats.bootstrap of the medians' difference, paired=True, method="percentile", 10 000 resamples.
    assert found == pytest.approx((-33_651.098, -30_041.005), rel=0.01)


def test_kaplan_meier_agrees_with_the_textbook() -> None:
    # Remission under 6-MP, in weeks: Freireich and others, Blood 21 (1963).
    ended = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    steps, shares = kaplan_meier([*((t, False) for t in ended), *((t, True) for t in censored)])
    assert steps == [6, 7, 10, 13, 16, 22, 23]
    still_in_remission = [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    assert [1 - share for share in shares] == pytest.approx(still_in_remission, abs=5e-4)


def test_kaplan_meier_without_censoring_is_the_empirical_distribution() -> None:
    steps, shares = kaplan_meier([(3.0, False), (1.0, False), (2.0, False), (2.0, False)])
    assert steps == [1, 2, 3]
    assert shares == pytest.approx([0.25, 0.75, 1])
    assert kaplan_meier([(1.0, True)]) == ([], [])


@pytest.mark.parametrize(("blocks", "same_run"), [(10, True), (30, True), (10, False)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(blocks: int, same_run: bool) -> None:
    """Skewed times around known medians, in blocks with a mood of their own.

    The percentile bootstrap of a median is known to err on the wide side for small samples; what must not be
    is that it covers less than it says.
    """
    trials, truth = 600, -32_000.0
    draw = np.random.default_rng(11)
    covered = 0
    for _ in range(trials):
        moods = [draw.normal(0, 1_000, size=(blocks, 1)) for _ in range(2)]
        cold = 40_000 + moods[0] + _skewed(draw, blocks, 2_000)
        other = 8_000 + moods[0 if same_run else 1] + _skewed(draw, blocks, 700)
        samples = [Sample([(n, v, v) for n, v in enumerate(s[:, 0])], range(blocks)) for s in (cold, other)]
        interval = compare(*samples, same_run=same_run, resamples=999).difference_ms.interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    # Three standard errors of a share of 0.95 in 600 trials are 0.027.
    print(f"{blocks} blocks, same run {same_run}: {covered / trials:.3f} covered")
    assert 0.92 <= covered / trials <= 0.995


def _skewed(draw: np.random.Generator, n: int, scale: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Symmetric around 0 in the median, with a long tail to the right, as launch times have."""
    values = draw.normal(0, 1, size=(n, 1))
    return np.where(values > 0, values * 3, values) * scale


def test_different_machines_are_not_pooled() -> None:
    changes: list[dict[str, Any]] = [
        {"accelerator": "kvm"},
        {"cloud": "aws"},
        {"arch": "arm64"},
        {"instance_type": "m7i.xlarge"},
    ]
    for other in changes:
        with pytest.raises(UsageError, match="different kinds"):
            summarise(records(row(), row(**other)))
    with pytest.raises(UsageError, match="no attempts"):
        summarise([])
