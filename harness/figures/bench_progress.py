"""How a run stands, for whoever watches it: attempts done, medians against cold, money, time left."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from harness.results_file import Row
from instant_env.launch.techniques import BASELINE
from instant_env.launch.timeline import Outcome


@dataclass(frozen=True)
class Standing:
    """After a row. ``rows`` are those of this session, ``to_do`` is how many it is to have."""

    rows: Sequence[Row]
    to_do: int
    spent_usd: float
    took_s: float

    @property
    def left_s(self) -> float:
        """At the pace so far."""
        return self.took_s / len(self.rows) * (self.to_do - len(self.rows)) if self.rows else 0.0

    def medians_s(self) -> dict[str, tuple[int, float | None]]:
        """Attempts and median t4 of those that were ok, by label."""
        out: dict[str, tuple[int, float | None]] = {}
        for name in dict.fromkeys(row.label for row in self.rows):
            own = [row for row in self.rows if row.label == name]
            values = [row.t4_ms for row in own if row.outcome == Outcome.OK and row.t4_ms is not None]
            out[name] = (len(own), statistics.median(values) / 1000 if values else None)
        return out


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def status_line(standing: Standing) -> str:
    """``12/30 attempts · $0.04 · about 5:10 left``; no money where it costs none."""
    money = f" · ${standing.spent_usd:.2f}" if standing.spent_usd else ""
    return f"{len(standing.rows)}/{standing.to_do} attempts{money} · about {_clock(standing.left_s)} left"


def render(standing: Standing) -> Group:
    """The line, and under it a table of what is known so far: figures in progress, not results."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("so far", "n", "p50 t4 s", "× cold"):
        table.add_column(heading, justify="left" if heading == "so far" else "right", no_wrap=True)
    medians = standing.medians_s()
    cold = medians.get(BASELINE, (0, None))[1]
    for name, (n, median) in medians.items():
        against = f"{cold / median:.1f}" if cold and median and name != BASELINE else ""
        table.add_row(Text(name), str(n), "" if median is None else f"{median:.2f}", against)
    return Group(Text(status_line(standing), style="bold"), table)
