"""The programs that recipes pin: what their files say, and what a wrong one is told."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from instant_env.errors import UsageError
from instant_env.programs.program import PROGRAMS, load_program, program_names, source_digest
from instant_env.settings import ROOT

SHIPPED = ROOT / "recipes" / PROGRAMS


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / PROGRAMS))


@pytest.mark.parametrize("name", program_names(SHIPPED))
def test_every_program_is_pinned_by_digest_and_names_no_host(name: str) -> None:
    program = load_program(SHIPPED, name)
    directory = SHIPPED / name
    for path in directory.iterdir():
        assert "://" not in path.read_text(encoding="utf-8"), path
    if program.go is not None:
        requirements = re.findall(
            r"^\t(\S+) v(\S+)( // indirect)?$", (directory / "go.mod").read_text(), re.MULTILINE
        )
        modules = [(module, version) for module, version, _ in requirements
                   if f"{program.go.package}/".startswith(f"{module}/")]  # fmt: skip
        ((module, version),) = modules
        assert version == program.version
        assert f"{module} v{version} h1:" in (directory / "go.sum").read_text()
    if program.npm is not None:
        assert (directory / "node.txt").read_text().count("--hash=sha256:") == 2, "one for each architecture"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("program: caddy\ndescription: d\nversion: '1'\n", "one of go, cargo and npm"),
        ("program: caddy\ndescription: d\nversion: latest\ngo: {package: a.b/c}\n", "version"),
        ("program: other\ndescription: d\nversion: '1'\ngo: {package: a.b/c}\n", "calls itself 'other'"),
        ("program: caddy\ndescription: d\nversion: '1'\ngo: {package: -o/tmp/x}\n", "go.package"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(copied: Path, text: str, message: str) -> None:
    (copied / "caddy/program.yml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_program(copied, "caddy")
    assert "caddy/program.yml" in str(caught.value)


def test_an_unknown_program_is_told_the_known_ones(copied: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_program(copied, "emacs")
    assert "caddy" in caught.value.hint


def test_each_byte_and_name_of_a_folder_decides_its_digest(copied: Path) -> None:
    digests = {source_digest(copied / "caddy")}
    with (copied / "caddy/go.sum").open("a") as file:
        file.write("\n")
    digests.add(source_digest(copied / "caddy"))
    (copied / "caddy/go.sum").rename(copied / "caddy/other.sum")
    digests.add(source_digest(copied / "caddy"))
    assert len(digests) == 3
