"""Downloads against a server on loopback: resumed, retried, and never trusted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instant_env.debian import download

if TYPE_CHECKING:
    from support.stock_site import Site

pytest_plugins = ["support.stock_site"]


BODY = bytes(range(256)) * 5000
SUM = hashlib.sha256(BODY).hexdigest()


def fetch(site: Site, target: Path, sha256: str = SUM) -> list[float]:
    """Fetch /image; returns the pauses that were made between attempts."""
    pauses: list[float] = []
    download.fetch(f"{site.url}/image", target, sha256, sleep=pauses.append)
    return pauses


def test_whole_file(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    assert fetch(site, tmp_path / "image") == []
    assert (tmp_path / "image").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_cut_connection_is_resumed_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    site.cuts["/image"] = [1000, 500]
    assert fetch(site, tmp_path / "image") == [0.5, 1.0]
    assert (tmp_path / "image").read_bytes() == BODY
    assert site.requests == [("/image", None), ("/image", "bytes=1000-"), ("/image", "bytes=1500-")]


def test_a_server_that_cannot_resume_is_read_from_the_beginning(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    site.cuts["/image"] = [1000]
    site.ranges = False
    fetch(site, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == BODY


def test_passing_errors_are_retried(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    site.failures["/image"] = [503, 429]
    assert fetch(site, tmp_path / "image") == [0.5, 1.0]


def test_what_was_fetched_stays_for_the_next_call(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    site.cuts["/image"] = [100] * download.ATTEMPTS
    with pytest.raises(download.DownloadError, match=r"ended after 500 of 1280000 bytes \(5 attempts\)"):
        fetch(site, tmp_path / "image")
    assert (tmp_path / "image.part").stat().st_size == 500
    fetch(site, tmp_path / "image")
    assert site.requests[-1] == ("/image", "bytes=500-")
    assert (tmp_path / "image").read_bytes() == BODY


def test_a_complete_part_needs_no_bytes(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    (tmp_path / "image.part").write_bytes(BODY)
    fetch(site, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == BODY


def test_wrong_checksum_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    with pytest.raises(download.ChecksumError, match="SHA256SUMS says 0000"):
        fetch(site, tmp_path / "image", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_absent_is_final(site: Site, tmp_path: Path, status: int) -> None:
    site.failures["/image"] = [status]
    with pytest.raises(download.NotFoundError, match=f"answers HTTP {status}"):
        fetch(site, tmp_path / "image")
    assert len(site.requests) == 1


def test_nobody_listens(site: Site, tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(download.DownloadError, match="refused"):
        download.fetch("http://127.0.0.1:9/image", tmp_path / "image", SUM, sleep=pauses.append)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_only_http(tmp_path: Path) -> None:
    with pytest.raises(download.DownloadError, match="not an http"):
        download.fetch("file:///etc/passwd", tmp_path / "image", SUM)


def test_progress_counts_bytes(site: Site, tmp_path: Path) -> None:
    site.files["/image"] = BODY
    seen: list[tuple[int, int | None]] = []
    download.fetch(f"{site.url}/image", tmp_path / "image", SUM, on_bytes=lambda *at: seen.append(at))
    assert seen[-1] == (len(BODY), len(BODY))
