"""Loopback servers that behave like a machine in some stage of its boot, at instants that the test knows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"

Handler = Callable[[socket.socket], Awaitable[None]]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def reset(sock: socket.socket) -> None:
    """Close with an RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass
class Server:
    """Accepts on a port and gives each connection, in order of arrival, to the handler of its time."""

    port: int
    accepted_ns: list[int] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[socket.socket, int], Awaitable[None]], port: int = 0
) -> AsyncIterator[Server]:
    """Serve until left. ``handler`` gets each socket with the connection's number, from 0."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(256)
    listener.setblocking(False)
    server = Server(listener.getsockname()[1])
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def one(sock: socket.socket, number: int) -> None:
        server.open_now += 1
        server.open_most = max(server.open_most, server.open_now)
        try:
            await handler(sock, number)
        finally:
            sock.close()
            server.open_now -= 1

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            server.accepted_ns.append(time.monotonic_ns())
            tasks.add(asyncio.create_task(one(sock, len(server.accepted_ns) - 1)))

    acceptor = asyncio.create_task(accept())
    try:
        yield server
    finally:
        acceptor.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(acceptor, *tasks, return_exceptions=True)
        listener.close()


async def eventually(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until the condition holds; the limit is for a machine that stands still."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def until_closed(sock: socket.socket) -> None:
    """Stay silent until the peer closes."""
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_recv(sock, 1)


async def speak(sock: socket.socket, data: bytes = BANNER) -> None:
    """Send, and keep the connection open until the peer closes."""
    await asyncio.get_running_loop().sock_sendall(sock, data)
    await until_closed(sock)
