"""The proxy over a real SSH connection, with a real origin: what a builder gets, and what it does not."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import asyncssh
import fabric
import pytest
from support import ssh_server
from support.patience import until

from instant_env.bake.downloads.forward import ForwardError, forwarded, variables
from instant_env.bake.downloads.hosts import AllowedHosts
from instant_env.bake.downloads.proxy import MOST_CONNECTIONS, Proxy
from instant_env.bake.downloads.upstreams import Route, Upstreams
from instant_env.cloud.keys import KeyPair
from instant_env.ssh import connection as ssh


class ForwardsNothing(ssh_server.TakesAnyKey):
    """As sshd with AllowTcpForwarding no."""

    def server_requested(self, listen_host: str, listen_port: int) -> bool:  # noqa: ARG002
        return False


class Origin(http.server.BaseHTTPRequestHandler):
    """Answers with the path; some paths do otherwise."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []
    release: ClassVar[threading.Event]

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        body = f"{self.headers['Host']} {self.path}".encode()
        if self.path.endswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("moved", "there"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.endswith("/broken"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
            return
        if self.path.endswith("/chunked"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            return
        if self.path.endswith("/waits"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(body)
            self.release.wait(60)
            return
        self.send_response(404 if self.path.endswith("/absent") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        """As the caller's own proxy: to itself, whatever is asked for."""
        self.seen.append((self.path, dict(self.headers)))
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def origin() -> Iterator[int]:
    """The port of an origin."""
    Origin.seen.clear()
    Origin.release = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            Origin.release.set()
            server.shutdown()


def no_proxy(_: str, __: str) -> str:
    return ""


def upstreams(port: int, proxy_for: Callable[[str, str], str] = no_proxy) -> Upstreams:
    """``pinned.example`` is a mirror's, and so is Debian's archive; loopback is itself."""
    return Upstreams(
        (
            Route("http://deb.debian.org/debian-security/", f"http://127.0.0.1:{port}/mirror/security"),
            Route("http://deb.debian.org/debian/", f"http://127.0.0.1:{port}/mirror/debian/"),
            Route("https://registry.npmjs.org/", f"http://127.0.0.1:{port}/npm"),
            Route("https://pinned.example/", f"http://user:pass@127.0.0.1:{port}/pinned"),
        ),
        proxy_for,
    )


def allowed(port: int) -> AllowedHosts:
    return AllowedHosts(("deb.debian.org", "pinned.example"), frozenset({("127.0.0.1", port)}))


@contextmanager
def builder(server: type[asyncssh.SSHServer] = ssh_server.TakesAnyKey) -> Iterator[fabric.Connection]:
    with (
        ssh_server.listening(server_factory=server) as port,
        ssh.wait_for_login("127.0.0.1", port, "admin", KeyPair.generate(), timeout_s=30) as connection,
    ):
        yield connection


@pytest.fixture
def proxy(origin: int) -> Proxy:
    return Proxy(allowed(origin), upstreams(origin), "tool")


@pytest.fixture(scope="module")
def shared() -> Iterator[fabric.Connection]:
    """A builder for the tests that leave it as it was."""
    with builder() as connection:
        yield connection


@pytest.fixture
def port(shared: fabric.Connection, proxy: Proxy) -> Iterator[int]:
    """On the builder's loopback."""
    with forwarded(shared, proxy) as port:
        yield port


def get(port: int, target: str, **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.reason, answer.read()
    finally:
        connection.close()


def connect(port: int, target: str) -> tuple[int, str, socket.socket]:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    answer = http.client.HTTPResponse(sock, method="CONNECT")
    answer.begin()
    return answer.status, answer.reason, sock


def refuses(port: int) -> bool:
    """Whether nothing listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def ended() -> bool:
    """Whether no thread of a proxy is left."""
    return not [thread for thread in threading.enumerate() if thread.name.startswith("downloads")]


def test_apts_requests_go_to_the_callers_mirror(port: int, origin: int) -> None:
    status, _, body = get(port, "http://deb.debian.org/debian/dists/bookworm/InRelease")
    assert (status, body) == (200, f"127.0.0.1:{origin} /mirror/debian/dists/bookworm/InRelease".encode())
    status, _, body = get(port, "http://deb.debian.org/debian-security/dists/bookworm-security/InRelease")
    assert (status, body.split()[1]) == (200, b"/mirror/security/dists/bookworm-security/InRelease")


def test_one_connection_serves_many_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    sock = connection.sock
    for name in ("a", "chunked", "b"):
        connection.request("GET", f"http://deb.debian.org/debian/{name}")
        assert connection.getresponse().read().endswith(f" /mirror/debian/{name}".encode())
        assert connection.sock is sock
    connection.close()


def test_what_https_names_is_served_below_its_hosts_name(port: int) -> None:
    status, _, body = get(port, "/pinned.example/a/b?c=d")
    assert (status, body.split()[1]) == (200, b"/pinned/a/b?c=d")


def test_a_tarball_of_npm_is_found_where_npm_looks_for_it(port: int, proxy: Proxy) -> None:
    """Not below the path of the registry that npm is told to use."""
    proxy.allowed = AllowedHosts(("registry.npmjs.org",))
    assert get(port, "/is-number/-/is-number-7.0.0.tgz")[2].endswith(b" /npm/is-number/-/is-number-7.0.0.tgz")
    assert get(port, "/lodash.merge/-/lodash.merge-4.tgz")[2].endswith(
        b"/npm/lodash.merge/-/lodash.merge-4.tgz"
    )
    assert get(port, "/@a/b/-/b-1.tgz")[2].endswith(b" /npm/@a/b/-/b-1.tgz")


def test_a_mirrors_redirects_are_the_callers_business(port: int) -> None:
    assert get(port, "/pinned.example/moved")[2].endswith(b" /pinned/there")


def test_redirects_of_others_are_the_builders(port: int, origin: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"http://127.0.0.1:{origin}/moved")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"]) == (302, "/there")
    connection.close()


def test_a_tunnel_passes_bytes_both_ways(port: int, origin: int) -> None:
    status, _, sock = connect(port, f"127.0.0.1:{origin}")
    assert status == 200
    sock.sendall(b"GET /inside HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n")
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    assert answer.read() == b"inside /inside"
    assert sock.recv(1) == b""
    sock.close()


@pytest.mark.parametrize(
    "target", ["http://other.example/x", "/other.example/x", "http://deb.debian.org:8080/x"]
)
def test_another_host_is_refused_with_the_key_that_would_allow_it(
    port: int, proxy: Proxy, target: str
) -> None:
    status, reason, body = get(port, target)
    assert status == 403
    assert reason.endswith("is not among the hosts of recipe tool: name it in its key hosts")
    assert body.decode().strip() == reason
    assert len(proxy.traffic.refused) == 1
    assert not Origin.seen


def test_another_host_gets_no_tunnel(port: int, proxy: Proxy) -> None:
    for target in ("other.example:443", "deb.debian.org:22", "deb.debian.org:80"):
        status, reason, sock = connect(port, target)
        sock.close()
        assert (status, reason.startswith(f"{target} is not among the hosts")) == (403, True)
    assert proxy.traffic.refused == ("other.example", "deb.debian.org:22", "deb.debian.org")


def test_a_host_that_cannot_be_reached_is_named(port: int, proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    proxy.allowed = AllowedHosts(pairs=frozenset({("127.0.0.1", int(closed.rpartition(":")[2]))}))
    for target in (f"http://{closed}/x", f"/{closed}/x"):
        status, reason, _ = get(port, target)
        assert (status, reason) == (502, "127.0.0.1: Connection refused")
    status, reason, sock = connect(port, closed)
    sock.close()
    assert (status, reason) == (502, "127.0.0.1: Connection refused")
    assert proxy.traffic.failures == {"127.0.0.1": "Connection refused"}


def test_a_body_that_breaks_off_does_not_look_complete(port: int, proxy: Proxy) -> None:
    with pytest.raises(http.client.IncompleteRead):
        get(port, "/pinned.example/broken")
    until(lambda: "pinned.example" in proxy.traffic.failures)


def test_an_upstreams_refusal_is_passed_on_and_counted(port: int, proxy: Proxy) -> None:
    assert get(port, "/pinned.example/absent")[0] == 404
    until(lambda: proxy.traffic.failures == {"pinned.example": "HTTP 404 Not Found"})


def test_no_credentials_of_the_builder_go_upstream(port: int) -> None:
    get(port, "/pinned.example/x", **{"Authorization": "Basic eA==", "Cookie": "a=b", "Range": "bytes=1-"})
    ((_, headers),) = Origin.seen
    assert headers["Range"] == "bytes=1-"
    assert not {"Cookie", "Proxy-Authorization"} & set(headers)
    # The mirror's own, from this computer's configuration.
    assert headers["Authorization"] == "Basic dXNlcjpwYXNz"


def test_the_callers_own_proxy_is_used(shared: fabric.Connection, origin: int) -> None:
    """With its password, which the builder never sees; for plain requests and for tunnels."""
    by = upstreams(origin, lambda _, __: f"http://me:secret@127.0.0.1:{origin}")
    proxy = Proxy(AllowedHosts(("far.example",)), by, "tool")
    with forwarded(shared, proxy) as port:
        status, _, body = get(port, "http://far.example/x")
        assert (status, body) == (200, b"far.example http://far.example/x")
        status, _, sock = connect(port, "far.example:443")
        sock.close()
        assert status == 200
    assert [path for path, _ in Origin.seen] == ["http://far.example/x", "far.example:443"]
    assert {headers["Proxy-Authorization"] for _, headers in Origin.seen} == {"Basic bWU6c2VjcmV0"}


def test_traffic_is_counted_by_host(port: int, proxy: Proxy) -> None:
    _, _, body = get(port, "/pinned.example/x")
    until(
        lambda: (
            "pinned.example: 1 requests" in "".join(proxy.traffic.lines()).replace(f"{len(body)} bytes, ", "")
        )
    )
    assert proxy.traffic.summary().startswith("downloads by this computer: 0.0 MB from pinned.example in ")


def test_all_ends_with_the_context(shared: fabric.Connection, proxy: Proxy) -> None:
    """A transfer that is under way as well, and nothing listens any more."""
    with forwarded(shared, proxy) as port:
        waiting = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        waiting.request("GET", "/pinned.example/waits")
        answer = waiting.getresponse()
        assert answer.read(5) == b"127.0"
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()

    until(lambda: refuses(port))
    until(ended)


def test_all_ends_when_the_connection_breaks(proxy: Proxy) -> None:
    """On both sides: sshd closes what it listens on for a connection that is gone."""
    with builder() as connection, forwarded(connection, proxy) as port:
        waiting = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        waiting.request("GET", "/pinned.example/waits")
        waiting.getresponse()
        connection.transport.sock.close()
        until(lambda: refuses(port))
    until(ended)


def test_all_ends_with_an_interrupt(shared: fabric.Connection, proxy: Proxy) -> None:
    ports: list[int] = []

    def interrupted() -> None:
        with forwarded(shared, proxy) as port:
            ports.append(port)
            waiting = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            waiting.request("GET", "/pinned.example/waits")
            waiting.getresponse()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    until(lambda: refuses(ports[0]))
    until(ended)


def test_there_is_a_bound_on_connections(port: int, proxy: Proxy) -> None:
    """One more than the bound is closed, and a place that is given back is taken again."""
    waiting = []
    for _ in range(MOST_CONNECTIONS):
        one = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        one.request("GET", "/pinned.example/waits")
        assert one.getresponse().status == 200
        waiting.append(one)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        get(port, "/pinned.example/x")
    Origin.release.set()
    for one in waiting:
        one.close()

    def is_served() -> bool:
        try:
            return get(port, "/pinned.example/x")[0] == 200
        except (http.client.HTTPException, ConnectionError):
            return False

    until(is_served)


def test_a_server_that_does_not_forward_is_named(proxy: Proxy) -> None:
    with (
        builder(ForwardsNothing) as connection,
        pytest.raises(ForwardError, match="sshd refuses to forward a port") as caught,
        forwarded(connection, proxy),
    ):
        pass
    assert "AllowTcpForwarding" in caught.value.hint


def test_the_environment_of_steps(proxy: Proxy) -> None:
    proxy.allowed = AllowedHosts(("registry.npmjs.org",), addresses=("10.0.0.5",))
    environment = variables(proxy, 4711)
    assert (
        environment["INSTANT_ENV_DOWNLOADS"]
        == environment["http_proxy"]
        == environment["HTTPS_PROXY"]
        == "http://127.0.0.1:4711"
    )
    assert {"169.254.169.254", "10.0.0.5", "127.0.0.1"} <= set(environment["no_proxy"].split(","))
    assert environment["npm_config_registry"] == "http://127.0.0.1:4711/registry.npmjs.org/"
    assert "PIP_INDEX_URL" not in environment
