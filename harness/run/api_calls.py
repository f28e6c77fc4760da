"""How often the cloud was asked, by action: what a run costs in requests, which EC2 limits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from instant_env.cloud.session import Cloud


class ApiCalls:
    """Counts requests as botocore sends them, retries included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # clients are called from worker threads
        self._counts: Counter[str] = Counter()

    @asynccontextmanager
    async def counting(self, cloud: Cloud) -> AsyncIterator[None]:
        clients: list[Any] = [*cloud.ec2_clients(), cloud.instance_connect]
        for client in clients:
            client.meta.events.register("before-send", self._note)
        try:
            yield
        finally:
            for client in clients:
                client.meta.events.unregister("before-send", self._note)

    def _note(self, event_name: str, **_: Any) -> None:
        action = event_name.rpartition(".")[2]  # before-send.ec2.DescribeInstances
        with self._lock:
            self._counts[action] += 1

    @property
    def total(self) -> int:
        return self._counts.total()

    def as_json(self) -> dict[str, int]:
        return dict(self._counts.most_common())
