"""Results as other programs leave them, and figures on the edge of what they can be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.harness_rows import race, row, write_run

from harness.figures.compare import compare_runs, render
from harness.figures.reading import read_results
from harness.figures.report import make
from harness.results_file import Row
from instant_env.errors import UsageError


def written(tmp_path: Path, rows: list[Row], change: Callable[[str], str] = str) -> Path:
    path = write_run(tmp_path / "20260101T000000Z-odd.csv", rows)
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode("utf-8"))
    return path


def reported(path: Path) -> str:
    """The report as text; no figure in it is a NaN or infinite."""
    text = make(read_results(path)).markdown()
    assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE), text
    return text


def with_bom_and_crlf(text: str) -> str:
    return "\ufeff" + text.replace("\r\n", "\n").replace("\n", "\r\n")


@pytest.mark.parametrize("change", [str, with_bom_and_crlf], ids=["as written", "BOM and CRLF"])
def test_a_spreadsheets_csv_gives_the_same_report(tmp_path: Path, change: Callable[[str], str]) -> None:
    (tmp_path / "plain").mkdir()
    rows = race(6, cold=40_000, custom_init=8_000)
    plain = reported(written(tmp_path / "plain", rows))
    assert reported(written(tmp_path, rows, change)) == plain


def test_semicolons_are_named_as_what_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, race(2, cold=40_000), lambda text: text.replace(",", ";"))
    with pytest.raises(UsageError, match=path.name):
        read_results(path)


@pytest.mark.parametrize(
    "rows",
    [
        race(1, cold=40_000, custom_init=8_000),
        [row("cold", 9_000.0, block=n, attempt=n) for n in range(1, 9)],
        [row(name, 0.0, block=n, attempt=n) for n in range(1, 5) for name in ("cold", "custom-init")],
        [row(name, -5.0, block=n, attempt=n) for n in range(1, 5) for name in ("cold", "custom-init")],
        [row("cold", None, block=n, attempt=n) for n in range(1, 5)],
    ],
    ids=["one block", "all equal", "zeros", "negative", "no login at all"],
)
def test_figures_on_the_edge_are_reported_without_nan(tmp_path: Path, rows: list[Row]) -> None:
    path = written(tmp_path, rows)
    reported(path)
    outcomes = compare_runs(tmp_path, path.name, path.name)
    json.dumps(outcomes.as_json(), allow_nan=False)
    assert render(outcomes)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_cells_that_are_no_figures_are_left_out(tmp_path: Path, text: str) -> None:
    rows = race(6, cold=40_000, custom_init=8_000)
    odd = str(rows[0].t4_ms)
    path = written(tmp_path, rows, lambda content: content.replace(f",{odd},", f",{text},", 1))
    assert text in path.read_text()
    reported(path)


def test_a_cell_of_200_kb_is_named_as_what_is_wrong(tmp_path: Path) -> None:
    failed = row("cold", None, block=3, attempt=3, error="x" * 200_000)
    path = written(tmp_path, [*race(2, cold=40_000), failed])
    with pytest.raises(UsageError, match=f"{path.name}.*larger than field limit"):
        read_results(path)
