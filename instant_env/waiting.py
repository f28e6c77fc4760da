"""Waiting for something that nobody announces: by asking again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    timeout_s: float,
    interval_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] | None = None,
) -> T:
    """Call ``condition`` every ``interval_s`` until it returns something true; returns that.

    After ``timeout_s`` its last answer is returned, which is false. It is called at least once, and for the
    last time when the time is up. An exception of its own ends the wait.
    """
    deadline = clock() + timeout_s
    while True:
        late = clock() >= deadline
        if (value := condition()) or late:
            return value
        (sleep or time.sleep)(interval_s)
