"""Files that are written whole or not at all, and locks on files."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from instant_env.files import is_locked, replacing, write_atomically, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208 - a directory's names, hidden ones among them


def test_a_file_is_replaced_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("old")
    path.chmod(0o644)
    write_atomically(path, b"new")
    assert (path.read_bytes(), mode(path), names(tmp_path)) == (b"new", 0o600, ["record"])


def test_json_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "deeper" / "manifest.json", {"a": [1]})
    finally:
        os.umask(before)
    path = tmp_path / "deeper" / "manifest.json"
    assert json.loads(path.read_text()) == {"a": [1]}
    assert mode(path) == 0o640


def test_a_failure_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (path.read_text(), names(tmp_path)) == ("old", ["image"])


def test_two_writers_in_one_process_do_not_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
    assert (path.read_text(), names(tmp_path)) == ("first", ["image"])


def test_an_exclusive_lock_is_seen_and_a_look_at_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        is_locked(path)
    with path.open("wb") as holder:
        assert not is_locked(path)
        fcntl.flock(holder, fcntl.LOCK_SH)  # as another look at it does
        assert not is_locked(path)
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert is_locked(path)
    assert not is_locked(path)
