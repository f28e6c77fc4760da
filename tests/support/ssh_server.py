"""asyncssh's server on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncssh


@contextmanager
def listening(port: int = 0, **options: Any) -> Iterator[int]:
    """Serve until the context ends; yields the port. ``options`` are asyncssh.listen's, without host keys."""
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    found = 0

    async def serve() -> None:
        nonlocal found
        keys = [asyncssh.generate_private_key("ssh-ed25519")]
        server = await asyncssh.listen("127.0.0.1", port, server_host_keys=keys, **options)
        found = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
