"""Connect to a machine that serves already, and wait for its version line.

The prober (:mod:`instant_env.ssh.connect_probe`) connects again and again because a machine is still booting.
Here one connect is made: the machine runs, and each connection costs its sshd a process.
"""

from __future__ import annotations

import asyncio
import socket
import time

from instant_env.ssh.connect_probe import MAX_PREAMBLE, SshAnswer, ssh_line
from instant_env.ssh.login import HandshakeFailed

#: A peek leaves the bytes where they are, so a socket with half a line stays readable.
_HALF_LINE_S = 0.002


async def dial(address: str, port: int, *, timeout_s: float) -> SshAnswer:
    """One connection with its version line, still unread in the socket, which is the caller's.

    Raises HandshakeFailed when nothing that speaks SSH answers within ``timeout_s``.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
            accepted_ns = time.monotonic_ns()
            line = await _line(sock)
    except TimeoutError as error:
        sock.close()
        raise HandshakeFailed(f"{address}:{port} sent no version line within {timeout_s:.0f} s") from error
    except OSError as error:
        sock.close()
        raise HandshakeFailed(f"{address}:{port}: {error}") from error
    except BaseException:
        sock.close()
        raise
    return SshAnswer(sock, line, accepted_ns, time.monotonic_ns(), 0)


async def _line(sock: socket.socket) -> str:
    size = 0
    while True:
        await _readable(sock)
        data = sock.recv(MAX_PREAMBLE, socket.MSG_PEEK)
        if (line := ssh_line(data)) is not None:
            return line
        if not data:
            raise HandshakeFailed("the connection was closed before a version line")
        if len(data) >= MAX_PREAMBLE:
            raise HandshakeFailed("what answers does not speak SSH")
        if len(data) == size:
            await asyncio.sleep(_HALF_LINE_S)
        size = len(data)


async def _readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
