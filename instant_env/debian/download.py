"""Fetch one big file over HTTP: checked while it streams, resumed where it broke off.

Only the standard library: the checksum, the retries and the resume are this module's whole content, and a
client library would bring none of the three.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from instant_env.debian.command import BuildError

_T = TypeVar("_T")

_BLOCK = 1024 * 1024
TIMEOUT_S = 30.0
ATTEMPTS = 5
#: Seconds before the second attempt; doubled for each further one.
_PAUSE_S = 0.5
#: Answers that another try may change. All others are final.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: S3, behind Amazon's CDN, answers 403 for a key that does not exist.
_ABSENT = frozenset({403, 404, 410})
_RANGE_NOT_SATISFIABLE = 416

#: Gets the bytes so far and the bytes in all (None when the server does not say).
OnBytes = Callable[[int, int | None], None]


class DownloadError(BuildError):
    """A file could not be fetched."""


class NotFoundError(DownloadError):
    """The server has no such file."""


class ChecksumError(DownloadError):
    """The file is complete and is not the one that was promised."""


class _InterruptedError(Exception):
    """The connection failed or broke off: worth another try."""


class _Partial:
    """The part of a file that is here already, with its running SHA-256."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.digest = hashlib.sha256()
        if path.exists():
            with path.open("rb") as handle:
                while block := handle.read(_BLOCK):
                    self._count(block)

    def _count(self, block: bytes) -> None:
        self.digest.update(block)
        self.size += len(block)

    def restart(self) -> None:
        """Forget everything: the server sends the file from its beginning."""
        self.path.unlink(missing_ok=True)
        self.size = 0
        self.digest = hashlib.sha256()

    def append(self, response: http.client.HTTPResponse, total: int | None, on_bytes: OnBytes | None) -> None:
        with self.path.open("ab") as handle:
            while block := response.read(_BLOCK):
                handle.write(block)
                self._count(block)
                if on_bytes is not None:
                    on_bytes(self.size, total)


def get_text(url: str, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """The body of a text file of at most 1 MiB. Raises DownloadError, NotFoundError."""

    def attempt() -> str:
        with _open(url) as response:
            return response.read(_BLOCK).decode("utf-8", errors="replace")

    return _persist(url, attempt, sleep)


def fetch(
    url: str,
    target: Path,
    sha256: str,
    *,
    on_bytes: OnBytes | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download ``url`` to ``target``, whose SHA-256 must be ``sha256`` (hexadecimal).

    It grows as ``<target>.part``, which stays after a failure so that the next call resumes it; one with a
    wrong checksum is removed. Raises ChecksumError, NotFoundError, DownloadError.
    """
    partial = _Partial(target.with_name(f"{target.name}.part"))
    _persist(url, lambda: _continue(url, partial, on_bytes), sleep)
    if partial.digest.hexdigest() != sha256.lower():
        partial.path.unlink()
        raise ChecksumError(
            f"{url} has SHA-256 {partial.digest.hexdigest()} where its SHA256SUMS says {sha256.lower()}",
            hint="the mirror is being updated or is damaged: try again later, or use another",
        )
    partial.path.replace(target)


def _continue(url: str, partial: _Partial, on_bytes: OnBytes | None) -> None:
    """One attempt at the rest of the file."""
    try:
        response = _open(url, partial.size)
    except _AnswerError as error:
        if error.code != _RANGE_NOT_SATISFIABLE:
            raise
        return  # There is nothing beyond what is here. Whether that is the file, the checksum says.
    with response:
        if partial.size and response.status != http.client.PARTIAL_CONTENT:
            partial.restart()
        length = response.headers.get("Content-Length", "")
        total = partial.size + int(length) if length.isdigit() else None
        partial.append(response, total, on_bytes)
    # read(n) of a connection that ended early is no error: only the length tells.
    if total is not None and partial.size < total:
        raise _InterruptedError(f"it ended after {partial.size} of {total} bytes")


class _AnswerError(Exception):
    """A final answer that is not the file."""

    def __init__(self, code: int) -> None:
        super().__init__(f"HTTP {code}")
        self.code = code


def _open(url: str, offset: int = 0) -> http.client.HTTPResponse:
    """Open ``url`` from byte ``offset`` on. Raises _AnswerError; _InterruptedError when a retry may help."""
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"not an http or https URL: {url}", hint="check the mirror's address")
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the scheme was checked)
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _PASSING:
            raise _InterruptedError(f"HTTP {error.code}") from None
        raise _AnswerError(error.code) from None
    return response


def _persist(url: str, attempt: Callable[[], _T], sleep: Callable[[float], None]) -> _T:
    """Call ``attempt`` until it succeeds, at most ATTEMPTS times, with growing pauses."""
    pause = _PAUSE_S
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except _AnswerError as error:
            kind = NotFoundError if error.code in _ABSENT else DownloadError
            raise kind(f"{url} answers {error}") from None
        except (_InterruptedError, OSError, http.client.HTTPException) as error:
            if number == ATTEMPTS:
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                raise DownloadError(f"{url}: {reason} ({ATTEMPTS} attempts)") from error
            sleep(pause)
            pause *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")
