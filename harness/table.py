"""The summary for people: a rich table on a terminal, aligned text anywhere else."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.summary import PHASES, Summary

_HEADINGS = ("technique", "n", "failed", "phase", "p50 s", "min s", "max s", "× cold")

#: How machines ran, in words: an emulated second is not a second of EC2.
_ACCELERATORS = {
    "tcg": "software emulation (TCG)",
    "kvm": "hardware virtualisation (KVM)",
    "ec2": "EC2's own hardware",
}


def caption(summary: Summary) -> str:
    """Where the figures come from; a table never goes without it."""
    where = {"local": "localec2 on this host, not EC2", "aws": "AWS"}.get(summary.cloud, summary.cloud)
    how = _ACCELERATORS.get(summary.accelerator, summary.accelerator)
    return f"{summary.arch} {summary.instance_type}; cloud: {where}; accelerator: {how}"


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.2f}"


def lines(summary: Summary) -> list[tuple[str, ...]]:
    """The table's cells, a line per technique and phase. Figures are of attempts that were ok."""
    out: list[tuple[str, ...]] = []
    for technique in summary.techniques:
        head = (technique.technique, str(technique.n), str(technique.failures))
        shown = [phase for phase in PHASES if phase in technique.phases]
        if not shown:
            out.append((*head, "none ok", "", "", "", ""))
        for phase in shown:
            spread = technique.phases[phase]
            ratio = technique.times_faster.get(phase)
            out.append(
                (*head, PHASES[phase], _seconds(spread.p50), _seconds(spread.min), _seconds(spread.max),
                 f"{ratio:.1f}×" if ratio is not None else "")
            )  # fmt: skip
            head = ("", "", "")
    return out


def print_summary(summary: Summary, file: TextIO | None = None) -> None:
    """Print the table and where it comes from."""
    file = file or sys.stdout
    if file.isatty():
        _print_rich(summary, file)
    else:
        _print_plain(summary, file)


def _print_plain(summary: Summary, file: TextIO) -> None:
    table = [_HEADINGS, *lines(summary)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    for row in table:
        cells = [
            cell.ljust(width) if column in (0, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), file=file)
    print(caption(summary), file=file)


def _print_rich(summary: Summary, file: TextIO) -> None:
    table = Table(caption=caption(summary), caption_justify="left")
    for column, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if column in (0, 3) else "right", no_wrap=True)
    for number, row in enumerate(lines(summary)):
        if row[0] and number:
            table.add_section()
        style = "bold" if row[3] == PHASES["t4_ms"] else ""
        table.add_row(*(Text(cell, style=style) for cell in row))
    Console(file=file).print(table)
