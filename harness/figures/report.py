"""A run as people read it: one HTML page that needs nothing else, Markdown, and pictures as files.

All figures come from :mod:`harness.figures.statistics`; this module arranges and words them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from harness.figures import summary_table as table
from harness.figures.likeness import differences
from harness.figures.plots import Picture, attempts, ecdf, waterfall
from harness.figures.reading import Kind, Record, Results
from harness.figures.recommend import Recommendation, recommend
from harness.figures.statistics import COMPARED, PHASES, Summary, plain, summarise
from harness.figures.waterfall import Breakdown, Stage, breakdowns, longest_works
from instant_env.errors import UsageError

_TEMPLATES = Path(__file__).parent / "templates"
#: Units and modules of a technique that are shown.
_MOST_WORKS = 12


class Format(StrEnum):
    """What a report can be written as."""

    HTML = "html"
    MARKDOWN = "md"
    PNG = "png"
    SVG = "svg"


def formats(text: str) -> tuple[Format, ...]:
    """Parse ``html,md``. Raises UsageError."""
    hint = f"known: {', '.join(Format)}"
    try:
        chosen = tuple(dict.fromkeys(Format(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise UsageError(f"unknown format in {text!r}", hint=hint) from error
    if not chosen:
        raise UsageError("no format named", hint=hint)
    return chosen


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column heads its row; ``numeric`` columns are aligned to the right."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int]


@dataclass(frozen=True)
class Section:
    """One kind of machine: its figures are shown apart from every other kind's."""

    kind: Kind
    records: tuple[Record, ...]
    summary: Summary

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.kind.arch}-{self.kind.instance_type}".lower()).strip("-")

    @property
    def caption(self) -> str:
        return table.caption(self.kind)

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(technique.technique for technique in self.summary.techniques)

    @property
    def notes(self) -> list[str]:
        return table.notes(self.summary)

    @cached_property
    def recommendation(self) -> Recommendation:
        return recommend(self.summary, self.records)

    @cached_property
    def breakdowns(self) -> list[Breakdown]:
        return breakdowns(self.records, self.order)

    @cached_property
    def pictures(self) -> list[Picture]:
        where = self.caption
        pictures = [waterfall(self.breakdowns, where)] if self.breakdowns else []
        if phases := [p for p in COMPARED if any(p in t.phases for t in self.summary.techniques)]:
            judged = self.recommendation.phase
            pictures += [
                ecdf(self.records, self.order, phases, where),
                attempts(self.records, self.order, judged if judged in phases else phases[0], where),
            ]
        return pictures

    @property
    def table(self) -> Table:
        """Of t4 and t2→t4, everything."""
        rows = []
        for technique in self.summary.techniques:
            head = (technique.technique, f"{technique.n - technique.failures}/{technique.n}")
            for phase in COMPARED:
                if (figures := technique.phases.get(phase)) is None:
                    rows.append((*head, PHASES[phase], "none", *("",) * 7))
                    continue
                against = technique.against.get(phase)
                within = figures.p50_interval
                rows.append(
                    (*head, PHASES[phase], table.figure(figures.min), table.figure(figures.p50),
                     table.interval_s(within), table.figure(figures.p90), table.figure(figures.p99),
                     (technique.base or "") if against else "",
                     table.difference(against.difference_ms) if against else "",
                     table.ratio(against.ratio) if against else "")
                )  # fmt: skip
        return _without_empty_columns(
            Table(
                "Times in seconds; in brackets, 95 % intervals",
                ("technique", "ok", "phase", "min", "p50", "p50's interval", "p90", "p99", "against",
                 "difference", "times faster"),
                tuple(rows), frozenset({*range(3, 8), 9, 10}),
            )
        )  # fmt: skip

    @property
    def stages(self) -> Table:
        rows = [
            (stage.value, *(_seconds(b.stages_ms.get(stage)) for b in self.breakdowns))
            for stage in Stage
            if any(stage in b.stages_ms for b in self.breakdowns)
        ]
        rows.append(("unexplained, share of t4", *(f"{b.unexplained:.0%}" for b in self.breakdowns)))
        return Table(
            "Seconds in each stage: medians over all attempts, so they need not add up",
            ("stage", *(b.technique for b in self.breakdowns)), tuple(rows),
            frozenset(range(1, len(self.breakdowns) + 1)),
        )  # fmt: skip

    @property
    def works(self) -> Table | None:
        """What systemd and cloud-init say took longest before sshd; None when no machine told."""
        rows = [
            (technique, work.name, str(work.n), _seconds(work.began_ms), _seconds(work.took_ms))
            for technique in self.order
            for work in longest_works(self.records, technique, _MOST_WORKS)
        ]
        if not rows:
            return None
        return Table(
            "What took longest before sshd was started, by systemd's and cloud-init's own records: medians "
            "in seconds, from the kernel's start. They overlap",
            ("technique", "what", "n", "began", "took"), tuple(rows), frozenset({2, 3, 4}),
        )  # fmt: skip

    @property
    def extras(self) -> Table | None:
        """Costs and whatever else rows hold by the unit in the column's name; None when they hold none."""
        columns = [
            column
            for column in dict.fromkeys(name for record in self.records for name in record.numbers)
            if column.endswith(("_usd", "_bytes"))
        ]
        if not columns:
            return None
        rows = []
        for technique in self.order:
            own = [record for record in self.records if record.technique == technique]
            cells = []
            for column in columns:
                values = [value for record in own if (value := record.ms(column)) is not None]
                cells.append(_amount(column, values))
            rows.append((technique, *cells))
        return Table(
            "Median of an attempt, and the sum over the run",
            ("technique", *(_heading(column) for column in columns)), tuple(rows),
            frozenset(range(1, len(columns) + 1)),
        )  # fmt: skip


