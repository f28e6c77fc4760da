"""asyncssh's server on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncssh


class TakesAnyKey(asyncssh.SSHServer):
    """Lets everybody in who has a key, and forwards ports of its loopback, as sshd does by default."""

    def server_requested(self, listen_host: str, listen_port: int) -> bool:  # noqa: ARG002
        return listen_host == "127.0.0.1"

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002 - asyncssh's signature
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        return True


@contextmanager
def listening(port: int = 0, *, host_keys: Sequence[asyncssh.SSHKey] = (), **options: Any) -> Iterator[int]:
    """Serve until the context ends; yields the port. ``options`` are asyncssh.listen's. Without host keys it
    makes one."""
    ready, port_used = threading.Event(), port
    stop: Callable[[], object]

    async def serve() -> None:
        nonlocal port_used, stop
        stopping, loop = asyncio.Event(), asyncio.get_running_loop()
        keys = list(host_keys) or [asyncssh.generate_private_key("ssh-ed25519")]
        server = await asyncssh.listen("127.0.0.1", port, server_host_keys=keys, **options)
        port_used, stop = server.get_port(), lambda: loop.call_soon_threadsafe(stopping.set)
        ready.set()
        await stopping.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield port_used
    finally:
        stop()
        thread.join(60)
