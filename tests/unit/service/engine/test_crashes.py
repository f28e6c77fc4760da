"""SIGKILL of the service at each step of a lease's life, then a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(600)
def test_after_a_kill_at_any_step_the_lease_is_ready_or_over_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.service.crash", str(tmp_path)], cwd=_TESTS, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    for technique in ("warm-running", "cold"):
        names = {step["name"] for step in steps if step["technique"] == technique}
        assert {"wrote: admit", "wrote: change_lease", "EC2: terminated"} <= names
    for step in steps:
        assert step.get("error") is None, step
        assert step["killed"], step
        # At once after the restart: nothing hangs on its way.
        assert set(step["found"]) <= {"ready", "ending", "ended"}, step
        # The same key is the same lease.
        assert step["leases"] == 1, step
        # After its time: over, and no machine but those that wait in the pool.
        assert step["states"] == ["ended"], step
        assert step["leaked"] == [], step
        assert step["lost"] == [], step
