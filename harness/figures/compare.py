"""What got slower or faster between two runs, two AMIs or two git revisions; with intervals.

Blocks of different runs have nothing in common, so each run's are resampled on their own; only two sides of
one run (two AMIs measured side by side) are resampled together. A change is of medians: +10 % is slower. It
is called slower or faster when its 95 % interval lies on one side of 0.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.figures import summary_table
from harness.figures.likeness import differences
from harness.figures.reading import Kind, Record, Results, read_results, result_files
from harness.figures.recommend import phase_for
from harness.figures.statistics import (
    COMPARED,
    MIN_BLOCKS,
    PHASES,
    Comparison,
    Figure,
    compare,
    plain,
    sample,
)
from instant_env.errors import UsageError
from instant_env.launch.timeline import Outcome
from instant_env.settings import ROOT

_AMI = re.compile(r"ami-[0-9a-f]+\Z")

#: Shorter ones are words.
_MIN_REVISION = 7


@dataclass(frozen=True)
class Side:
    """One of the two: the newest run that fits what was asked for, and the attempts of it that count."""

    name: str
    results: Results
    records: tuple[Record, ...]
    note: str = ""

    @property
    def label(self) -> str:
        revision = str((self.results.metadata.get("git") or {}).get("revision") or "")[:12]
        return f"{self.name}: {self.results.path.name}" + (f" of {revision}" if revision else "")


@dataclass(frozen=True)
class Change:
    """Of one technique and phase. ``interval`` and ``change`` are shares: 0.1 is 10 % slower in B.

    ``change`` is None when the medians of either are only known to lie beyond a deadline.
    """

    technique: str
    kind: Kind
    phase: str
    a: Figure
    b: Figure
    ok_a: tuple[int, int]
    ok_b: tuple[int, int]
    blocks: int
    change: float | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "too few blocks"
        low, high = self.interval
        return "slower" if low > 0 else "faster" if high < 0 else "no difference shown"

    def slower_than(self, limit: float) -> bool:
        """True only when the whole interval lies above ``limit``: chance alone does not make it so."""
        return self.interval is not None and self.interval[0] > limit


@dataclass(frozen=True)
class Outcomes:
    """The comparison. ``cautions`` are what to hold against it, ``limit`` is --fail-if-slower's."""

    a: Side
    b: Side
    changes: tuple[Change, ...]
    cautions: tuple[str, ...]
    limit: float | None = None

    @property
    def too_slow(self) -> tuple[Change, ...]:
        """What --fail-if-slower fails for: of each technique the phase that recommendations are judged by."""
        limit = self.limit
        if limit is None:
            return ()
        return tuple(c for c in self.changes if c.phase == phase_for(c.kind.cloud) and c.slower_than(limit))

    def as_json(self) -> dict[str, Any]:
        return {
            **{
                name: {"asked": side.name, "csv": str(side.results.path), "note": side.note}
                for name, side in (("a", self.a), ("b", self.b))
            },
            "changes": [{**plain(change), "verdict": change.verdict} for change in self.changes],
            "cautions": list(self.cautions),
            "fail_if_slower": self.limit,
            "too_slow": [f"{change.technique} {PHASES[change.phase]}" for change in self.too_slow],
        }


