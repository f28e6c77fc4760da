"""Figures in documents, filled in from a committed CSV instead of by hand.

A document marks the place and names the CSV (from the checkout's root) and the piece of the report::

    <!-- report: results/samples/NAME.csv figures -->
    ... what `invoke report --fill DOCUMENT` puts here ...
    <!-- end of report -->

Pieces are the macros of templates/fragments.md.j2. A unit test holds documents to their CSVs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.figures.reading import read_results
from harness.figures.report import Report, make
from instant_env.errors import UsageError
from instant_env.foreign import read_text
from instant_env.settings import ROOT

_END = "<!-- end of report -->"
_PLACE = re.compile(rf"(<!-- report: (\S+) (\w+) -->\n).*?({re.escape(_END)})", re.DOTALL)


def filled(text: str, root: Path = ROOT) -> str:
    """The document with every marked place filled anew. Raises UsageError for an unclosed mark."""
    reports: dict[str, Report] = {}

    def piece(match: re.Match[str]) -> str:
        csv = match[2]
        if csv not in reports:
            reports[csv] = make(read_results(root / csv))
        return f"{match[1]}\n{reports[csv].fragment(match[3])}\n{match[4]}"

    return _substituted(text, piece)


def _substituted(text: str, piece: Callable[[re.Match[str]], str]) -> str:
    if text.count("<!-- report:") != len(_PLACE.findall(text)):
        raise UsageError(
            "a place for figures is not well marked",
            hint=f"<!-- report: CSV PIECE -->, a line of its own, and then {_END}",
        )
    return _PLACE.sub(piece, text)


def fill(path: Path, root: Path = ROOT) -> bool:
    """Fill a document in place; True when that changed it. Raises UsageError."""
    before = read_text(path, hint="name a Markdown file")
    after = filled(before, root)
    if "<!-- report:" not in before:
        raise UsageError(
            f"{path} has no place for figures", hint="see harness/figures/quote.py for how to mark one"
        )
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before
