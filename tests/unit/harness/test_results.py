from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from support.harness_rows import records, row

from harness.figures.statistics import summarise
from harness.figures.summary_table import print_summary
from harness.results_file import COLUMNS, ResultFile, read_rows
from instant_env.errors import UsageError
from instant_env.launch.timeline import Outcome
from instant_env.settings import ROOT


def test_readme_documents_every_column_and_outcome() -> None:
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \| ([^|]*) \| (.*) \|$", text, re.MULTILINE)
    columns = [(c.name, c.metadata["unit"], c.metadata["doc"]) for c in COLUMNS]
    assert [(name, unit.strip(), doc) for name, unit, doc in documented] == columns
    assert re.findall(r"^\| `(\w+)` \| [^|]* \|$", text, re.MULTILINE) == [o.value for o in Outcome]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(), row("custom-init", None, error='said "no",\nthen nothing', t3_tcp_ms=1.25)]
    with ResultFile(tmp_path / "new" / "r.csv") as results:
        for one in rows:
            results.append(one)
            # Not buffered: a crash now loses nothing.
            assert len(read_rows(results.path)) == rows.index(one) + 1
    assert read_rows(tmp_path / "new" / "r.csv") == rows


def test_the_promised_columns_are_there(tmp_path: Path) -> None:
    with ResultFile(tmp_path / "r.csv") as results:
        results.append(row())
    with (tmp_path / "r.csv").open(newline="") as file:
        record = next(csv.DictReader(file))
    assert {"technique", "arch", "outcome", "t1_ms", "t2_ms", "t3_ms", "t4_ms"} <= record.keys()
    assert record["t4_ms"] == "40000"
    assert record["t3_ms"] == ""


def test_a_result_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("dear figures")
    with pytest.raises(FileExistsError), ResultFile(path):
        pass
    assert path.read_text() == "dear figures"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match="columns"):
        read_rows(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_rows(tmp_path / "none.csv")


def test_plain_table_says_where_the_figures_come_from() -> None:
    out = io.StringIO()
    rows = [
        row(),
        row("custom-init", 8_000.0),
        row("minimal-ami", None),
        row("minimal-ami", None, "capacity"),
    ]
    print_summary(summarise(records(*rows), ["cold", "custom-init", "minimal-ami"]), out)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("technique")
    assert lines[0].endswith("× faster")
    assert "p99" not in lines[0]
    assert any(line.split() == ["t4", "8.00", "8.00", "8.00", "5.0"] for line in lines)
    assert any(line.split() == ["t4", *(">", "600") * 3, "<", "0.07"] for line in lines)
    assert any(line == "minimal-ami: 2 of 2 failed (1 capacity, 1 timeout)" for line in lines)
    assert any("too few blocks" in line for line in lines)
    assert "not EC2" in lines[-1]
    assert "software emulation" in lines[-1]


def test_terminal_gets_a_table_that_fits_80_columns() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    rows = [
        row(technique, t4_ms + block, block=block)
        for block in range(1, 100)
        for technique, t4_ms in (("cold", 40_000.0), ("custom-init", 8_000.0), ("minimal-ami", 21_000.0))
    ]
    print_summary(summarise(records(*rows)), out)
    assert "━" in out.getvalue()
    assert "5.0 [5.0–5.0]" in out.getvalue()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in out.getvalue().splitlines()) <= 80
