"""Provenance: what an image and a run say of the checkout that they came from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from instant_env.provenance import GitState, git_state


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "one.yml").write_text("one")
    (tmp_path / ".gitignore").write_text("build/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "first")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_commit_is_clean(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == GitState(head, dirty=False)
    assert str(git_state(checkout)) == head[:12]


@pytest.mark.parametrize("path", ["recipes/one.yml", "recipes/new/recipe.yml", "init/new.go"])
def test_a_changed_and_a_new_file_are_dirty(checkout: Path, path: str) -> None:
    file = checkout / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("another")
    assert git_state(checkout).dirty is True
    assert str(git_state(checkout)).endswith("+dirty")


@pytest.mark.parametrize("path", ["build/binary", "results/run.csv"])
def test_build_outputs_and_results_are_not_provenance(checkout: Path, path: str) -> None:
    file = checkout / path
    file.parent.mkdir()
    file.write_text("output")
    assert git_state(checkout).dirty is False


def test_without_a_repository_nothing_is_claimed(tmp_path: Path) -> None:
    assert git_state(tmp_path) == GitState(None, None)
    assert str(git_state(tmp_path)) == "unknown"
