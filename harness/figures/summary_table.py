"""The summary for people: a rich table on a terminal, aligned text anywhere else."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.figures.reading import Kind
from harness.figures.statistics import PHASES, Estimate, Figure, Summary
from instant_env.foreign import visible
from instant_env.launch.techniques import BASELINE

HEADINGS = ("technique", "ok", "phase", "min s", "p50 s", "p90 s", "p99 s", "× faster")
_LEFT = (0, 2)

#: How machines ran, in words: an emulated second is not a second of EC2.
_ACCELERATORS = {
    "tcg": "software emulation (TCG)",
    "kvm": "hardware virtualisation (KVM)",
    "ec2": "EC2's own hardware",
}


def caption(kind: Kind) -> str:
    """Where the figures come from; a table never goes without it."""
    where = {"local": "localec2 on this host, not EC2", "aws": "AWS"}.get(kind.cloud, kind.cloud)
    how = _ACCELERATORS.get(kind.accelerator, kind.accelerator)
    return f"{kind}; cloud: {where}; accelerator: {how}"


def figure(value: Figure | None) -> str:
    """In seconds: ``58.07``, or ``> 600`` when the true value is beyond what was waited for."""
    if value is None:
        return ""
    return f"> {value.ms / 1000:.5g}" if value.censored else f"{value.ms / 1000:.2f}"


def _number(value: float, digits: int, *, sign: bool) -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def ratio(value: Estimate) -> str:
    """Times faster: ``5.7 [5.4–6.0]``, without brackets when there is no interval, ``> 5.7`` when open."""
    # Below 1 a second digit: 0.07 is not 0.1.
    low, high = (_number(end, 1 if end >= 1 else 2, sign=False) for end in (value.low, value.high))
    text = low if value.exact else f"> {low}" if math.isinf(value.high) and value.low > 0 else f"< {high}"
    if math.isinf(value.high) and value.low == 0:
        text = "unknown"
    if value.interval is None:
        return text
    ends = (_number(end, 1 if end >= 1 else 2, sign=False) for end in value.interval)
    return f"{text} [{'–'.join(ends)}]"


def difference(value: Estimate) -> str:
    """Seconds, minus is faster: ``−47.46 [−48.10, −46.90]``; open ends as in :func:`ratio`."""
    low, high = (_number(end / 1000, 2, sign=True) for end in (value.low, value.high))
    if value.exact:
        text = low
    elif math.isfinite(value.low):
        text = f"> {low}"
    else:
        text = f"< {high}" if math.isfinite(value.high) else "unknown"
    if value.interval is None:
        return text
    return f"{text} [{', '.join(_number(end / 1000, 2, sign=True) for end in value.interval)}]"


def interval_s(value: tuple[float, float] | None) -> str:
    """``56.85–63.31``; empty when there is none."""
    return "" if value is None else "–".join(_number(end / 1000, 2, sign=False) for end in value)


def lines(summary: Summary) -> list[tuple[str, ...]]:
    """The table's cells, a line per technique and phase."""
    out: list[tuple[str, ...]] = []
    for technique in summary.techniques:
        head = (technique.technique, f"{technique.n - technique.failures}/{technique.n}")
        if not technique.phases:
            out.append((*head, "none", "", "", "", "", ""))
        for phase, figures in technique.phases.items():
            against = technique.against.get(phase)
            out.append(
                (*head, PHASES[phase], figure(figures.min), figure(figures.p50), figure(figures.p90),
                 figure(figures.p99), ratio(against.ratio) if against else "")
            )  # fmt: skip
            head = ("", "")
    return out


def notes(summary: Summary) -> list[str]:
    """What the figures do not say by themselves: failures, bounds, and why there is no interval."""
    remarks = []
    for technique in summary.techniques:
        if technique.failures:
            kinds = ", ".join(f"{n} {kind}" for kind, n in technique.outcomes.items() if kind != "ok")
            remarks.append(f"{technique.technique}: {technique.failures} of {technique.n} failed ({kinds})")
    phases = [phase for technique in summary.techniques for phase in technique.phases.values()]
    if any(phase.censored for phase in phases):
        remarks.append("attempts given up at their deadline count as longer than it; > marks a lower bound")
    bases = {technique.base for technique in summary.techniques if technique.against} - {None, BASELINE}
    if bases:
        others = ", ".join(sorted(map(str, bases)))
        remarks.append(f"× faster is than {BASELINE} where that was measured, else than {others}")
    compared = [c for technique in summary.techniques for c in technique.against.values()]
    if any(comparison.ratio.interval is None for comparison in compared):
        remarks.append("too few blocks for a 95 % interval of × faster: that takes 6 attempts of each")
    return remarks


def filling_lines(fillings: Mapping[str, Any]) -> list[str]:
    """What the pools took, apart from what was measured: a line each."""
    return [
        f"filling {name}: {filling['places']} places, {filling['machines']} machines, "
        f"{filling['seconds']:.1f} s, not in the times above"
        for name, filling in fillings.items()
    ]


def print_summary(summary: Summary, file: TextIO | None = None) -> None:
    """Print the table and where it comes from."""
    file = file or sys.stdout
    if file.isatty():
        _print_rich(summary, file)
    else:
        _print_plain(summary, file)


def _filled_columns(summary: Summary) -> list[tuple[str, ...]]:
    """Headings and lines without columns in which nothing stands."""
    table = [HEADINGS, *lines(summary)]
    columns = [column for column in range(len(HEADINGS)) if any(row[column] for row in table[1:])]
    return [tuple(visible(row[column]) for column in columns) for row in table]


def aligned(table: Sequence[Sequence[str]], left: Collection[int] = _LEFT) -> list[str]:
    """Lines of text in columns, those not in ``left`` to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _print_plain(summary: Summary, file: TextIO) -> None:
    for line in (*aligned(_filled_columns(summary)), *notes(summary), caption(summary.kind)):
        print(visible(line), file=file)


def _print_rich(summary: Summary, file: TextIO) -> None:
    table = Table(
        box=box.SIMPLE_HEAVY, padding=(0, 1, 0, 0), caption_justify="left",
        caption=Text(visible("\n".join([*notes(summary), caption(summary.kind)]))),
    )  # fmt: skip
    headings, *rows = _filled_columns(summary)
    for column, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if column in _LEFT else "right", no_wrap=True)
    for number, row in enumerate(rows):
        if row[0] and number:
            table.add_section()
        style = "bold" if row[2] == PHASES["t4_ms"] else ""
        table.add_row(*(Text(cell, style=style) for cell in row))
    Console(file=file).print(table)
