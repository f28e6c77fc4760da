from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.harness_rows import race, row, write_run

from harness.figures.compare import Outcomes, compare_runs, limit, render
from instant_env.errors import UsageError

REVISION_B = "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of one host: custom-init became some 50 % slower, cold stayed."""
    write_run(tmp_path / "20260101T000000Z-a.csv", race(12, cold=40_000, custom_init=8_000))
    write_run(
        tmp_path / "20260102T000000Z-b.csv", race(12, seed=2, cold=40_000, custom_init=12_000),
        git={"revision": REVISION_B, "dirty": False},
    )  # fmt: skip
    return tmp_path


def verdicts(found: Outcomes) -> dict[str, str]:
    return {change.technique: change.verdict for change in found.changes if change.phase == "t4_ms"}


def test_what_got_slower_and_what_did_not(runs: Path) -> None:
    found = compare_runs(runs, "20260101T000000Z-a", "20260102T000000Z-b.csv", fail_if_slower="10%")
    assert verdicts(found) == {"cold": "no difference shown", "custom-init": "slower"}
    (change,) = found.too_slow
    assert (change.technique, change.phase) == ("custom-init", "t2_t4_ms")
    assert change.interval is not None
    assert change.change is not None
    assert 0.4 < change.interval[0] < change.change < change.interval[1] < 0.7
    assert "FAILED: custom-init is more than 10 % slower in t2→t4" in render(found)
    assert found.as_json()["too_slow"] == ["custom-init t2→t4"]

    back = compare_runs(runs, "20260102T000000Z-b", "20260101T000000Z-a", fail_if_slower="10%")
    assert verdicts(back)["custom-init"] == "faster"
    assert back.too_slow == ()


def test_a_run_without_attempts_is_in_nobodys_way(runs: Path) -> None:
    header = (runs / "20260101T000000Z-a.csv").read_text().partition("\n")[0]
    (runs / "20260103T000000Z-c.csv").write_text(header + "\n")
    assert verdicts(compare_runs(runs, "20260101T000000Z-a", REVISION_B))["custom-init"] == "slower"
    with pytest.raises(UsageError, match="no attempts"):
        compare_runs(runs, "20260101T000000Z-a", "20260103T000000Z-c")


def test_only_an_interval_wholly_above_the_limit_fails(runs: Path) -> None:
    def failed(most: str) -> bool:
        return bool(
            compare_runs(runs, "20260101T000000Z-a", "20260102T000000Z-b", fail_if_slower=most).too_slow
        )

    # The median is some 50 % slower, and the interval begins a little lower.
    assert [failed(most) for most in ("0%", "40%", "55%", "100%")] == [True, True, False, False]


def test_too_few_blocks_never_fail_and_say_so(tmp_path: Path) -> None:
    write_run(tmp_path / "20260101T000000Z-a.csv", race(5, cold=8_000))
    write_run(tmp_path / "20260102T000000Z-b.csv", race(20, cold=80_000))
    found = compare_runs(tmp_path, "20260101T000000Z-a", "20260102T000000Z-b", fail_if_slower="10%")
    assert verdicts(found) == {"cold": "too few blocks"}
    assert found.too_slow == ()
    assert "without 6 blocks on both sides there is no interval" in render(found)


def test_machines_that_hang_now_are_slower(tmp_path: Path) -> None:
    write_run(tmp_path / "20260101T000000Z-a.csv", race(8, cold=8_000))
    write_run(tmp_path / "20260102T000000Z-b.csv", [row(t4_ms=None, block=b) for b in range(8)])
    found = compare_runs(tmp_path, "20260101T000000Z-a", "20260102T000000Z-b", fail_if_slower="10%")
    assert len(found.too_slow) == 1
    assert found.too_slow[0].change is None  # by how much, nobody waited to see
    assert "> 600" in render(found)


def test_revisions_and_amis_are_found_among_the_results(runs: Path) -> None:
    assert verdicts(compare_runs(runs, "0123456789ab", REVISION_B))["custom-init"] == "slower"
    amis = {"cold": "ami-00000000", "custom-init": "ami-0000000c", "minimal-ami": "ami-0000000d"}
    rows = [
        row(one.technique, one.t4_ms, block=one.block, ami=amis[one.technique])
        for one in race(12, cold=40_000, minimal_ami=20_000, custom_init=8_000)
    ]
    for second in (1, 2):
        write_run(runs / f"2026010{second}T000001Z-amis.csv", rows)
    found = compare_runs(runs, "ami-0000000d", "ami-0000000c")
    assert verdicts(found) == {"minimal-ami → custom-init": "faster"}
    assert "2 runs fit, this is the newest (20260102T000001Z-amis.csv)" in found.cautions[0]


def test_a_run_of_a_changed_checkout_says_so(runs: Path) -> None:
    write_run(
        runs / "20260103T000000Z-c.csv", race(6, cold=40_000), git={"revision": "c" * 40, "dirty": True}
    )
    assert any("differed" in caution for caution in compare_runs(runs, "0123456789ab", "c" * 40).cautions)


@pytest.mark.parametrize(
    ("rows", "about", "words"),
    [
        (
            {},
            {"host": {"cpu": "another", "cores": 2, "memory_mib": 4096, "kernel": "6.1"}},
            "different hosts",
        ),
        ({}, {"host": None}, "on which host"),
        ({"accelerator": "kvm"}, {}, r"different accelerators \(tcg and kvm\)"),
        ({"cloud": "aws"}, {}, r"different clouds \(local and aws\)"),
    ],
)
def test_what_does_not_belong_together_takes_force(
    runs: Path, rows: dict[str, Any], about: dict[str, Any], words: str
) -> None:
    other = [
        row(one.technique, one.t4_ms, block=one.block, **rows)
        for one in race(8, cold=40_000, custom_init=8_000)
    ]
    write_run(runs / "20260103T000000Z-c.csv", other, **about)
    with pytest.raises(UsageError, match=words) as caught:
        compare_runs(runs, "20260101T000000Z-a", "20260103T000000Z-c")
    assert "--force" in caught.value.hint
    found = compare_runs(runs, "20260101T000000Z-a", "20260103T000000Z-c", force=True)
    assert "compared by force" in render(found)
    assert set(verdicts(found)) == {"cold", "custom-init"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("ami-12345678", "no run in .* has measured ami-12345678"),
        ("no-such-branch", "neither a CSV in .* nor an AMI id nor a git revision"),
        ("--help", "nor a git revision"),
        ("HEAD", "no run in .* is of revision"),
        ("abcdefabcdef", "no run in .* is of revision abcdefabcdef"),
    ],
)
def test_what_cannot_be_found_says_how_to_get_it(runs: Path, asked: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        compare_runs(runs, "20260101T000000Z-a", asked)
    assert caught.value.hint


def test_nothing_in_common(runs: Path) -> None:
    write_run(runs / "20260103T000000Z-c.csv", race(6, minimal_ami=1_000, warm=1_000))
    with pytest.raises(UsageError, match="no technique in common"):
        compare_runs(runs, "20260101T000000Z-a", "20260103T000000Z-c")


def test_limits() -> None:
    assert [limit(text) for text in ("", "10%", "2.5", " 0% ")] == [None, 0.1, 0.025, 0.0]
    for text in ("ten", "-5%", "10%%", "inf"):
        with pytest.raises(UsageError, match="is not a percentage"):
            limit(text)
