"""What a run says about how long techniques take, written for whoever has to choose one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness.results_file import Row
from instant_env.arch import Arch
from instant_env.cloud.session import Cloud
from instant_env.launch import estimates
from instant_env.launch.estimates import Estimate
from instant_env.launch.timeline import Outcome

#: A 0.9 quantile of fewer attempts is their slowest one.
MIN_ATTEMPTS = 5
_QUANTILE = 0.9


def of_rows(rows: Sequence[Row], *, cloud: str, run: str) -> list[Estimate]:
    """One estimate for each technique, architecture and type with five good attempts or more, as they are
    launched without an experiment's variations. A way of getting machines counts under its own name,
    whatever image it had: ``custom-init+warm-running`` is ``warm-running``."""
    times: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    first: dict[tuple[str, str, str], str] = {}
    for row in rows:
        if row.outcome == Outcome.OK and row.t4_ms is not None and not row.variant:
            key = (row.technique.rpartition("+")[2], row.arch, row.instance_type)
            times[key].append(row.t4_ms)
            first.setdefault(key, row.t0_utc)
    return [
        Estimate(
            technique=key[0],
            arch=Arch.parse(key[1]),
            instance_type=key[2],
            p90_ms=sorted(values)[math.ceil(len(values) * _QUANTILE) - 1],
            n=len(values),
            cloud=cloud,
            run=run,
            measured_utc=first[key],
        )
        for key, values in sorted(times.items())
        if len(values) >= MIN_ATTEMPTS
    ]


def record(cloud: Cloud, rows: Iterable[Row], *, run: str) -> None:
    """Put a run's estimates into the state directory, over older ones."""
    new_estimates = of_rows(list(rows), cloud=cloud.name.value, run=run)
    if new_estimates:
        estimates.record(estimates.path_in(cloud.settings.state_dir), new_estimates)
