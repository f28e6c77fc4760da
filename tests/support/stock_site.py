"""Fixtures of the stock tests: a web server on loopback that misbehaves on request."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Site:
    """What the server holds and how it misbehaves; ``requests`` is (path, Range header or None)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    #: Answers before the real one, by path: a status to send.
    failures: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    #: Bytes to send before the connection is cut, by path; one entry per request.
    cuts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            byte_range = self.headers.get("Range")
            site.requests.append((self.path, byte_range))
            if site.failures[self.path]:
                self.answer(site.failures[self.path].pop(0))
                return
            body = site.files.get(self.path)
            if body is None:
                self.answer(404)
                return
            start = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range and site.ranges else 0
            if start and start >= len(body):
                self.answer(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = start + site.cuts[self.path].pop(0) if site.cuts[self.path] else len(body)
            self.wfile.write(body[start:end])

        def answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: pytest shows what matters."""

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def progress(lines: list[str]) -> Callable[[str], None]:
    """A progress callback that keeps its lines in ``lines``."""
    return lines.append
