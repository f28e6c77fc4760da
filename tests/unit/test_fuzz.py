"""Every Go fuzz target, found by its name and run for a second or two; corpora are in packages' testdata.

`go test` runs the corpus alone. Here new inputs are made, too: what breaks a target is written beside the
corpus, to be kept with the mend. It counts inputs, because Go reports a failure ("context deadline exceeded")
when time ends at the wrong moment (go.dev/issue/75804); INSTANT_ENV_FUZZ_INPUTS makes it look for longer.
`make fuzz` gives all targets together a time, INSTANT_ENV_FUZZ_SECONDS, and takes no such failure for one.
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

INPUTS = int(os.environ.get("INSTANT_ENV_FUZZ_INPUTS", "2000"))
SECONDS = float(os.environ.get("INSTANT_ENV_FUZZ_SECONDS", "0"))
#: Each new input is minimised before it is kept, by default for up to a minute, which for a large one is all
#: of the time that there is.
MINIMISING = "100x"
_TARGET = re.compile(r"^func (Fuzz\w+)\(\w+ \*testing\.F\)", re.MULTILINE)


def targets() -> list[tuple[Path, str]]:
    """(package's directory, name) of all targets in our own Go code."""
    sources = sorted(path for top in ("init", "cmd", "internal") for path in (ROOT / top).rglob("*_test.go"))
    return [(path.parent, name) for path in sources for name in _TARGET.findall(path.read_text())]


TARGETS = targets()


def test_there_are_targets() -> None:
    """One at least for every parser of bytes that somebody else wrote."""
    names = {(package.relative_to(ROOT).as_posix(), name) for package, name in TARGETS}
    assert names >= {
        ("cmd/imagetool", "FuzzRoot"),
        ("cmd/imagetool", "FuzzExtents"),
        ("cmd/imagetool", "FuzzJudges"),
        ("cmd/netd", "FuzzARP"),
        ("cmd/netd", "FuzzDHCPRequest"),
        ("cmd/netd", "FuzzDNSQuery"),
        ("cmd/netd", "FuzzNTP"),
        ("cmd/netd", "FuzzPacket"),
        ("init/internal/dhcp", "FuzzDecode"),
        ("init/internal/disk", "FuzzIdentity"),
        ("init/internal/gpt", "FuzzPlan"),
        ("init/internal/handover", "FuzzServe"),
        ("init/internal/imds", "FuzzResponse"),
        ("init/internal/instant", "FuzzAgainstPackageTime"),
        ("init/internal/json", "FuzzParse"),
        ("init/internal/kmod", "FuzzIndexes"),
        ("init/internal/netif", "FuzzLinks"),
        ("init/kmsg", "FuzzRecords"),
        ("init/ssm", "FuzzAnswer"),
        ("internal/imds", "FuzzHTTP"),
        ("internal/imds", "FuzzMetadata"),
        ("internal/secrets", "FuzzScan"),
        ("internal/uki", "FuzzPE"),
    }


def ended_by_the_clock(output: str) -> bool:
    """Whether Go called the end of the time a failure, with no input that fails."""
    return "context deadline exceeded" in output and "Failing input written" not in output


@pytest.mark.slow
@pytest.mark.timeout(300 + INPUTS // 100 + SECONDS)
@pytest.mark.parametrize(("package", "name"), TARGETS, ids=[name for _, name in TARGETS])
def test_fuzz(package: Path, name: str) -> None:
    env = go_environment(Arch.X86_64)
    del env["GOARCH"], env["GOOS"]
    length = f"{max(1, round(SECONDS / len(TARGETS)))}s" if SECONDS else f"{INPUTS}x"
    # Two workers: the rest of the tests run beside them.
    command = [find_go(), "test", "-run", "^$", "-fuzz", f"^{name}$", "-fuzztime", length]
    result = subprocess.run(
        [*command, "-fuzzminimizetime", MINIMISING, "-parallel", "2", "."],
        cwd=package, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode != 0 and not (SECONDS and ended_by_the_clock(result.stdout)):
        pytest.fail(f"{package.relative_to(ROOT)}: {result.stdout}{result.stderr}", pytrace=False)
    assert "elapsed:" in result.stdout, "it was fuzzed, not only found"