def _without_empty_columns(table: Table) -> Table:
    columns = [n for n in range(len(table.headings)) if any(row[n] for row in table.rows)]
    return Table(
        table.caption,
        tuple(table.headings[n] for n in columns),
        tuple(tuple(row[n] for n in columns) for row in table.rows),
        frozenset(new for new, old in enumerate(columns) if old in table.numeric),
    )


def _seconds(ms: float | None) -> str:
    return "–" if ms is None else f"{ms / 1000:.2f}"


def _heading(column: str) -> str:
    words, _, unit = column.rpartition("_")
    return f"{words.replace('_', ' ')}, {'USD' if unit == 'usd' else 'MiB'}"


def _amount(column: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    if column.endswith("_bytes"):
        return f"{np.median(values) / 2**20:.1f} (sum {sum(values) / 2**20:.0f})"
    return f"{np.median(values):.5f} (sum {sum(values):.4f})"


@dataclass(frozen=True)
class Report:
    """A run, arranged. Make it with :func:`make`."""

    results: Results
    sections: tuple[Section, ...]

    @property
    def title(self) -> str:
        return f"instant-env: {self.results.name}"

    @property
    def local(self) -> bool:
        return any(section.kind.cloud == "local" for section in self.sections)

    @property
    def provenance(self) -> list[tuple[str, str]]:
        return _provenance(self.results.metadata)

    @property
    def pools(self) -> list[str]:
        """What filling pools took, which no time of an attempt holds."""
        pools = self.results.metadata.get("pools")
        return table.filling_lines(pools) if isinstance(pools, Mapping) else []

    @property
    def cautions(self) -> list[str]:
        """What a reader should hold against these figures."""
        return _cautions(self.results)

    def as_json(self) -> dict[str, Any]:
        return {
            "csv": str(self.results.path),
            "kinds": [
                {
                    **section.summary.as_json(),
                    "recommendation": plain(section.recommendation),
                    "breakdowns": [
                        {
                            "technique": b.technique,
                            "n": b.n,
                            "stages_ms": {stage.value: round(ms, 3) for stage, ms in b.stages_ms.items()},
                            "unexplained_share": round(b.unexplained, 4),
                        }
                        for b in section.breakdowns
                    ],
                }
                for section in self.sections
            ],
        }

    def html(self) -> str:
        return _environment().get_template("report.html.j2").render(report=self, inline=_inline)

    def markdown(self, pictures: Mapping[str, str] | None = None) -> str:
        """``pictures``: file names by ``<slug>-<name>``, for those that there are."""
        return _environment().get_template("report.md.j2").render(report=self, pictures=pictures or {})

    def fragment(self, name: str) -> str:
        """One piece of the Markdown, for a document that quotes it. Raises UsageError for an unknown name."""
        macros = _environment().get_template("fragments.md.j2").module
        if not (macro := getattr(macros, name, None)):
            raise UsageError(f"a report has no piece {name!r}", hint="see figures/templates/fragments.md.j2")
        return str(macro(self)).strip("\n") + "\n"

    def write(self, directory: Path, chosen: Sequence[Format]) -> list[Path]:
        """Write the report in each format; returns the files, the main ones first."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{directory} cannot be a directory: {error.strerror}", hint="--output"
            ) from error
        pictures: dict[str, str] = {}
        contents: dict[str, bytes] = {}
        for section in self.sections:
            for picture in section.pictures:
                name = f"{section.slug}-{picture.name}"
                if Format.SVG in chosen:
                    contents[f"{name}.svg"] = picture.svg().encode()
                    pictures[name] = f"{name}.svg"
                if Format.PNG in chosen:
                    contents[f"{name}.png"] = picture.png()
                    pictures[name] = f"{name}.png"
        main: dict[str, bytes] = {}
        if Format.HTML in chosen:
            main["report.html"] = self.html().encode()
        if Format.MARKDOWN in chosen:
            main["report.md"] = self.markdown(pictures).encode()
        paths = []
        for name, content in {**main, **contents}.items():
            path = directory / name
            path.write_bytes(content)
            paths.append(path)
        return paths


def make(results: Results) -> Report:
    """Compute everything; nothing is drawn yet."""
    sections = tuple(
        Section(kind, own, summarise(own, results.techniques))
        for kind in results.kinds
        if (own := results.of(kind))
    )
    return Report(results, sections)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["cell"] = _cell
    return environment


def _cell(text: object) -> str:
    """Text as a cell of a Markdown table, or any other piece of it: nothing in it is markup."""
    text = re.sub(r"([\\`*{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
    # Within a word an underscore is one.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _inline(section: Section, picture: Picture, width: str) -> Markup:
    """SVG of our own making, the one thing in a page that is not escaped. matplotlib escapes its texts."""
    return Markup(picture.svg(width, prefix=f"{section.slug}-{picture.name}-{width}-", alone=False))  # noqa: S704


def _provenance(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the JSON beside the CSV says, as far as it does."""

    def part(name: str) -> Mapping[str, Any]:
        value = about.get(name)
        return value if isinstance(value, Mapping) else {}

    host, git, versions = part("host"), part("git"), part("versions")
    facts: list[tuple[str, Any]] = [
        ("run", about.get("run_id")),
        ("began", about.get("started_utc")),
        ("ended", about.get("finished_utc")),
        ("status", about.get("status")),
        ("command", " ".join(map(str, about.get("command_line") or ()))),
        ("host", f"{host.get('cpu')}, {host.get('cores')} cores, {host.get('memory_mib')} MiB, kernel "
                 f"{host.get('kernel')}" if host else None),
        ("load at start and end", " → ".join(
            str(load[0]) for name in ("load_at_start", "load_at_end") if (load := about.get(name)))),
        ("accelerator", about.get("accelerator") or ", ".join(
            f"{accelerator} for {arch}" for arch, accelerator in part("accelerators").items())),
        ("client", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in part("client").items())),
        ("launches in flight", about.get("parallel")),
        ("root volumes", "; ".join(
            f"{name}: {_volume(volume)}" for name, volume in part("root_volumes").items() if volume)),
        ("volumes encrypted by default", _yes_or_no(about.get("encrypted_by_default"))),
        ("git revision", f"{git['revision']}{', and changes to it' if git.get('dirty') else ''}"
                         if git.get("revision") else None),
        ("seed of the order", about.get("seed")),
        ("deadline", f"{about['timeout_s']:g} s" if about.get("timeout_s") else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]  # fmt: skip
    for name, technique in part("techniques").items():
        if isinstance(technique, Mapping):
            plan = str(technique.get("plan_hash") or "")[:12]
            facts.append((f"AMI of {name}", f"{technique.get('ami')}{f', plan {plan}' if plan else ''}"))
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _yes_or_no(value: object) -> str | None:
    return ("yes" if value else "no") if isinstance(value, bool) else None


def _volume(volume: Mapping[str, Any]) -> str:
    return f"{volume.get('type')}, {'' if volume.get('encrypted') else 'not '}encrypted"


def _cautions(results: Results) -> list[str]:
    about, cautions = results.metadata, []
    if not about:
        return [
            f"There is no {results.path.stem}.json beside the CSV: nobody can say on which host this ran."
        ]
    if about.get("status") not in (None, "finished"):
        cautions.append(f"The run's status is {about['status']}: it may lack attempts.")
    if isinstance(git := about.get("git"), Mapping) and git.get("dirty"):
        cautions.append("The checkout differed from its revision.")
    volumes = about.get("root_volumes")
    cautions += differences(results.records, volumes if isinstance(volumes, Mapping) else {})
    load, host = about.get("load_at_start"), about.get("host")
    if load and isinstance(host, Mapping) and host.get("cores") and load[0] > host["cores"] / 2:
        cautions.append(f"The host was busy when the run began: load {load[0]} on {host['cores']} cores.")
    return cautions
