"""The report's pictures. Drawn once in placeholder colours, so that a page can put its own in, light or dark.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color, 2008), which people with any common colour blindness can
tell apart; no picture relies on them alone. Text stays text, in the reader's own fonts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harness.figures.reading import Record
from harness.figures.statistics import PHASES, bounds, kaplan_meier, measured
from harness.figures.waterfall import Breakdown, Stage

#: What a page replaces by variables of its own. In a file of its own, ink is black and paper white.
INK, PAPER, GRID = "#010101", "#fefefe", "#d8d8d8"

_BLACK, _ORANGE, _SKY, _GREEN = INK, "#E69F00", "#56B4E9", "#009E73"
_YELLOW, _BLUE, _VERMILLION, _PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

STAGE_COLOURS = {
    Stage.API: _BLUE,
    Stage.RUNNING: _SKY,
    Stage.FIRMWARE: _PURPLE,
    Stage.KERNEL: _ORANGE,
    Stage.SYSTEMD: _ORANGE,
    Stage.INITRAMFS: _ORANGE,
    Stage.UNITS: _SKY,
    Stage.CLOUD_INIT: _PURPLE,
    Stage.INIT: _GREEN,
    Stage.RESUME: _PURPLE,
    Stage.NETWORK: _YELLOW,
    Stage.KEY: _GREEN,
    Stage.SSHD: _VERMILLION,
    Stage.AUTH: _BLACK,
    Stage.UNEXPLAINED: "#999999",
}

#: Two stages of one colour never look alike, and what is unexplained looks so.
_HATCHES = {
    Stage.SYSTEMD: "////",
    Stage.INITRAMFS: "....",
    Stage.UNITS: "////",
    Stage.CLOUD_INIT: "----",
    Stage.INIT: "////",
    Stage.RESUME: "....",
    Stage.UNEXPLAINED: "xxxx",
}

#: On these, labels are white.
_DARK = {_BLUE, _GREEN, _VERMILLION}

_LINES = (_BLACK, _VERMILLION, _BLUE, _GREEN, _PURPLE, _ORANGE, _SKY)
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vPX"

#: Inches. A phone shows the narrow one at its own size, so that its text is no smaller than the page's.
WIDTHS = {"wide": 7.6, "narrow": 3.7}

_PNG_DPI = 150

#: Characters of a technique's name. `custom-init+prealloc-eni` has 24.
_MAX_NAME = 30

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "hatch.linewidth": 0.6,
    "hatch.color": INK,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}


@dataclass(frozen=True)
class Picture:
    """One figure in each width. ``text`` says in words what it shows, ``where`` what was measured: a picture
    that goes out alone bears it."""

    name: str
    title: str
    text: str
    where: str
    draw: Callable[[float], Figure]

    def svg(self, width: str = "wide", *, prefix: str = "", alone: bool = True) -> str:
        """SVG text. ``alone``: a file of its own, with paper; else to be put into a page that defines
        --ink, --paper and --grid. ``prefix`` keeps the ids of several in one page apart."""
        with mpl.rc_context({**_STYLE, "svg.hashsalt": self.name}):
            figure = self.draw(WIDTHS[width])
            if alone:
                self._sign(figure)
            FigureCanvasSVG(figure)
            out = io.StringIO()
            figure.savefig(
                out, format="svg", facecolor=PAPER if alone else "none",
                metadata={"Date": None, "Creator": None, "Title": self.title},
            )  # fmt: skip
        text = out.getvalue()
        text = text[text.index("<svg") :]
        # Of a page, fonts are the page's.
        text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1system-ui, sans-serif", text)
        if alone:
            return '<?xml version="1.0" encoding="utf-8"?>\n' + text
        for colour, variable in ((INK, "ink"), (PAPER, "paper"), (GRID, "grid")):
            text = text.replace(colour, f"var(--{variable})")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"<title>.*?</title>", "", text, flags=re.DOTALL)
        text = re.sub(r'\bid="', f'id="{prefix}', text)
        return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}", text)

    def png(self) -> bytes:
        with mpl.rc_context(_STYLE):
            figure = self.draw(WIDTHS["wide"])
            self._sign(figure)
            FigureCanvasAgg(figure)
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=_PNG_DPI, facecolor=PAPER, metadata={"Title": self.title})
        return out.getvalue()

    def _sign(self, figure: Figure) -> None:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.45)
        figure.suptitle(f"{self.title}\n{self.where}", x=0.01, ha="left", fontsize=9.5)


def _axes(figure: Figure, rows: int = 1) -> list[Axes]:
    axes = [figure.add_subplot(rows, 1, number) for number in range(1, rows + 1)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(visible=True, axis="both", color=GRID, linewidth=0.6)
        each.set_axisbelow(True)
    return axes


def waterfall(breakdowns: Sequence[Breakdown], where: str) -> Picture:
    """A bar for each technique: its median attempt, stage by stage."""

    def draw(width: float) -> Figure:
        used = [
            stage for stage in Stage if any(piece.stage is stage for b in breakdowns for piece in b.stretches)
        ]
        columns = 3 if width > 5 else 2
        legend_in = 0.2 * -(-len(used) // columns) + 0.1
        figure = Figure(figsize=(width, 1.5 + 1.24 * len(breakdowns) + legend_in), layout="constrained")
        seconds, share = _axes(figure, 2)
        longest_s = max(b.t4_ms for b in breakdowns) / 1000
        _bars(seconds, breakdowns, lambda _: 0.001, longest_s)
        for row, breakdown in enumerate(breakdowns):
            seconds.text(
                breakdown.t4_ms / 1000 + longest_s * 0.01, row, f"{breakdown.t4_ms / 1000:.1f} s",
                va="center", fontweight="bold",
            )  # fmt: skip
        seconds.set(xlabel="seconds from the request to the login", xlim=(0, longest_s * 1.16))
        _bars(share, breakdowns, lambda b: 100 / b.t4_ms, 100)
        share.set(xlabel="per cent of the technique's own t4", xlim=(0, 100))
        handles = [
            Patch(facecolor=STAGE_COLOURS[s], edgecolor=PAPER if s is Stage.AUTH else INK, linewidth=0.4,
                  hatch=_HATCHES.get(s), label=s.value)
            for s in used
        ]  # fmt: skip
        figure.legend(
            handles=handles, loc="outside lower left", ncols=columns, frameon=False, handlelength=1.4
        )
        return figure

    sentences = [
        f"{b.technique} (attempt {b.attempt}): "
        + ", ".join(f"{piece.stage.value} {piece.ms / 1000:.2f} s" for piece in b.stretches)
        + f"; in all {b.t4_ms / 1000:.2f} s."
        for b in breakdowns
    ]
    title = "Where the time goes: the median attempt of each technique"
    return Picture("waterfall", title, " ".join(sentences), where, draw)


def _bars(
    axes: Axes, breakdowns: Sequence[Breakdown], scale: Callable[[Breakdown], float], longest: float
) -> None:
    """A row of stages for each technique; ``scale`` turns its milliseconds into the axis's unit."""
    for row, breakdown in enumerate(breakdowns):
        factor = scale(breakdown)
        for piece in breakdown.stretches:
            colour, amount = STAGE_COLOURS[piece.stage], piece.ms * factor
            axes.barh(
                row, amount, left=piece.start_ms * factor, height=0.55, color=colour, edgecolor=INK,
                linewidth=0.4, hatch=_HATCHES.get(piece.stage),
            )  # fmt: skip
            if amount >= longest * 0.09:
                ink = "#ffffff" if colour in _DARK else PAPER if colour == INK else "#000000"
                box = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"}
                axes.text(
                    piece.start_ms * factor + amount / 2, row, f"{amount:.{0 if longest == 100 else 1}f}",
                    ha="center", va="center", color=ink, bbox=box if piece.stage in _HATCHES else None,
                )  # fmt: skip
        # Above its bar, so that on a phone names take nothing from the width.
        axes.text(0, row - 0.36, _short(breakdown.technique), va="bottom", fontweight="bold")
    axes.grid(visible=False, axis="y")
    axes.set(yticks=[], ylim=(len(breakdowns) - 0.55, -0.8))
    axes.spines["left"].set_visible(False)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """As many as there is room for: an inch has some nine characters, and a handle takes three or four."""
    longest = max(len(_short(name)) for name in names) + 5
    return max(1, int(width * 9) // longest)


def _short(technique: str) -> str:
    """As long as a phone has room for."""
    return technique if len(technique) <= _MAX_NAME else f"{technique[: _MAX_NAME - 1]}…"


def _measured_times(
    records: Sequence[Record], technique: str, phase: str
) -> list[tuple[Record, float, bool]]:
    """(attempt, seconds, censored) of the attempts that were measured."""
    return [
        (record, ends[0] / 1000, ends[0] != ends[1])
        for record in measured(records)
        if record.technique == technique and (ends := bounds(record, phase)) is not None
    ]


def ecdf(records: Sequence[Record], order: Sequence[str], phases: Sequence[str], where: str) -> Picture:
    """Share of attempts that had logged in by then. Censored ones hold their line below 1 (Kaplan-Meier)."""

    def draw(width: float) -> Figure:
        figure = Figure(figsize=(width, 2.6 * len(phases) + 0.5), layout="constrained")
        for axes, phase in zip(_axes(figure, len(phases)), phases, strict=True):
            edge_s = _edge(records, order, phase)
            for number, technique in enumerate(order):
                attempts_of = _measured_times(records, technique, phase)
                if not attempts_of:
                    continue
                x, y = _steps(attempts_of)
                if any(censored for _, _, censored in attempts_of):
                    # Beyond the edge nothing happens but the deadline.
                    x, y = [*x, edge_s], [*y, y[-1]]
                    axes.plot([edge_s], [y[-1]], ">", color=_LINES[number % 7], markersize=7, clip_on=False)
                look: dict[str, Any] = {
                    "color": _LINES[number % 7],
                    "linestyle": _DASHES[number % 7],
                    "linewidth": 1.7,
                }
                axes.plot(x, y, drawstyle="steps-post", label=_short(technique), **look)
                axes.plot(x[1:], y[1:], _MARKERS[number % 7], color=_LINES[number % 7], markersize=3)
            axes.set(xlabel=f"{PHASES[phase]}, seconds", ylabel="share logged in", ylim=(-0.03, 1.05))
            axes.set_xlim(0, edge_s)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower left", ncols=_legend_columns(order, width), frameon=False,
            handlelength=3,
        )  # fmt: skip
        return figure

    sentences = []
    for phase in phases:
        for technique in order:
            if attempts_of := _measured_times(records, technique, phase):
                cut = sum(censored for _, _, censored in attempts_of)
                logins = [s for _, s, censored in attempts_of if not censored]
                sentences.append(
                    f"{technique}, {PHASES[phase]}: {len(logins)} of {len(attempts_of)} logged in"
                    + (f", from {min(logins):.2f} to {max(logins):.2f} s" if logins else "")
                    + (f", {cut} were given up at their deadline (arrow at the edge)." if cut else ".")
                )
    return Picture("ecdf", "How many had logged in by then", " ".join(sentences), where, draw)


