"""The binary that goes into images: small, static, and without what would make it large."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from instant_env import __version__
from instant_env.arch import Arch
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_build, go_environment

#: Bytes, stripped. It is read from a disk that may be far away before anything else can happen.
LIMIT = 3_000_000

#: Each brings much along; internal/json, internal/imds and internal/netif stand in for the first three.
HEAVY = {"encoding/json", "net/http", "net", "crypto/tls", "regexp", "text/template", "html/template"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(Arch))
def test_is_at_most_3_megabytes(arch: Arch, tmp_path: Path) -> None:
    binary = go_build("init", arch, tmp_path)
    size = binary.stat().st_size
    assert size <= LIMIT, f"{size} bytes; go tool nm -size tells what takes them"


@pytest.mark.slow
def test_says_the_version_of_the_project(tmp_path: Path) -> None:
    binary = go_build("init", Arch.parse(platform.machine()), tmp_path)
    result = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"instant-init {__version__}\n"


def test_imports_nothing_heavy() -> None:
    packages = subprocess.run(
        [find_go(), "list", "-deps", "./init"],
        cwd=ROOT, env=go_environment(Arch.X86_64), capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not HEAVY & set(packages)
