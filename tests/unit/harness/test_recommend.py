from __future__ import annotations

from support.harness_rows import race, records, row

from harness.figures.recommend import Recommendation, recommend
from harness.figures.statistics import summarise
from harness.results_file import Row


def judge(*rows: Row) -> Recommendation:
    return recommend(summarise(records(*rows)), records(*rows))


def test_the_fastest_is_recommended_when_the_figures_tell_it_from_every_other() -> None:
    found = judge(*race(10, cold=40_000, minimal_ami=20_000, custom_init=8_000))
    assert found.headline == "Use custom-init."
    assert found.phase == "t2_t4_ms"  # in localec2, t0 to t2 is not EC2's
    assert found.reasons[0].startswith("custom-init against cold: t2→t4 −3")
    assert "times faster" in found.reasons[0]
    assert found.reasons[1].startswith("custom-init against minimal-ami")
    assert found.reasons[-1] == "10 of 10 attempts of custom-init logged in."


def test_a_reader_first_sees_cold_and_the_best_that_takes_no_pool() -> None:
    medians = {
        "prealloc_eni": 39_000, "minimal_ami": 20_000, "warm_stopped": 7_000, "custom_init": 8_000,
        "cold": 40_000, "warm_running": 600,
    }  # fmt: skip
    found = judge(*race(10, **medians))
    compared = [reason.partition(":")[0] for reason in found.reasons[:-1]]
    assert compared == [
        f"warm-running against {other}"
        for other in ("cold", "custom-init", "warm-stopped", "minimal-ami", "prealloc-eni")
    ]


def test_on_ec2_t4_decides() -> None:
    rows = [
        row(t, ms, block=b, cloud="aws") for b in range(10) for t, ms in (("cold", 4e4), ("minimal-ami", 2e4))
    ]
    assert judge(*rows).phase == "t4_ms"


def test_no_recommendation_with_overlapping_intervals() -> None:
    tie = judge(*race(10, cold=40_000, custom_init=8_000, minimal_ami=8_100))
    assert tie.technique is None
    assert "Nothing here tells custom-init from minimal-ami." in tie.reasons
    same = judge(*race(10, cold=8_100, custom_init=8_000))
    assert same.technique is None
    assert "may as well be no faster than cold" in same.reasons[-1]


def test_no_recommendation_from_too_few() -> None:
    found = judge(*race(5, cold=40_000, custom_init=8_000))
    assert found.technique is None
    assert "5 blocks; an interval takes 6" in found.reasons[-1]


def test_no_recommendation_without_something_to_compare_with() -> None:
    assert "cold was not measured" in judge(*race(10, custom_init=8_000)).reasons[0]
    assert judge(*race(10, cold=8_000)).technique is None
    failed = [row("cold", None, "capacity", block=block) for block in range(10)]
    assert judge(*failed, *race(10, custom_init=8_000)).technique is None


def test_a_technique_that_often_fails_is_out() -> None:
    rows = race(10, cold=40_000, custom_init=8_000, minimal_ami=20_000)
    for block in (2, 5):
        rows[block * 3 + 1] = row("custom-init", None, "launch_error", block=block + 1)
    found = judge(*rows)
    assert found.technique == "minimal-ami"
    assert found.reasons[0].startswith("minimal-ami against cold")
    assert found.reasons[1] == "custom-init is out: 8 of 10 attempts of custom-init logged in."
    # A run cut short says nothing against the technique that was running.
    rows = [*race(10, cold=40_000, custom_init=8_000), row("custom-init", None, "interrupted", block=11)]
    assert judge(*rows).technique == "custom-init"


def test_a_cold_that_never_answers_is_still_slower() -> None:
    rows = [
        r if r.technique != "cold" else row(t4_ms=None, block=r.block)
        for r in race(8, cold=4e4, custom_init=8e3)
    ]
    found = judge(*rows)
    assert found.technique == "custom-init"
    assert "< −59" in found.reasons[0]
