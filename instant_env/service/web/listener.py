"""The server: its socket, TLS, and an end within two seconds whatever is still open.

Signals are the caller's: it calls :meth:`Listener.stop`, from any thread. Nothing here waits for threads:
work that a thread does for the engine (an EC2 call in flight) goes on until the process exits, so those
threads have to be daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from instant_env.errors import UsageError
from instant_env.service.web.buckets import peer_name
from instant_env.service.web.context import Web

#: Streams and waits end by themselves when they are told; what has not ended after this is cancelled.
GRACE_S = 1
#: For the head of a request, from the connection or from the answer before.
HEAD_TIMEOUT_S = 15
#: Open connections: descriptors are few, and each event stream holds one.
MOST_CONNECTIONS = 512
#: Of one address, so that one stranger leaves room for others. This host's own are not counted: a proxy in
#: front of the service is one of them, and has everybody's.
MOST_CONNECTIONS_OF_A_PEER = 64


def is_loopback(host: str) -> bool:
    """Whether only this host can connect to it."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def check_address(host: str, *, certificate: Path | None, key: Path | None, machines_are_local: bool) -> None:
    """Raises UsageError for an address that would carry tokens in the clear, or serve machines that nobody
    elsewhere can reach. ``machines_are_local``: localec2's, whose addresses are this host's."""
    if (certificate is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key belong together", hint="give both, or neither")
    if is_loopback(host):
        return
    if machines_are_local:
        raise UsageError(
            f"localec2's machines are reached from this host only, so --listen {host} would serve addresses "
            "that are of no use elsewhere",
            hint="listen on 127.0.0.1, or use --cloud aws",
        )
    if certificate is None:
        raise UsageError(
            f"--listen {host} would send tokens over the network in the clear",
            hint="give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that has TLS",
        )


#: Open connections by peer. Of the process, since uvicorn makes protocols without a word of their server.
_peers: Counter[str] = Counter()


class _Protocol(H11Protocol):
    """uvicorn's, with a limit on the time that a request's head takes, however its bytes are spread, and on
    the connections of one address. uvicorn has one on the silence between requests, and one for all."""

    _head: asyncio.TimerHandle | None = None
    _peer = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        address = transport.get_extra_info("peername")[0]
        if is_loopback(address):
            return
        self._peer = peer_name(address)
        _peers[self._peer] += 1
        if _peers[self._peer] > MOST_CONNECTIONS_OF_A_PEER:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self.timeout_keep_alive_task is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        if self._peer:
            _peers[self._peer] -= 1
            if not _peers[self._peer]:
                del _peers[self._peer]
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """From its first byte; more bytes give no more time."""
        if self._head is None:
            self._head = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class Listener(uvicorn.Server):
    """Listens from the start: ``url`` is known, and a taken port is a UsageError, before anything runs."""

    def __init__(
        self,
        app: FastAPI,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self._web: Web = app.state.web
        self._is_tls = certificate is not None
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=HEAD_TIMEOUT_S,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=None if certificate is None else str(certificate),
            ssl_keyfile=None if key is None else str(key),
        )
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the certificate cannot be used: {error}",
                hint="--tls-cert and --tls-key are PEM files that fit",
            ) from None
        super().__init__(config)
        self._socket = _listen(host, port)

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        return f"{'https' if self._is_tls else 'http'}://{name}:{port}"

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until :meth:`stop`."""
        await super().serve(sockets or [self._socket])

    def stop(self) -> None:
        """End :meth:`serve` soon. Any thread, and signal handlers, may call it."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell streams and waits first: uvicorn would wait for them for ever."""
        self._web.stopping.set()
        await asyncio.sleep(0)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own handlers would swallow the first Ctrl-C: the caller has better ones."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named: asyncio turns Nagle's algorithm off for such sockets only, and an answer in
        # two parts would wait 40 ms for an acknowledgement.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="another service has it? choose another with --listen HOST:PORT",
        ) from None
    return listening
