"""The web room on a real port, in a thread of its own, over operations that are handed in."""

from __future__ import annotations

import asyncio
import io
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from instant_env.service.logs import make_logger
from instant_env.service.web.app import make_app
from instant_env.service.web.listener import Listener
from instant_env.service_settings import ServiceSettings
from support.service.fake import FakeOperations

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@dataclass
class Served:
    """A service that runs. ``log`` is what it has logged."""

    listener: Listener
    fake: FakeOperations
    log: io.StringIO
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return self.listener.url

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def client(self, secret: str | None = None, **options: Any) -> httpx2.Client:
        """A client with the administrator's token, or another's; an empty one is none."""
        secret = self.fake.admin_secret if secret is None else secret
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60, **options)

    def call(self, work: Callable[[], Any]) -> None:
        """Run something in the service's loop."""
        self.loop.call_soon_threadsafe(work)

    def stop(self, timeout_s: float = 30) -> None:
        self.listener.stop()
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the service does not end"


@contextmanager
def serving(
    settings: ServiceSettings | None = None,
    *,
    speed: float = 1.0,
    beat_s: float = 15.0,
    certificate: Path | None = None,
    key: Path | None = None,
    **options: Any,
) -> Iterator[Served]:
    """A service on a free port of loopback; ``options`` are make_app's."""
    log = io.StringIO()
    fake = FakeOperations(settings, speed=speed, beat_s=beat_s)
    app = make_app(fake, settings, log=make_logger(log), **options)
    listener = Listener(app, certificate=certificate, key=key)
    loops: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()

    async def serve() -> None:
        loops.put(asyncio.get_running_loop())
        await listener.serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    served = Served(listener, fake, log, thread, loops.get(timeout=60))
    try:
        yield served
    finally:
        if thread.is_alive():
            served.stop()