def _edge(records: Sequence[Record], order: Sequence[str], phase: str) -> float:
    """Where the axis ends: past the slowest login. A deadline many times as far would leave it no room."""
    all_attempts = [one for technique in order for one in _measured_times(records, technique, phase)]
    logins = [seconds for _, seconds, censored in all_attempts if not censored]
    return 1.08 * max(logins or [seconds for _, seconds, _ in all_attempts], default=1.0)


def _steps(times: Sequence[tuple[Record, float, bool]]) -> tuple[list[float], list[float]]:
    """Corners of the step function, from (first, 0) on."""
    x, y = kaplan_meier([(seconds, censored) for _, seconds, censored in times])
    return ([min(seconds for _, seconds, _ in times), *x], [0.0, *y]) if x else ([0.0], [0.0])


def attempts(records: Sequence[Record], order: Sequence[str], phase: str, where: str) -> Picture:
    """Every attempt in the order in which it ran: drift, steps and outliers show here, and nowhere else."""

    def draw(width: float) -> Figure:
        figure = Figure(figsize=(width, 2.9), layout="constrained")
        (axes,) = _axes(figure)
        edge_s = _edge(records, order, phase)
        for number, technique in enumerate(order):
            colour, marker = _LINES[number % 7], _MARKERS[number % 7]
            attempts_of = _measured_times(records, technique, phase)
            label = _short(technique)
            for cut in (False, True):
                points = [
                    (r.ms("attempt") or 0.0, edge_s if cut else s)
                    for r, s, censored in attempts_of
                    if censored is cut
                ]
                if points:
                    axes.plot(
                        [x for x, _ in points], [y for _, y in points], "^" if cut else marker, color=colour,
                        markersize=8 if cut else 5, markerfacecolor="none" if cut else colour, clip_on=False,
                        label=label,
                    )  # fmt: skip
                    label = ""
        axes.set(xlabel="attempt", ylabel=f"{PHASES[phase]}, seconds")
        axes.set_ylim(0, edge_s)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(
            loc="outside lower left", ncols=_legend_columns(order, width), frameon=False, handletextpad=0.1
        )
        return figure

    total = len(records)
    missing = total - sum(len(_measured_times(records, technique, phase)) for technique in order)
    description = f"{total} attempts in the order in which they ran, {PHASES[phase]} of each."
    if missing:
        description += f" {missing} that failed without a time are not drawn."
    if any(censored for technique in order for _, _, censored in _measured_times(records, technique, phase)):
        description += " Hollow triangles at the upper edge were given up at their deadline."
    return Picture("attempts", "Every attempt, in order", description, where, draw)
