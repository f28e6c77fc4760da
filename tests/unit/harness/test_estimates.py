"""What a run tells whoever has to choose a technique."""

from __future__ import annotations

from pathlib import Path

from support.harness_rows import row

from harness.run.estimates import of_rows
from instant_env.launch import estimates


def test_the_090_quantile_of_five_good_attempts_or_more(tmp_path: Path) -> None:
    rows = [
        *(row("cold", 1000.0 * number) for number in range(1, 11)),
        *(row("cold", None) for _ in range(3)),
        *(row("custom-init", 900.0) for _ in range(4)),
        *(row("custom-init+warm-running", 500.0 + number) for number in range(5)),
        *(row("cold", 1.0, variant="hop_limit=2") for _ in range(9)),
    ]
    found = of_rows(rows, cloud="local", run="race.csv")
    assert [(one.technique, one.p90_ms, one.n) for one in found] == [
        ("cold", 9000.0, 10), ("warm-running", 504.0, 5),
    ]  # fmt: skip
    estimates.record(estimates.path_in(tmp_path), found)
    assert estimates.read(estimates.path_in(tmp_path), "local") == found
