from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest

from harness.results import COLUMNS, ResultFile, Row, read_rows
from harness.summary import summarise
from harness.table import print_summary
from instant_env.errors import UsageError
from instant_env.launch.timeline import Outcome
from instant_env.settings import ROOT


def row(technique: str = "cold", t4_ms: float | None = 40_000.0, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "run_id": "r",
        "attempt": 1,
        "block": 1,
        "technique": technique,
        "arch": "x86_64",
        "cloud": "local",
        "accelerator": "tcg",
        "region": "us-east-1",
        "instance_type": "m7i.large",
        "ami": "ami-1",
        "outcome": "ok" if t4_ms is not None else "timeout",
        "timeout_s": 600.0,
        "t0_utc": "2026-01-02T03:04:05.678Z",
        "t1_ms": 100.0,
        "t2_ms": 500.0,
        "t4_ms": t4_ms,
        "t2_t4_ms": t4_ms - 500 if t4_ms is not None else None,
        "probes": 3,
        "probes_refused": 2,
        "probes_silent": 0,
        "probes_garbage": 0,
        "keys_refused": 0,
    }
    return Row(**(values | changes))


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


def test_summary_counts_failures_and_compares_medians() -> None:
    cold = [row(t4_ms=value) for value in (40_500.0, 38_500.0, 90_500.0)]
    fast = [row("custom-init", value) for value in (8_100.0, 8_900.0, None)]
    summary = summarise([*fast, *cold], ["cold", "custom-init"])
    first, second = summary.techniques
    assert (first.technique, first.n, first.failures) == ("cold", 3, 0)
    assert dataclasses.astuple(first.phases["t4_ms"]) == (40_500.0, 38_500.0, 90_500.0)
    assert first.times_faster == {}
    assert (second.n, second.failures, second.outcomes) == (3, 1, {"ok": 2, "timeout": 1})
    assert second.phases["t4_ms"].p50 == 8_500.0
    assert second.times_faster == {"t4_ms": 4.76, "t2_t4_ms": 5.0}
    assert summary.as_json()["techniques"][1]["times_faster"]["t2_t4_ms"] == 5.0


def test_different_machines_are_not_pooled() -> None:
    with pytest.raises(UsageError, match="different kinds"):
        summarise([row(), row(accelerator="kvm")])
    with pytest.raises(UsageError, match="no attempts"):
        summarise([])


def test_plain_table_says_where_the_figures_come_from() -> None:
    out = io.StringIO()
    rows = [row(), row("custom-init", 8_000.0), row("minimal-ami", None)]
    print_summary(summarise(rows, ["cold", "custom-init", "minimal-ami"]), out)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("technique")
    assert lines[0].endswith("× cold")
    assert any(line.split() == ["t4", "8.00", "8.00", "8.00", "5.0×"] for line in lines)
    assert any(line.split() == ["minimal-ami", "1", "1", "none", "ok"] for line in lines)
    assert "not EC2" in lines[-1]
    assert "software emulation" in lines[-1]


def test_terminal_gets_a_table_that_fits_80_columns() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    print_summary(summarise([row(), row("custom-init", 8_000.0)]), out)
    assert "┃" in out.getvalue()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in out.getvalue().splitlines()) <= 80
