from __future__ import annotations

import pytest

from instant_env.launch.boot_records import RecordsError, Span, parse

#: The clocks say that the kernel started at 2026-11-21 12:00:00 UTC (1795262400).
ANSWER = """== clocks
42.50 1795262442.500000000
== manager
FirmwareTimestampMonotonic=3000000
LoaderTimestampMonotonic=1000000
InitRDTimestampMonotonic=900000
UserspaceTimestampMonotonic=2500000
FinishTimestampMonotonic=0
== units
Id=ssh.service
InactiveExitTimestampMonotonic=9000000
ActiveEnterTimestampMonotonic=9500000

Id=cloud-init.service
InactiveExitTimestampMonotonic=4000000
ActiveEnterTimestampMonotonic=0

Id=never.service
InactiveExitTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0
== cloud-init
2026-11-21 12:00:05,100 - handlers.py[DEBUG]: start: init-network: searching for network datasources
2026-11-21 12:00:05,200 - handlers.py[DEBUG]: start: init-network/check-cache: attempting to read from cache
2026-11-21 12:00:05,450 - handlers.py[DEBUG]: finish: init-network/check-cache: SUCCESS: no cache found
nonsense
2026-11-21 12:00:08,100 - handlers.py[DEBUG]: finish: init-network: FAIL: searching for network datasources
2026-11-21 12:00:09,000 - handlers.py[DEBUG]: start: modules-final: running modules for final
== until
43.10
== end
"""


def test_systemd_and_cloud_init_are_on_one_clock() -> None:
    found = parse(ANSWER)
    assert found is not None
    assert found.stages == (
        Span("firmware", -3000, -1000),
        Span("loader", -1000, 0),
        Span("kernel", 0, 900),
        Span("initrd", 900, 2500),
        Span("userspace", 2500, None),
    )
    assert found.units == (Span("cloud-init.service", 4000, None), Span("ssh.service", 9000, 9500))
    assert found.cloud_init == (
        Span("init-network", 5100, 8100, "FAIL"),
        Span("init-network/check-cache", 5200, 5450, "SUCCESS"),
        Span("modules-final", 9000, None),
    )
    assert not found.clock_stepped


def test_a_stage_whose_start_is_not_in_the_log_began_with_its_first_part() -> None:
    without = "".join(line for line in ANSWER.splitlines(True) if "start: init-network: " not in line)
    found = parse(without)
    assert found is not None
    assert Span("init-network", 5200, 8100, "FAIL") in found.cloud_init


def test_what_happens_while_it_is_asked_is_no_step() -> None:
    late = "2026-11-21 12:00:44,000 - handlers.py[DEBUG]: start: modules-final/config-late: it runs\n== until"
    found = parse(ANSWER.replace("== until", late))
    assert found is not None
    assert not found.clock_stepped
    found = parse(ANSWER.replace("== until", late.replace("12:00:44", "12:00:45")))
    assert found is not None
    assert found.clock_stepped


def test_a_clock_that_was_stepped_is_told() -> None:
    found = parse(ANSWER.replace("1795262442.5", "1795269642.5"))
    assert found is not None
    assert found.clock_stepped


def test_a_machine_without_systemd_has_none() -> None:
    assert parse("== none\n") is None


@pytest.mark.parametrize(
    "text", ["", "sh: syntax error", ANSWER.replace("== end\n", ""), ANSWER.replace("42.50 ", "")]
)
def test_half_an_answer_is_refused(text: str) -> None:
    with pytest.raises(RecordsError):
        parse(text)


@pytest.mark.parametrize(
    ("printed", "instead"),
    [
        ("FinishTimestampMonotonic=0", "FinishTimestampMonotonic=\u00b2"),
        ("2026-11-21 12:00:05,100", "2026-13-41 12:00:05,100"),
        ("42.50 1795262442.500000000", "inf nan"),
        ("42.50 1795262442.500000000", "1 2 3"),
    ],
    ids=["a digit that is no number", "a day that is none", "no finite clock", "a third clock"],
)
def test_whatever_a_guest_prints_is_a_record_or_an_error(printed: str, instead: str) -> None:
    assert printed in ANSWER
    with pytest.raises(RecordsError, match="not what was asked for"):
        parse(ANSWER.replace(printed, instead, 1))
