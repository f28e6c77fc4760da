"""The side file of a run: what systemd machines say of their own boots, a JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from harness.results_file import guests_path
from harness.run.attempt import Attempt
from instant_env.launch.boot_records import BootRecords


def append(csv_path: Path, attempt: Attempt, records: BootRecords) -> None:
    """Add an attempt's records; on the disk when this returns.

    ``boot_ms`` joins them to the row, whose t0 is 0.
    """
    planned = attempt.planned
    line = {
        "attempt": planned.attempt,
        "technique": planned.technique,
        "variant": planned.cell.variant,
        "instance_id": attempt.launch.instance_id,
        "boot_ms": attempt.timeline.ms(attempt.guest.boot_at_ns) if attempt.guest else None,
        **dataclasses.asdict(records),
    }
    with guests_path(csv_path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