def limit(text: str) -> float | None:
    """Parse ``10%``; empty is none. Raises UsageError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a percentage", hint="for example: --fail-if-slower 10%")
    return float(match[1]) / 100


def compare_runs(
    directory: Path, asked_a: str, asked_b: str, *, force: bool = False, fail_if_slower: str = ""
) -> Outcomes:
    """Compare two of what :func:`find_side` finds.

    Raises UsageError when one is not found, when they have no technique in common, or when they ran on
    different hosts, accelerators or clouds and ``force`` is not set.
    """
    most = limit(fail_if_slower)
    a, b = find_side(directory, asked_a), find_side(directory, asked_b)
    cautions = [side.note for side in (a, b) if side.note]
    differences = _differences(a, b)
    if differences and not force:
        raise UsageError(
            f"not comparable: {'; '.join(differences)}",
            hint="run both on the same host, or --force a comparison that says little",
        )
    cautions += [f"compared by force: {difference}" for difference in differences]
    same_run = a.results.path.resolve() == b.results.path.resolve()
    changes = []
    for kind_a, kind_b in _pairs(a, b):
        for technique_a, technique_b in _techniques(a, b, kind_a, kind_b):
            changes += _changes(a, b, (kind_a, kind_b), (technique_a, technique_b), same_run=same_run)
    if not changes:
        raise UsageError(
            f"{a.label} and {b.label} have no technique in common that was measured in both",
            hint="invoke report shows what a run holds",
        )
    cautions += _unlike(a, b)
    if any(change.interval is None for change in changes):
        cautions.append(f"without {MIN_BLOCKS} blocks on both sides there is no interval, and no verdict")
    return Outcomes(a, b, tuple(changes), tuple(cautions), most)


def _unlike(a: Side, b: Side) -> list[str]:
    """In which market and zone machines of the two were, where that differs."""
    kinds = {kind for pair in _pairs(a, b) for kind in pair}
    records = [
        replace(record, technique=f"{name} {record.technique}")
        for name, side in (("A", a), ("B", b))
        for record in side.records
        if record.kind in kinds
    ]
    return differences(records, {})


def find_side(directory: Path, name: str) -> Side:
    """A CSV by path or by name, else the newest run with that AMI, else of that git revision.

    ``directory`` is where results are; its folders count too. Raises UsageError when nothing fits.
    """
    for path in (Path(name), directory / name, directory / f"{name}.csv"):
        if path.is_file() and path.suffix == ".csv":
            results = read_results(path)
            return Side(name, results, results.records)
    runs = sorted(
        {*result_files(directory), *directory.glob("*/*.csv")}, key=lambda path: path.name, reverse=True
    )
    if _AMI.match(name):
        return _by_ami(runs, name, directory)
    return _by_revision(runs, name, directory)


def _by_ami(runs: Sequence[Path], ami: str, directory: Path) -> Side:
    runs_of_ami = [
        (results, own)
        for results in _readable(runs)
        if (own := tuple(record for record in results.records if record.texts.get("ami") == ami))
    ]
    if not runs_of_ami:
        raise UsageError(f"no run in {directory} has measured {ami}", hint=f"invoke bench --ami {ami}")
    return Side(ami, *runs_of_ami[0], note=_newest_of(ami, runs_of_ami[0][0], len(runs_of_ami)))


def _by_revision(runs: Sequence[Path], name: str, directory: Path) -> Side:
    revision = _resolve(name) or (name if re.fullmatch(rf"[0-9a-f]{{{_MIN_REVISION},40}}", name) else None)
    if revision is None:
        raise UsageError(
            f"{name!r} is neither a CSV in {directory} nor an AMI id nor a git revision",
            hint="for example: invoke compare main HEAD",
        )
    of_revision = []
    for results in _readable(runs):
        git = results.metadata.get("git") or {}
        if str(git.get("revision") or "").startswith(revision):
            of_revision.append(results)
    if not of_revision:
        raise UsageError(
            f"no run in {directory} is of revision {revision[:12]}", hint="check it out and: invoke bench"
        )
    note = _newest_of(name, of_revision[0], len(of_revision))
    if (of_revision[0].metadata.get("git") or {}).get("dirty"):
        note = "; ".join(
            filter(None, (note, f"{of_revision[0].path.name}: the checkout differed from {name}"))
        )
    return Side(name, of_revision[0], of_revision[0].records, note)


def _readable(runs: Sequence[Path]) -> Iterator[Results]:
    """What the files hold, without those of runs that have no attempt yet or were cut off: nobody asked for
    them by name."""
    for path in runs:
        with suppress(UsageError):
            yield read_results(path)


def _newest_of(name: str, results: Results, count: int) -> str:
    return f"{name}: {count} runs fit, this is the newest ({results.path.name})" if count > 1 else ""


def _resolve(name: str) -> str | None:
    """The commit that a name of git stands for, None when git knows none."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options",
             f"{name}^{{commit}}"],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return answer.stdout.strip() or None


def _differences(a: Side, b: Side) -> list[str]:
    """Why figures of the two do not belong together."""
    differences = []
    for what, values in (
        ("clouds", [{record.kind.cloud for record in side.records} for side in (a, b)]),
        ("accelerators", [{record.kind.accelerator for record in side.records} for side in (a, b)]),
    ):
        if values[0] != values[1]:
            differences.append(
                f"different {what} ({', '.join(sorted(values[0]))} and {', '.join(sorted(values[1]))})"
            )
    if a.results.path.resolve() == b.results.path.resolve():
        return differences
    unknown = [side.results.path.name for side in (a, b) if side.results.host is None]
    if unknown:
        differences.append(f"no metadata say on which host {' and '.join(unknown)} ran")
    elif a.results.host != b.results.host:
        hosts = (", ".join(side.results.host or ()) for side in (a, b))
        differences.append(f"different hosts ({' and '.join(hosts)})")
    return differences


