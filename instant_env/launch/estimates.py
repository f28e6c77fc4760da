"""How long techniques took in the newest benchmark, for whoever has to choose one: a file that the harness
writes and others read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from instant_env.arch import Arch
from instant_env.files import write_json

_VERSION = 1


@dataclass(frozen=True)
class Estimate:
    """The 0.9 quantile of t4 in one run, in ms from t0. ``measured_utc``: when the run began, RFC 3339;
    ``run``: its CSV's name; ``cloud``: where."""

    technique: str
    arch: Arch
    instance_type: str
    p90_ms: float
    n: int
    cloud: str
    run: str
    measured_utc: str


def path_in(state_dir: Path) -> Path:
    return state_dir / "estimates.json"


def record(path: Path, estimates: Iterable[Estimate]) -> None:
    """Put these in place of earlier ones of the same technique, architecture, type and cloud."""
    merged = {_key(estimate): estimate for estimate in [*read(path), *estimates]}
    rows = [asdict(estimate) for _, estimate in sorted(merged.items())]
    write_json(path, {"version": _VERSION, "estimates": rows})


def read(path: Path, cloud: str = "") -> list[Estimate]:
    """All, or those of one cloud. A file that is missing, damaged or of another version is empty: nobody's
    work depends on it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            return []
        estimates = [Estimate(**{**row, "arch": Arch(row["arch"])}) for row in document["estimates"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [estimate for estimate in estimates if cloud in ("", estimate.cloud)]


def _key(estimate: Estimate) -> tuple[str, str, str, str]:
    return estimate.cloud, estimate.technique, estimate.arch.value, estimate.instance_type
