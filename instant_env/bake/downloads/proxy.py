"""The proxy that builders are given: GET and HEAD of allowed hosts, and CONNECT to them.

Three shapes of a request are served:

- ``GET http://HOST/PATH``, as programs ask an HTTP proxy; apt does.
- ``CONNECT HOST:443``: bytes go through unread. What this computer reaches by a mirror only, or by a network
  that ends TLS with a certificate of its own, cannot be had this way: the builder would not trust it.
- ``GET /HOST/PATH``, as of a mirror: stands for https://HOST/PATH, which this computer asks for, by its
  mirror if it has one, and whose certificate it checks. The way back is the bake's SSH connection.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

from instant_env import foreign
from instant_env.bake.downloads.hosts import AllowedHosts
from instant_env.bake.downloads.traffic import Traffic
from instant_env.bake.downloads.upstreams import Address, Upstreams

#: Connections of the builder at a time. npm opens 15 (its maxsockets), apt one for each host.
MOST_CONNECTIONS = 32
#: A piece of a body: what a connection holds in memory, once in each direction.
_PIECE = 64 * 1024
#: A connection on which nothing moves for so long is closed.
_IDLE_S = 300.0

#: What an upstream gets to see of a request, and a builder of an answer. No credentials: this computer's own
#: are for its proxy, and a builder has none.
_REQUEST_HEADERS = (
    "Accept", "Accept-Encoding", "Cache-Control", "If-Modified-Since", "If-None-Match", "If-Range", "Range",
    "User-Agent",
)  # fmt: skip
_ANSWER_HEADERS = (
    "Accept-Ranges", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Range",
    "Content-Type", "Date", "ETag", "Expires", "Last-Modified", "Vary",
)  # fmt: skip
_NPM = "registry.npmjs.org"
#: A tarball's path there, with or without a scope.
_NPM_TARBALL = re.compile(r"/(@[^/]+/)?[^/]+/-/[^/]+\.tgz")
_NO_BODY = frozenset({204, 304})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
#: What ``close`` waits for a thread whose connections it has ended. One may still be opening a connection.
_JOIN_S = 2.0


class Stream(Protocol):
    """A connection: a socket, or a Paramiko channel."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> Any: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class _Receiver(io.RawIOBase):
    """What a stream sends, for a BufferedReader. A channel's own file has no read1."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Proxy:
    """Serves streams, each in a thread, until it is closed; then all of them end."""

    def __init__(self, allowed: AllowedHosts, upstreams: Upstreams, recipe: str) -> None:
        """``recipe`` is named where a host is refused."""
        self.allowed = allowed
        self.upstreams = upstreams
        self.recipe = recipe
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._closed = False
        self._threads: dict[threading.Thread, list[Any]] = {}

    def serve(self, stream: Stream) -> None:
        """Serve a connection in a thread of its own; close it where there are too many, or when closed."""
        thread = threading.Thread(target=self._run, args=(stream,), name="downloads", daemon=True)
        with self._lock:
            if not self._closed and len(self._threads) < MOST_CONNECTIONS:
                self._threads[thread] = [stream]
                thread.start()
                return
        with suppress(OSError, EOFError):
            stream.close()

    def close(self) -> None:
        """End all connections, and take no more."""
        with self._lock:
            self._closed = True
            threads = dict(self._threads)
        for streams in threads.values():
            for stream in list(streams):
                _end(stream)
        for thread in threads:
            thread.join(_JOIN_S)

    @contextmanager
    def holding(self, stream: Any) -> Iterator[None]:
        """``stream`` ends with this context, with this thread's connection, and when the proxy is closed."""
        with self._lock:
            streams = self._threads[threading.current_thread()]
            streams.append(stream)
            is_closed = self._closed
        try:
            if is_closed:
                raise OSError("the proxy is closed")
            yield
        finally:
            _end(stream)
            with self._lock:
                streams.remove(stream)

    def refusal(self, host: str, port: int) -> str:
        """Why a host is not reached, and what to do about it."""
        self.traffic.refuse(host if port in (80, 443) else f"{host}:{port}")
        return f"{host}:{port} is not among the hosts of recipe {self.recipe}: name it in its key hosts"

    def _run(self, stream: Stream) -> None:
        try:
            # It serves in its constructor, as socketserver's handlers do.
            _Handler(stream, ("builder", 0), self)  # type: ignore[arg-type]
        except (OSError, EOFError, ValueError):
            pass  # the builder's connection is gone, or this end of it
        finally:
            with self._lock:
                streams = self._threads.pop(threading.current_thread(), [stream])
            for one in streams:
                _end(one)


