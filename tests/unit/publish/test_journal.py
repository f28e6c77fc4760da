"""The journal of a publication: what was answered is known after any end of the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from instant_env.errors import UsageError
from instant_env.publish import journal

DIGEST = bytes(range(32))


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "publish" / "ami-1-target"
    with journal.opened(path, "run-1") as first:
        assert not first.resumed
        first.snapshot("/dev/xvda", "snap-1")
        first.block("/dev/xvda", 3, DIGEST)
        first.snapshot("/dev/xvda", "snap-2")  # the first was gone: its blocks do not count
        first.block("/dev/xvda", 5, DIGEST)
        first.block("/dev/xvda", 6, None)
        with pytest.raises(UsageError, match="being published"), journal.opened(path, "run-2"):
            pass
    with path.open("a") as file:
        file.write(f"block /dev/xvda 7 {DIGEST.hex()[:20]}")  # torn
    for _ in range(2):
        with journal.opened(path, "run-3") as second:
            assert (second.resumed, second.run_id) == (True, "run-1")
            volume = second.volumes["/dev/xvda"]
            assert (volume.snapshot_id, volume.starts) == ("snap-2", 2)
            assert volume.blocks == {5: DIGEST, 6: None}
            assert volume.written == {5: DIGEST}
            second.block("/dev/xvda", 6, None)
    with journal.opened(path, "run-4") as last:
        last.end()
    assert not path.exists()


def test_a_file_that_is_no_journal_is_begun_afresh(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for content in ("", "publicat", "something else\nblock x\n"):
        path.write_text(content)
        with journal.opened(path, "run-1") as found:
            assert (found.resumed, found.run_id, dict(found.volumes)) == (False, "run-1", {})
        assert path.read_text() == "publication-1 run-1\n"
