"""A machine that hangs is an outcome of a benchmark: told, counted, and another one is tried in its place.

Under emulation a machine hangs once in some hundred boots, without a word on its console. Figures that were
measured before it are not lost for that, and the result says how many hung.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Measured = TypeVar("Measured")

#: How often one measurement is tried before it is left out.
MOST_TRIES = 3
_CONSOLE_LINES = 5


class HangError(Exception):
    """A machine did not do within ``after_s`` seconds what was waited for. ``console`` ends what it said."""

    def __init__(self, instance_id: str, after_s: float, console: str) -> None:
        super().__init__(f"{instance_id} hangs: nothing for {after_s:.0f} s")
        self.instance_id = instance_id
        self.after_s = after_s
        self.console = console


def console_end(path: Path) -> str:
    """The last lines of a machine's console; empty when there is none, which is what a hang often leaves."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_CONSOLE_LINES:])


@dataclass
class Hangs:
    """What hung in a run of a benchmark."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def measured(self, what: str, attempt: Callable[[], Measured]) -> Measured | None:
        """The attempt's result, of the first machine that does not hang; None when MOST_TRIES have hung.

        Any other error is the benchmark's own, and goes on.
        """
        for number in range(1, MOST_TRIES + 1):
            try:
                return attempt()
            except HangError as error:
                self.rows.append(
                    {"what": what, "try": number, "instance": error.instance_id, "after_s": error.after_s,
                     "console": error.console}
                )  # fmt: skip
                last = "" if number < MOST_TRIES else "; it is left out"
                print(f"{what}: {error}, try {number} of {MOST_TRIES}{last}", file=sys.stderr)
        return None