def _pairs(a: Side, b: Side) -> list[tuple[Kind, Kind]]:
    """Kinds that both have; by force, at least of the same architecture and type."""
    kinds_a, kinds_b = (list(dict.fromkeys(record.kind for record in side.records)) for side in (a, b))
    return [
        (one, other)
        for one in kinds_a
        for other in kinds_b
        if one == other
        or (other not in kinds_a and (one.arch, one.instance_type) == (other.arch, other.instance_type))
    ]


def _techniques(a: Side, b: Side, kind_a: Kind, kind_b: Kind) -> list[tuple[str, str]]:
    names_a, names_b = (
        list(dict.fromkeys(record.technique for record in side.records if record.kind == kind))
        for side, kind in ((a, kind_a), (b, kind_b))
    )
    if len(names_a) == len(names_b) == 1:  # two AMIs, of whatever recipes
        return [(names_a[0], names_b[0])]
    return [(name, name) for name in names_a if name in names_b]


def _changes(
    a: Side, b: Side, kinds: tuple[Kind, Kind], techniques: tuple[str, str], *, same_run: bool
) -> list[Change]:
    # Blocks are the run's, also those in which this side has nothing.
    blocks = [[r.block for r in side.results.of(kind)] for side, kind in zip((a, b), kinds, strict=True)]
    own = [
        [record for record in side.records if record.kind == kind and record.technique == technique]
        for side, kind, technique in zip((a, b), kinds, techniques, strict=True)
    ]
    changes = []
    for phase in COMPARED:
        base, other = (
            sample(records, name, phase, of)
            for records, name, of in zip(own, techniques, blocks, strict=True)
        )
        if not base.n or not other.n:
            continue
        between = compare(base, other, same_run=same_run)
        changes.append(
            Change(
                technique=techniques[0] if techniques[0] == techniques[1] else " → ".join(techniques),
                kind=kinds[1],
                phase=phase,
                a=base.figure(0.5),
                b=other.figure(0.5),
                ok_a=_ok(own[0]),
                ok_b=_ok(own[1]),
                blocks=between.blocks,
                change=_share(between.ratio.low) if between.ratio.exact else None,
                interval=_shares(between),
            )
        )
    return changes


def _ok(records: Sequence[Record]) -> tuple[int, int]:
    return sum(record.outcome == Outcome.OK for record in records), len(records)


def _share(times_faster: float) -> float:
    """0.1 (10 % slower) for 1/1.1 times faster."""
    return math.inf if times_faster == 0 else 1 / times_faster - 1


def _shares(comparison: Comparison) -> tuple[float, float] | None:
    if comparison.ratio.interval is None:
        return None
    low, high = comparison.ratio.interval
    return _share(high), _share(low)


def _percent(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−").replace("%", " %") if math.isfinite(value) else "∞"


def render(outcomes: Outcomes) -> str:
    """The comparison for people."""
    headings = ("technique", "phase", "ok A", "ok B", "A s", "B s", "change", "95 % interval", "")
    rows = [
        (
            change.technique,
            PHASES[change.phase],
            "/".join(map(str, change.ok_a)),
            "/".join(map(str, change.ok_b)),
            summary_table.figure(change.a),
            summary_table.figure(change.b),
            "unknown" if change.change is None else _percent(change.change),
            "–" if change.interval is None else f"[{', '.join(map(_percent, change.interval))}]",
            change.verdict,
        )
        for change in outcomes.changes
    ]
    out = [f"A  {outcomes.a.label}", f"B  {outcomes.b.label}", ""]
    out += summary_table.aligned([headings, *rows], left=(0, 1, 8))
    out += [summary_table.caption(kind) for kind in dict.fromkeys(change.kind for change in outcomes.changes)]
    out += outcomes.cautions
    if outcomes.limit is not None:
        limit_text = f"{outcomes.limit * 100:.4g} %"
        for change in outcomes.too_slow:
            out.append(
                f"FAILED: {change.technique} is more than {limit_text} slower in {PHASES[change.phase]}"
            )
        if not outcomes.too_slow:
            out.append(f"no interval lies wholly above {limit_text} slower")
    return "\n".join(out)
