"""Requests to localec2 as no client library would make them: signed, whatever they are."""

from __future__ import annotations

import hashlib
import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

if TYPE_CHECKING:
    from support.localec2_served import Served

FORM = "application/x-www-form-urlencoded; charset=utf-8"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    text: str


@dataclass(frozen=True)
class Signer:
    """Somebody with credentials of a server."""

    url: str
    credentials: Credentials

    def send(
        self, service: str, body: bytes, *, path: str = "/", method: str = "POST",
        headers: Mapping[str, str] | None = None, unsigned: Mapping[str, str] | None = None,
        sent_body: bytes | None = None,
    ) -> Reply:  # fmt: skip
        """Send one request. ``unsigned`` headers and ``sent_body`` come after signing."""
        signed_headers = {"Content-Type": FORM, "Host": urlsplit(self.url).netloc} | dict(headers or {})
        request = AWSRequest(method=method, url=self.url + path, data=body, headers=signed_headers)
        SigV4Auth(self.credentials, service, "us-east-1").add_auth(request)
        lines = dict(request.headers.items()) | dict(unsigned or {})
        return exchange(self.url, method, path, lines, body if sent_body is None else sent_body)


def exchange(url: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
    """One request, exactly as given."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Reply(answer.status, answer.read().decode())
    finally:
        connection.close()


def raw(url: str, data: bytes) -> bytes:
    """What a server says to these bytes until it closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def owner(served: Served) -> Signer:
    """The server's own credentials."""
    record = served.state.server
    return Signer(served.server.url, Credentials(record.access_key_id, record.secret_access_key))
