"""How long the audit of a disk takes, by this checkout and by another revision.

    .venv/bin/python benchmarks/audit.py --disk disk.raw [--against HEAD~1] [--rounds 5]

Needs root, as the audit mounts what it reads. Both programs are built, and run in turns on the same disk
image (`qemu-img convert -O raw` makes one of a stock image), after one run that fills the page cache. Prints
one JSON object with seconds passed and processor time, user and system; processor time says more where
others use the machine. Figures of different machines are not comparable.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from instant_env.arch import Arch
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_environment

#: Of the issue that widened the rules: an audit takes at most a third more time than before it.
TARGET_RATIO = 4 / 3


def build(revision: str | None, directory: Path, name: str) -> Path:
    """imagetool of a revision, or of this checkout."""
    source = ROOT
    if revision is not None:
        source = directory / f"source-{name}"
        source.mkdir()
        archive = subprocess.run(
            ["git", "archive", revision, "cmd", "internal", "go.mod", "go.sum"],
            cwd=ROOT, check=True, capture_output=True,
        ).stdout  # fmt: skip
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    program = directory / name
    arch = Arch.parse(platform.machine())
    subprocess.run(
        [find_go(), "build", "-trimpath", "-o", str(program), "./cmd/imagetool"],
        cwd=source, env=go_environment(arch), check=True,
    )  # fmt: skip
    return program


def run(program: Path, disk: Path) -> dict[str, float]:
    """One audit. Findings are no error here; no answer is."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run(
        [str(program), "audit", "--device", str(disk), "--json"], capture_output=True, text=True, check=False
    )
    passed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode not in (0, 1):
        raise SystemExit(f"{program.name} exited with {result.returncode}: {result.stderr.strip()}")
    report = json.loads(result.stdout)
    return {
        "passed_s": round(passed, 3),
        "processor_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3),
        "findings": len(report["findings"]),
        "bytes": report["bytes_scanned"],
    }


def measure(disk: Path, against: str, rounds: int) -> dict[str, object]:
    load_1min = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="instant-env-audit-") as name:
        programs = {"this": build(None, Path(name), "this"), "other": build(against, Path(name), "other")}
        run(programs["other"], disk)  # into the page cache
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in programs}
        for number in range(rounds):
            for side in sorted(programs, reverse=number % 2 == 1):
                runs[side].append(run(programs[side], disk))
    medians = {
        side: {
            figure: statistics.median(one[figure] for one in all_) for figure in ("passed_s", "processor_s")
        }
        for side, all_ in runs.items()
    }
    return {
        "runs": runs,
        "medians": medians,
        "ratio": {
            figure: round(medians["this"][figure] / medians["other"][figure], 3)
            for figure in ("passed_s", "processor_s")
        },
        "target_ratio": round(TARGET_RATIO, 3),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "load_1min": [round(load_1min, 2), round(os.getloadavg()[0], 2)],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the audit of one disk by two revisions.")
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--against", default="HEAD~1", help="revision to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.disk, arguments.against, arguments.rounds), indent=1))


if __name__ == "__main__":
    main()
