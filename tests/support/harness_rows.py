"""Attempts made up for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.figures.reading import Record, record_of
from harness.results_file import ResultFile, Row


def row(technique: str = "cold", t4_ms: float | None = 40_000.0, outcome: str = "", **changes: Any) -> Row:
    """An attempt in a cloud that gave the machine at 500 ms; without ``t4_ms`` a time-out, or ``outcome``."""
    values: dict[str, Any] = {
        "run_id": "r",
        "attempt": 1,
        "block": 1,
        "technique": technique,
        "arch": "x86_64",
        "cloud": "local",
        "accelerator": "tcg",
        "region": "us-east-1",
        "instance_type": "m7i.large",
        "in_flight": 1,
        "ami": "ami-1",
        "outcome": outcome or ("ok" if t4_ms is not None else "timeout"),
        "timeout_s": 600.0,
        "t0_utc": "2026-01-02T03:04:05.678Z",
        "t1_ms": 100.0,
        "t2_ms": 500.0,
        "t4_ms": t4_ms,
        "t2_t4_ms": t4_ms - 500 if t4_ms is not None else None,
        "probes": 3,
        "probes_refused": 2,
        "probes_silent": 0,
        "probes_garbage": 0,
        "keys_refused": 0,
    }
    return Row(**(values | changes))


def records(*rows: Row) -> list[Record]:
    return [record_of(row) for row in rows]


def race(n: int = 10, seed: int = 1, **medians_ms: float) -> list[Row]:
    """``n`` blocks of each technique (underscores for dashes), spread by some 5 % around its median."""
    spread = random.Random(seed)  # noqa: S311 - the same rows each time
    return [
        row(
            name.replace("_", "-"), round(ms * spread.lognormvariate(0, 0.05), 3), attempt=number, block=block
        )
        for block in range(1, n + 1)
        for number, (name, ms) in enumerate(medians_ms.items(), start=(block - 1) * len(medians_ms) + 1)
    ]


def write_run(path: Path, rows: Sequence[Row], **changes: Any) -> Path:
    """A CSV, and metadata as a run leaves them beside it."""
    with ResultFile(path) as results:
        for one in rows:
            results.append(one)
    about: dict[str, Any] = {
        "run_id": "r",
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "host": {"cpu": "Abacus <1>", "cores": 2, "memory_mib": 4096, "kernel": "6.1"},
        "load_at_start": [0.1, 0.1, 0.1],
        "load_at_end": [0.2, 0.2, 0.2],
        "seed": 7,
        "status": "finished",
        "techniques": {name: {"ami": "ami-1"} for name in dict.fromkeys(one.technique for one in rows)},
    }
    path.with_suffix(".json").write_text(json.dumps(about | changes), encoding="utf-8")
    return path
