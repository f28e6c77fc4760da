"""The addresses behind those that a builder asks for, and connections to them: mirrors, proxies, trust."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: Until a host takes a connection, and between two pieces of what it sends.
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Address:
    """Where a request goes: a scheme, a host with its port, and the path with the query.

    ``authorization`` is a header's value, of a URL with a user's name; ``proxies`` stand above the
    environment's, by scheme, and an empty one is none.
    """

    scheme: str
    host: str
    port: int
    path: str
    authorization: str = field(default="", repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str, proxies: Mapping[str, str] | None = None) -> Address:
        """Of an http or https URL. Raises ValueError."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {url}")
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        port = parts.port or (80 if parts.scheme == "http" else 443)
        return cls(parts.scheme, parts.hostname.lower(), port, path, _basic(parts), proxies or {})

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port, the port left out where it is the scheme's."""
        is_usual = self.port == (80 if self.scheme == "http" else 443)
        return self.host if is_usual else f"{self.host}:{self.port}"


def _basic(parts: urllib.parse.SplitResult) -> str:
    """The value of a header for the user's name and password in a URL (RFC 7617); empty without."""
    if parts.username is None:
        return ""
    secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(secret.encode()).decode()}"


@dataclass(frozen=True)
class Route:
    """What begins with ``beginning`` (``https://HOST/``) is at ``mirror`` for this computer.

    ``proxies`` stand above the environment's.
    """

    beginning: str
    mirror: str = field(repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)


def environment_proxy(scheme: str, host: str) -> str:
    """The proxy of http_proxy, https_proxy and no_proxy for ``host``; empty: none."""
    proxies = urllib.request.getproxies()
    return "" if urllib.request.proxy_bypass(host) else proxies.get(scheme, "")


@dataclass(frozen=True)
class Upstreams:
    """``proxy_for`` names the proxy for a scheme and a host, or none. The first route that fits counts."""

    routes: tuple[Route, ...] = ()
    proxy_for: Callable[[str, str], str] = environment_proxy
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def resolve(self, address: Address) -> Address:
        """The address at which this computer gets what ``address`` names."""
        for route in self.routes:
            if address.url.startswith(route.beginning):
                rest = address.url.removeprefix(route.beginning)
                return Address.parse(f"{route.mirror.rstrip('/')}/{rest}", route.proxies)
        return address

    def connect(self, address: Address) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """A connection for one request to ``address``, not open yet, with the target to ask it for and the
        headers that it and its proxy want."""
        headers = {"Authorization": address.authorization} if address.authorization else {}
        proxy = address.proxies.get(address.scheme)
        if proxy is None:
            proxy = self.proxy_for(address.scheme, address.host)
        if not proxy:
            return self._direct(address.scheme, address.host, address.port), address.path, headers
        server, credentials = _proxy(proxy)
        if address.scheme == "http":
            return self._direct("http", server.host, server.port), address.url, {**headers, **credentials}
        connection = http.client.HTTPSConnection(
            server.host, server.port, timeout=TIMEOUT_S, context=self.context
        )
        connection.set_tunnel(address.host, address.port, credentials)
        return connection, address.path, headers

    def tunnel(self, host: str, port: int) -> socket.socket:
        """An open connection to ``host``, through the proxy where there is one. Raises OSError and
        HTTPException."""
        if not (proxy := self.proxy_for("https", host)):
            return socket.create_connection((host, port), timeout=TIMEOUT_S)
        server, credentials = _proxy(proxy)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT_S)
        connection.set_tunnel(host, port, credentials)
        connection.connect()
        sock: socket.socket = connection.sock
        return sock

    def _direct(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self.context)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _proxy(url: str) -> tuple[Address, dict[str, str]]:
    """A proxy's address, and the header with its user's name and password, if the URL has them."""
    server = Address.parse(url if "://" in url else f"http://{url}")
    return server, {"Proxy-Authorization": server.authorization} if server.authorization else {}
