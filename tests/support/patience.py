"""Waiting for what happens by itself: with patience, since other tests may have the processors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 60.0, pause_s: float = 0.01) -> T:
    """The condition's first true value. Asks every ``pause_s``; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(pause_s)
    return value


class Patience:
    """Repeats calls that do not find what this client has just made or seen, as a client of EC2 has to.

    What an answer only names counts, too: the snapshot of a new image is known by describing the image.
    """

    _ID = re.compile(r"[a-z]+-[0-9a-f]{17}")

    def __init__(self, ec2: EC2Client, pause_s: float) -> None:
        self._pause_s = pause_s
        self._known: set[str] = set()
        ec2.meta.events.register("after-call.ec2", self._after)
        ec2.meta.events.register("needs-retry.ec2", self._again)  # type: ignore[arg-type]  # its answer counts

    def _after(self, parsed: dict[str, Any], **_: Any) -> None:
        if "Error" not in parsed:
            self._known |= set(self._ID.findall(repr(parsed))) | {parsed.get("KeyName", "")}

    def _again(self, response: Any, attempts: int, **_: Any) -> float | None:
        """Seconds to the next try, or None."""
        error = response[1].get("Error", {}) if response is not None else {}
        named = re.findall(r"'\[?([^'\]]+)\]?'", error.get("Message", ""))
        late = str(error.get("Code", "")).endswith("NotFound") and not self._known.isdisjoint(named)
        return self._pause_s if late and attempts <= 8 else None
