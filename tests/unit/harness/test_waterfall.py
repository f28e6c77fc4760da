from __future__ import annotations

from typing import Any

import pytest
from harness_rows import records, row

from harness.waterfall import Stage, breakdowns, stretches

PID1 = {
    "t1_ms": 100.0, "t2_ms": 500.0, "t3_ms": 9_500.0, "guest_boot_ms": 4_000.0, "init_start_ms": 2_000.0,
    "network_up_ms": 3_000.0, "key_received_ms": 3_200.0, "key_written_ms": 3_300.0,
    "sshd_started_ms": 3_500.0,
}  # fmt: skip


def stages(**changes: float | None) -> list[tuple[Stage, float]]:
    marks: dict[str, Any] = PID1 | changes
    (record,) = records(row("custom-init", 10_000.0, **marks))
    return [(piece.stage, piece.ms) for piece in stretches(record)]


def test_all_of_t4_is_in_one_stage_or_another() -> None:
    assert stages() == [
        (Stage.API, 100.0),
        (Stage.RUNNING, 400.0),
        (Stage.FIRMWARE, 3_500.0),
        (Stage.KERNEL, 2_000.0),
        (Stage.NETWORK, 1_000.0),
        (Stage.KEY, 300.0),
        (Stage.SSHD, 2_200.0),
        (Stage.AUTH, 500.0),
    ]


def test_what_no_mark_explains_says_so() -> None:
    """A machine without our init: what its kernel and its init did before sshd answered, nobody saw."""
    bare = dict.fromkeys(name for name in PID1 if name.endswith(("start_ms", "up_ms", "ed_ms", "en_ms")))
    assert stages(**bare)[2:] == [
        (Stage.FIRMWARE, 3_500.0), (Stage.UNEXPLAINED, 5_500.0), (Stage.AUTH, 500.0),
    ]  # fmt: skip
    # With our key agent, systemd's part is one piece, and what came after the key another.
    assert stages(sshd_started_ms=None)[3:] == [
        (Stage.SYSTEMD, 2_000.0), (Stage.NETWORK, 1_000.0), (Stage.KEY, 300.0), (Stage.UNEXPLAINED, 2_200.0),
        (Stage.AUTH, 500.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"t1_ms": None, "t2_ms": None},
        {"guest_boot_ms": 300.0},  # seen running only after the kernel had begun
        {"guest_boot_ms": 9_000.0},  # a clock joined so badly that marks lie behind t4
        {"guest_boot_ms": -50.0},
        {"t3_ms": None},
        {"sshd_started_ms": 3_100.0},  # before the key was there
    ],
)
def test_stages_add_up_to_t4_whatever_is_missing_or_in_disorder(changes: dict[str, float | None]) -> None:
    found = stages(**changes)
    assert sum(ms for _, ms in found) == pytest.approx(10_000.0)
    assert all(ms > 0 for _, ms in found)


def test_the_attempt_shown_is_the_median_one_and_shares_are_of_all() -> None:
    rows = [
        row("cold", t4_ms, attempt=number, t3_ms=t4_ms - 100, guest_boot_ms=1_000.0)
        for number, t4_ms in enumerate((10_000.0, 30_000.0, 11_000.0, 20_000.0), 1)
    ]
    rows.append(row("cold", None, attempt=5))
    (found,) = breakdowns(records(*rows, row("custom-init", None)), ["cold", "custom-init"])
    assert (found.attempt, found.n, found.t4_ms) == ("3", 4, 11_000.0)
    assert found.stages_ms[Stage.UNEXPLAINED] == pytest.approx(14_400.0)
    assert found.unexplained == pytest.approx((9_900 / 11_000 + 18_900 / 20_000) / 2)
