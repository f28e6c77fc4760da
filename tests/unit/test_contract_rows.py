"""The contract tests and the table of differences agree."""

from __future__ import annotations

import re

from instant_env.settings import ROOT

_ROW = re.compile(r"^\| `([a-z-]+)` \|", re.MULTILINE)
_NAMED = re.compile(r'\bdiffers\("([a-z-]+)"\)')


def test_every_difference_that_a_test_names_is_in_the_table() -> None:
    section = (
        (ROOT / "instant_env/localec2/README.md").read_text().partition("## Where it differs from EC2")[2]
    )
    rows = _ROW.findall(section.partition("\n## ")[0])
    assert len(rows) > 5
    assert len(rows) == len(set(rows))
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "test_contract_rows.py"]
    named = {row for path in tests for row in _NAMED.findall(path.read_text())}
    assert named
    assert named <= set(rows)
