"""Every Go fuzz target, found by its name and run for a few seconds; corpora are in their packages' testdata.

`go test` runs the corpus alone. Here new inputs are made, too: what breaks a target is written beside the
corpus, to be kept with the mend. INSTANT_ENV_FUZZ_INPUTS makes it look for longer. It counts inputs, because
Go reports a failure ("context deadline exceeded") when time ends at the wrong moment (go.dev/issue/75804).
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_environment

INPUTS = int(os.environ.get("INSTANT_ENV_FUZZ_INPUTS", "10000"))
_TARGET = re.compile(r"^func (Fuzz\w+)\(\w+ \*testing\.F\)", re.MULTILINE)


def targets() -> list[tuple[Path, str]]:
    """(package's directory, name) of all targets in our own Go code."""
    sources = sorted(path for top in ("init", "cmd", "internal") for path in (ROOT / top).rglob("*_test.go"))
    return [(path.parent, name) for path in sources for name in _TARGET.findall(path.read_text())]


TARGETS = targets()


def test_there_are_targets() -> None:
    assert "FuzzDecode" in {name for _, name in TARGETS}


@pytest.mark.slow
@pytest.mark.timeout(300 + INPUTS // 100)
@pytest.mark.parametrize(("package", "name"), TARGETS, ids=[name for _, name in TARGETS])
def test_fuzz(package: Path, name: str) -> None:
    env = go_environment(Arch.X86_64)
    del env["GOARCH"], env["GOOS"]
    # Two workers: the rest of the tests run beside them.
    command = [find_go(), "test", "-run", "^$", "-fuzz", f"^{name}$", "-fuzztime", f"{INPUTS}x"]
    result = subprocess.run(
        [*command, "-parallel", "2", "."], cwd=package, env=env, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.fail(f"{package.relative_to(ROOT)}: {result.stdout}{result.stderr}", pytrace=False)
    assert "elapsed:" in result.stdout, "it was fuzzed, not only found"
