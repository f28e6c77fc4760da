"""Waiting for what happens by itself: with patience, since other tests may have the processors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 60.0, pause_s: float = 0.01) -> T:
    """The condition's first true value. Asks every ``pause_s``; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(pause_s)
    return value
