from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.harness_rows import records, row, write_run

from harness.figures.reading import read_results
from harness.figures.report import make
from harness.figures.waterfall import Stage, breakdowns, stretches
from instant_env.errors import UsageError

PID1 = {
    "t1_ms": 100.0, "t2_ms": 500.0, "t3_ms": 9_500.0, "guest_boot_ms": 4_000.0, "init_start_ms": 2_000.0,
    "network_up_ms": 3_000.0, "key_received_ms": 3_200.0, "key_written_ms": 3_300.0,
    "sshd_started_ms": 3_500.0,
}  # fmt: skip


def stages(**changes: Any) -> list[tuple[Stage, float]]:
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


def test_the_kernels_end_is_told_from_our_inits_start() -> None:
    assert stages(kernel_handoff_ms=1_900.0)[3:5] == [(Stage.KERNEL, 1_900.0), (Stage.INIT, 100.0)]


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


def test_a_machine_of_a_pool_only_answers() -> None:
    bare: dict[str, float | None] = dict.fromkeys(PID1)
    running = bare | {"t1_ms": 100.0, "t2_ms": 100.0, "t3_ms": 300.0, "guest_boot_ms": -9_000.0}
    assert stages(**running) == [(Stage.API, 100.0), (Stage.SSHD, 200.0), (Stage.AUTH, 9_700.0)]


def test_a_machine_that_slept_goes_on_at_a_mark_of_its_own() -> None:
    bare: dict[str, Any] = dict.fromkeys(PID1)
    asleep = bare | {
        "t1_ms": 100.0, "t2_ms": 500.0, "t3_ms": 8_000.0, "guest_boot_ms": -60_000.0, "resumed": "yes",
    }  # fmt: skip
    told = {"resumed_ms": 67_500.0, "key_received_ms": 67_600.0, "key_written_ms": 67_900.0}
    assert stages(**asleep | told)[2:] == [
        (Stage.RESUME, 7_000.0), (Stage.KEY, 400.0), (Stage.SSHD, 100.0), (Stage.AUTH, 2_000.0),
    ]  # fmt: skip
    # With another init nobody knows when.
    assert stages(**asleep)[2] == (Stage.UNEXPLAINED, 7_500.0)


def span(name: str, began_ms: float, ended_ms: float | None) -> dict[str, Any]:
    return {"name": name, "began_ms": began_ms, "ended_ms": ended_ms, "result": ""}


def test_systemd_and_cloud_init_account_for_a_stock_image(tmp_path: Path) -> None:
    marks: dict[str, Any] = {"t1_ms": 100.0, "t2_ms": 500.0, "guest_boot_ms": 4_000.0, "t3_ms": 29_000.0}
    path = write_run(tmp_path / "20260101T000000Z-x.csv", [row("cold", 30_000.0, **marks)])
    boot: dict[str, Any] = {
        "attempt": 1,
        "stages": [span("kernel", 0, 2_000), span("initrd", 2_000, 5_000), span("userspace", 5_000, None)],
        "units": [span("cloud-init.service", 8_000, 15_000), span("ssh.service", 20_000, None)],
        "cloud_init": [
            span("init-local", 6_000, 7_000), span("init-network", 9_000, 15_000),
            span("init-network/check-cache", 9_100, 9_200), span("modules-config", 19_000, 22_000),
            span("modules-final", 23_000, None),
        ],
        "clock_stepped": False,
    }  # fmt: skip

    def told() -> dict[Stage, float]:
        path.with_suffix(".guests.jsonl").write_text(json.dumps(boot) + "\n")
        pieces = stretches(read_results(path).records[0])
        assert sum(piece.ms for piece in pieces) == pytest.approx(30_000)
        return {stage: sum(p.ms for p in pieces if p.stage is stage) for stage in {p.stage for p in pieces}}

    expected = {
        Stage.API: 100, Stage.RUNNING: 400, Stage.FIRMWARE: 3_500, Stage.KERNEL: 2_000,
        # Its stage init-network begins with its unit, at 8 s.
        Stage.INITRAMFS: 3_000, Stage.UNITS: 6_000, Stage.CLOUD_INIT: 9_000, Stage.SSHD: 5_000,
        Stage.AUTH: 1_000,
    }  # fmt: skip
    assert told() == expected
    report = make(read_results(path))
    assert report.sections[0].works is not None
    assert report.sections[0].works.rows == (
        ("cold", "cloud-init: init-local", "1", "6.00", "1.00"),
        ("cold", "cloud-init.service", "1", "8.00", "7.00"),
        ("cold", "cloud-init: init-network", "1", "9.00", "6.00"),
        ("cold", "cloud-init: init-network/check-cache", "1", "9.10", "0.10"),
        ("cold", "cloud-init: modules-config", "1", "19.00", "3.00"),
    )
    for text in (report.html(), report.markdown(), report.fragment("works")):
        assert "cloud-init: init-network/check-cache" in text
    boot["clock_stepped"] = True  # cloud-init's wall clock cannot be joined
    assert told() == {key: ms for key, ms in expected.items() if key is not Stage.CLOUD_INIT} | {
        Stage.UNITS: 15_000
    }
    boot["units"] = []
    assert Stage.UNEXPLAINED in told()
    path.with_suffix(".guests.jsonl").write_text("{")
    with pytest.raises(UsageError, match="guests"):
        read_results(path)


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
