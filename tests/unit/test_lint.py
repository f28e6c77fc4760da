"""Linters, formatters, type checkers and Go's own tests, so that one run and one count has all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_environment

#: Not ours, or made by tools.
SKIPPED_DIRS = {".git", ".venv", "build", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run in the checkout and return stdout; fail the test with everything the tool said."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.fail(
            f"{command[0]} exited with {result.returncode}\n{result.stdout}{result.stderr}", pytrace=False
        )
    return result.stdout


def source_files() -> Iterator[Path]:
    for directory, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in SKIPPED_DIRS]
        yield from (Path(directory, file) for file in files)


def is_shell_script(path: Path) -> bool:
    """By suffix, or by its first line. Templates are not shell before they are rendered."""
    if path.suffix in (".sh", ".bash"):
        return True
    if path.suffix or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(64)
    return first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash", b"dash")


def tool(name: str) -> Path:
    """A program that pip put beside this Python."""
    return Path(sys.executable).parent / name


def test_ruff_finds_nothing() -> None:
    run(tool("ruff"), "check", ".")


def test_python_is_formatted() -> None:
    run(tool("ruff"), "format", "--check", ".")


def test_types_are_strict() -> None:
    run(tool("mypy"))


def test_types_of_scripts_are_strict() -> None:
    run(tool("mypy"), "scripts")


def test_shell_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.fail("shellcheck is missing: make setup installs it, `invoke doctor` says how", pytrace=False)
    scripts = sorted(path for path in source_files() if is_shell_script(path))
    assert ROOT / ".ci" / "run" in scripts
    run("shellcheck", *scripts)


def test_go_is_formatted() -> None:
    goroot = run(find_go(), "env", "GOROOT", env=go_environment(Arch.X86_64)).strip()
    sources = sorted(path for path in source_files() if path.suffix == ".go")
    assert sources
    unformatted = run(Path(goroot, "bin", "gofmt"), "-l", *sources)
    assert not unformatted, f"run gofmt -w on: {unformatted}"


@pytest.mark.parametrize("arch", list(Arch))
def test_go_vet_finds_nothing(arch: Arch) -> None:
    run(find_go(), "vet", "./...", env=go_environment(arch))


def native_go_environment() -> dict[str, str]:
    """For this machine's own architecture: the environment of builds names a target, tests must run here."""
    env = go_environment(Arch.X86_64)
    del env["GOARCH"], env["GOOS"]
    return env


#: Run from the module cache, and not a tool of go.mod: its dependencies would be in go.sum for good.
STATICCHECK = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"


def test_staticcheck_finds_nothing() -> None:
    env = native_go_environment()
    probe = subprocess.run(
        [find_go(), "run", STATICCHECK, "-version"], env=env, capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"staticcheck cannot be fetched: {probe.stderr.strip()[-200:]}")
    run(find_go(), "run", STATICCHECK, "./...", env=env)


def test_go_tests_pass() -> None:
    run(find_go(), "test", "./...", env=native_go_environment())


@pytest.mark.timeout(600)
def test_go_tests_pass_under_the_race_detector() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: Go's race detector is linked by it")
    run(find_go(), "test", "-race", "./...", env=native_go_environment() | {"CGO_ENABLED": "1"})
