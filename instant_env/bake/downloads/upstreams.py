"""How this computer reaches the hosts that a builder asks for: its mirrors, its proxies, its trust.

Nothing here has a registry's address of its own: they come from the caller's configuration when a bake runs.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from instant_env.debian.mirrors import Mirrors

#: Until a host takes a connection, and between two pieces of what it sends.
TIMEOUT_S = 60.0

#: Names under which Debian's archive is known: they serve the same files. Its images for EC2 use cdn-aws.
DEBIAN_HOSTS = frozenset(
    {"deb.debian.org", "cdn-aws.deb.debian.org", "security.debian.org", "ftp.debian.org"}
)
_DEBIAN_SECURITY = "/debian-security/"
_DEBIAN = "/debian/"


@dataclass(frozen=True)
class Address:
    """Where a request goes: a scheme, a host with its port, and the path with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Of an http or https URL. Raises ValueError."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https URL: {url}")
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        port = parts.port or (80 if parts.scheme == "http" else 443)
        return cls(parts.scheme, parts.hostname.lower(), port, path)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port, the port left out where it is the scheme's."""
        is_usual = self.port == (80 if self.scheme == "http" else 443)
        return self.host if is_usual else f"{self.host}:{self.port}"


def _environment_proxy(scheme: str, host: str) -> str:
    """The proxy of http_proxy, https_proxy and no_proxy for ``host``; empty: none."""
    proxies = urllib.request.getproxies()
    return "" if urllib.request.proxy_bypass(host) else proxies.get(scheme, "")


@dataclass(frozen=True)
class Upstreams:
    """``mirrors`` maps the beginning of an address (``https://HOST/``) to the URL that stands for it here;
    ``proxy_for`` names the proxy for a scheme and a host, or none."""

    debian: Mirrors = field(default_factory=Mirrors.from_environment)
    mirrors: Mapping[str, str] = field(default_factory=dict)
    proxy_for: Callable[[str, str], str] = _environment_proxy
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def resolve(self, address: Address) -> Address:
        """The address at which this computer gets what ``address`` names."""
        if address.host in DEBIAN_HOSTS:
            for beginning, mirror in (
                (_DEBIAN_SECURITY, self.debian.security),
                (_DEBIAN, self.debian.archive),
            ):
                if address.path.startswith(beginning):
                    return Address.parse(mirror.rstrip("/") + "/" + address.path.removeprefix(beginning))
        for beginning, mirror in self.mirrors.items():
            if address.url.startswith(beginning):
                return Address.parse(mirror.rstrip("/") + "/" + address.url.removeprefix(beginning))
        return address

    def connect(self, address: Address) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """A connection for one request to ``address``, not open yet, with the target to ask it for and the
        headers that its proxy wants."""
        proxy = self.proxy_for(address.scheme, address.host)
        if not proxy:
            return self._direct(address.scheme, address.host, address.port), address.path, {}
        server, headers = _proxy(proxy)
        if address.scheme == "http":
            return (
                http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT_S),
                address.url,
                headers,
            )
        connection = http.client.HTTPSConnection(
            server.host, server.port, timeout=TIMEOUT_S, context=self.context
        )
        connection.set_tunnel(address.host, address.port, headers)
        return connection, address.path, {}

    def tunnel(self, host: str, port: int) -> socket.socket:
        """An open connection to ``host``, through the proxy where there is one. Raises OSError and
        HTTPException."""
        if not (proxy := self.proxy_for("https", host)):
            return socket.create_connection((host, port), timeout=TIMEOUT_S)
        server, headers = _proxy(proxy)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=TIMEOUT_S)
        connection.set_tunnel(host, port, headers)
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
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    if parts.username is None:
        return server, {}
    secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return server, {"Proxy-Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
