"""The harness against stand-ins that know the truth. The bounds are for busy machines: benchmarks/ has the
figures."""

from __future__ import annotations

import pytest
from calibration import Calibration, calibrate, percentile


@pytest.fixture(scope="module")
def ten_at_a_time() -> Calibration:
    return calibrate(in_flight=10, attempts=10, boot_s=(1.0, 2.0))


@pytest.mark.slow
def test_marks_are_where_the_stand_ins_say(ten_at_a_time: Calibration) -> None:
    found = ten_at_a_time
    assert found.failures == []
    # An answer cannot be seen before it was given; ten microseconds are the two processes' clock readings.
    assert min(found.t3_ms) > -0.01
    assert min(found.t4_ms) > -0.01
    # One connect every 10 ms, so half of the errors should be below that; a loaded machine takes its time.
    assert percentile(found.t3_ms, 0.5) < 100
    assert percentile(found.t4_ms, 0.5) < 100


@pytest.mark.slow
def test_api_calls_of_an_attempt_do_not_grow_with_those_in_flight(ten_at_a_time: Calibration) -> None:
    alone = calibrate(in_flight=1, attempts=2, boot_s=(1.0, 2.0))
    assert alone.failures == []
    assert ten_at_a_time.calls["RunInstances"] == 10
    assert ten_at_a_time.calls_per_attempt <= alone.calls_per_attempt