def _end(stream: Any) -> None:
    """Close a stream so that who waits for its bytes stops waiting."""
    if isinstance(stream, socket.socket):
        with suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)
    with suppress(OSError, EOFError):
        stream.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "instant-env", ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(message)s\n"
    server: Proxy  # type: ignore[assignment]
    #: Whether the head of an answer is out: then a failure can only close the connection.
    _has_begun = False

    def setup(self) -> None:
        self.connection = self.request
        self.connection.settimeout(_IDLE_S)
        self.rfile = io.BufferedReader(_Receiver(self.request), _PIECE)
        self.wfile = _Sender(self.request)

    def log_message(self, *_: Any) -> None:
        """Nothing: what went through is counted."""

    def do_HEAD(self) -> None:
        self._fetch()

    def do_GET(self) -> None:
        self._fetch()

    def do_CONNECT(self) -> None:
        host, _, port_text = self.path.rpartition(":")
        if not host or not port_text.isdigit():
            self.send_error(400, "CONNECT takes HOST:PORT")
            return
        host, port = host.lower(), int(port_text)
        self.close_connection, self._has_begun = True, False
        # Port 80 is for requests that can be read.
        if port == 80 or not self.server.allowed.permits(host, port):
            self.send_error(403, self.server.refusal(host, port))
            return
        started = time.monotonic()
        try:
            upstream = self.server.upstreams.tunnel(host, port)
            with self.server.holding(upstream):
                count = self._join(upstream)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._fail(host, started, error)
            return
        self.server.traffic.add(host, count, time.monotonic() - started)

    def _join(self, upstream: socket.socket) -> int:
        """Pass bytes both ways until the upstream ends; returns how many came from it."""
        upstream.settimeout(_IDLE_S)
        self._has_begun = True
        self.send_response_only(200, "Connection established")
        self.end_headers()
        back = threading.Thread(target=self._copy_to, args=(upstream,), name="downloads-up", daemon=True)
        back.start()
        count = 0
        try:
            while data := _received(upstream):
                count += len(data)
                self.request.sendall(data)
        finally:
            # The other thread waits for the builder, which may have nothing more to say.
            _end(self.request)
            back.join(_JOIN_S)
        return count

    def _copy_to(self, upstream: socket.socket) -> None:
        """From the builder upstream, until it ends."""
        try:
            while data := self.rfile.read1(_PIECE):
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_WR)
        except (OSError, EOFError, ValueError):
            _end(upstream)

    def _address(self) -> Address | None:
        """What is asked for; None when that was answered with a refusal."""
        is_mirror = self.path.startswith("/")
        path = self.path
        # npm puts its registry's host, and not its path, in the place of registry.npmjs.org in a tarball's
        # URL (npm help config, replace-registry-host).
        if _NPM_TARBALL.fullmatch(path) and not self.server.allowed.names(path.split("/")[1]):
            path = f"/{_NPM}{path}"
        try:
            address = Address.parse(f"https:/{path}" if is_mirror else path)
        except ValueError:
            self.send_error(400, "not a URL, nor /HOST/PATH")
            return None
        if not is_mirror and address.scheme != "http":
            self.send_error(400, "https goes by CONNECT, or as /HOST/PATH")
            return None
        if not self.server.allowed.permits(address.host, address.port):
            self.send_error(403, self.server.refusal(address.host, address.port))
            return None
        return address

    def _fetch(self) -> None:
        self._has_begun = False
        if (address := self._address()) is None:
            return
        started = time.monotonic()
        try:
            count, failure = self._pass_on(address)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._fail(address.host, started, error)
            return
        self.server.traffic.add(address.host, count, time.monotonic() - started, failure)

    def _pass_on(self, address: Address) -> tuple[int, str]:
        """Ask the upstream, and answer with its answer; returns the bytes of the body, and how it failed."""
        upstream = self.server.upstreams.resolve(address)
        for _ in range(_MOST_REDIRECTS):
            connection, target, extra = self.server.upstreams.connect(upstream)
            connection.connect()
            with self.server.holding(connection.sock):
                headers = {name: self.headers[name] for name in _REQUEST_HEADERS if self.headers[name]}
                connection.request(self.command, target, headers={"Connection": "close", **headers, **extra})
                answer = connection.getresponse()
                location = answer.headers["Location"] if answer.status in _REDIRECTS else None
                if location is None or upstream == address:
                    count = self._answer(answer, location)
                    return count, f"HTTP {answer.status} {answer.reason}" if answer.status >= 400 else ""
            # A mirror that this computer was told to use may send it on; the builder need not know where.
            upstream = Address.parse(urllib.parse.urljoin(upstream.url, location))
        raise http.client.HTTPException(f"more than {_MOST_REDIRECTS} redirects")

    def _answer(self, answer: http.client.HTTPResponse, location: str | None) -> int:
        """Pass an answer on. Returns the bytes of its body. Raises IncompleteRead when it breaks off."""
        self._has_begun = True
        self.send_response_only(answer.status, answer.reason)
        for name in _ANSWER_HEADERS:
            if (value := answer.headers[name]) is not None:
                self.send_header(name, value)
        if location is not None:
            is_mirror = self.path.startswith("/")
            # As a mirror would: what https names is below its host's name here, too.
            self.send_header("Location", re.sub("^https:/", "", location) if is_mirror else location)
        length = answer.headers["Content-Length"]
        has_body = self.command != "HEAD" and answer.status not in _NO_BODY
        is_chunked = has_body and length is None and self.request_version == "HTTP/1.1"
        if length is not None:
            self.send_header("Content-Length", length)
        elif is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif has_body:
            self.send_header("Connection", "close")
        self.end_headers()
        return self._copy_body(answer, is_chunked=is_chunked) if has_body else 0

    def _copy_body(self, answer: http.client.HTTPResponse, *, is_chunked: bool) -> int:
        promised, count = answer.length, 0
        while data := answer.read1(_PIECE):
            count += len(data)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)
        if promised is not None and count < promised:
            raise http.client.IncompleteRead(b"", promised - count)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
        return count

    def _fail(self, host: str, started: float, error: Exception) -> None:
        """Count it, and answer that ``host`` could not be reached, if no answer has begun."""
        reason = foreign.visible(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        reason = reason.replace("\n", " ").encode("ascii", "replace").decode()
        self.close_connection = True
        self.server.traffic.add(host, 0, time.monotonic() - started, reason)
        if not self._has_begun:
            self.send_error(502, f"{host}: {reason}")


def _received(sock: socket.socket) -> bytes:
    """What comes next; nothing when the connection has ended in any way."""
    try:
        return sock.recv(_PIECE)
    except OSError:
        return b""


class _Sender(io.BufferedIOBase):
    """Writes to a stream, all of it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._stream.sendall(bytes(data))
        return len(data)
