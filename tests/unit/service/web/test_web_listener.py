"""The listener: where it may listen, TLS, slow clients, and an end that waits for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.patience import until
from support.service.fake import FakeOperations
from support.service.served import KEY, serving

from instant_env.errors import UsageError
from instant_env.service.web.app import make_app
from instant_env.service.web.listener import Listener, _Protocol, check_address
from instant_env.settings import ROOT

CERTIFICATE, PRIVATE = Path("cert.pem"), Path("key.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    check_address(host, certificate=None, key=None, machines_are_local=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com", "localhost.example.com", ""])  # noqa: S104
def test_beyond_loopback_it_needs_tls_and_machines_that_can_be_reached(host: str) -> None:
    with pytest.raises(UsageError, match="in the clear") as refused:
        check_address(host, certificate=None, key=None, machines_are_local=False)
    assert "--tls-cert" in refused.value.hint
    check_address(host, certificate=CERTIFICATE, key=PRIVATE, machines_are_local=False)
    with pytest.raises(UsageError, match="this host only"):
        check_address(host, certificate=CERTIFICATE, key=PRIVATE, machines_are_local=True)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(UsageError, match="belong together"):
        check_address("127.0.0.1", certificate=CERTIFICATE, key=None, machines_are_local=True)


def test_a_port_that_is_taken_and_a_certificate_that_is_none_are_usage_errors(tmp_path: Path) -> None:
    app = make_app(FakeOperations())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}"):
            Listener(app, port=port)
    path = tmp_path / "none.pem"
    path.write_text("none")
    with pytest.raises(UsageError, match="certificate"):
        Listener(app, certificate=path, key=path)
    with pytest.raises(UsageError, match="certificate"):
        Listener(app, certificate=tmp_path / "nowhere", key=path)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, private


def test_it_serves_by_tls(tmp_path: Path) -> None:
    certificate, private = write_certificate(tmp_path)
    with serving(certificate=certificate, key=private) as service:
        assert service.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with service.client(verify=trusted) as client:
            assert client.get("/v1/quota").status_code == 200
        with service.client() as client, pytest.raises(httpx2.ConnectError):
            client.get("/healthz")


@pytest.mark.parametrize("requests_before", [0, 2])
def test_a_head_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch, requests_before: int) -> None:
    """Also where earlier requests of the connection were whole."""
    monkeypatch.setattr("instant_env.service.web.listener.HEAD_TIMEOUT_S", 1.0)
    with serving() as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.settimeout(60)
            for _ in range(requests_before):
                slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b'{"status":"ok"}'):
                    more = slow.recv(4096)
                    assert more, answer
                    answer += more
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
            with contextlib.suppress(ConnectionResetError):
                assert slow.recv(100) == b""
        with service.client() as client:
            assert client.get("/healthz").status_code == 200


#: A service with a call in a thread that takes a minute, ended as `invoke serve` is.
_PROGRAM = """
import asyncio, signal, sys, time
sys.path.insert(0, "tests")
from instant_env.service.engine.executor import DaemonExecutor
from instant_env.service.web.app import make_app
from instant_env.service.web.listener import Listener
from support.patience import until
from support.service.fake import FakeOperations
fake = FakeOperations()
listener = Listener(make_app(fake))
signal.signal(signal.SIGINT, lambda *_: listener.stop())
async def serve():
    asyncio.get_running_loop().set_default_executor(DaemonExecutor(1, "calls"))
    call = asyncio.create_task(asyncio.to_thread(time.sleep, 60))
    print(listener.url, fake.admin_secret, flush=True)
    await listener.serve()
asyncio.run(serve())
print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_signal_ends_it_at_once_with_an_open_stream_and_a_call_in_flight() -> None:
    service = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert service.stdout is not None
    try:
        url, secret = service.stdout.readline().split()
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
            path = client.post("/v1/instances", json={"public_key": KEY}).json()["url"]
            with client.stream("GET", f"{path}/events") as answer:
                lines = answer.iter_lines()
                next(lines)
                before = time.monotonic()
                service.send_signal(signal.SIGINT)
                assert "event: farewell" in list(lines)
                assert service.stdout.readline() == "ended\n"
                assert service.wait(30) == 0
                assert time.monotonic() - before < 20  # the call takes a minute
    finally:
        service.kill()
        service.wait()
        service.stdout.close()


def test_no_answer_waits_for_an_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio turns Nagle's algorithm off for connections whose socket names TCP as its protocol."""
    delays: list[int] = []
    plain = _Protocol.connection_made

    def noted(self: _Protocol, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("socket")
        delays.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        plain(self, transport)

    monkeypatch.setattr(_Protocol, "connection_made", noted)
    with serving() as service, service.client() as client:
        client.get("/healthz")
    assert delays
    assert all(delays)


def test_one_stranger_leaves_connections_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address of loopback is this host's, so one of them is made a stranger's."""
    monkeypatch.setattr("instant_env.service.web.listener.MOST_CONNECTIONS_OF_A_PEER", 3)
    monkeypatch.setattr("instant_env.service.web.listener.is_loopback", lambda host: host != "127.0.0.9")
    with serving() as service, contextlib.ExitStack() as stack:
        host, port = service.url.removeprefix("http://").split(":")

        def connect(address: str) -> bool:
            """Whether the connection is served."""
            connection = stack.enter_context(
                socket.create_connection((host, int(port)), timeout=60, source_address=(address, 0))
            )
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                return connection.recv(100).startswith(b"HTTP/1.1 200")
            except ConnectionResetError:
                return False

        assert [connect("127.0.0.9") for _ in range(5)] == [True, True, True, False, False]
        assert [connect("127.0.0.8") for _ in range(5)] == [True] * 5
        stack.close()
        assert until(lambda: connect("127.0.0.9"), 60)


@pytest.mark.parametrize("path", ["/healthz", "/", "/v1/quota", "/v1/instances/ls_none"])
def test_a_head_is_the_answer_without_its_body(path: str) -> None:
    with serving() as service, service.client() as client:
        whole, head = client.get(path), client.head(path)
        assert head.status_code == whole.status_code
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert head.content == b""
