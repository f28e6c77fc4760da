"""Progress of what takes long, as lines of text for the person who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

#: Takes one line.
Progress = Callable[[str], None]

#: A silence of this many seconds is one that people wonder about.
FIRST_S = 2.0
#: From then on, every so many seconds.
AGAIN_S = 30.0


class Doing(str):
    """A line about what begins now. It is shown while that lasts, and not at all when that is short."""

    __slots__ = ()

    def labelled(self, label: str) -> Doing:
        """The same of one of several that are under way."""
        return Doing(f"{label}: {self}")


def quiet(_: str) -> None:
    """Progress for callers that show none."""


class Heartbeat:
    """Calls ``beat`` with the last line and its age in seconds, from a thread of its own, while there is no
    other: after a Doing first when that has lasted for ``first_s``, and after any line every ``again_s``."""

    def __init__(
        self, beat: Callable[[str, float], None], *, first_s: float = FIRST_S, again_s: float = AGAIN_S
    ) -> None:
        self._beat = beat
        self._first_s, self._again_s = first_s, again_s
        self._changed = threading.Condition()
        self._line = ""
        self._since = 0.0
        self._due: float | None = None  # None: there is nothing to say until the next line
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def line(self, text: str) -> None:
        """A line that was shown, or a Doing."""
        with self._changed:
            self._line, self._since = text, time.monotonic()
            self._due = self._since + (self._first_s if isinstance(text, Doing) else self._again_s)
            self._changed.notify()

    def rest(self) -> None:
        """Be silent until the next line."""
        with self._changed:
            self._due = None

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                if self._due is None or now < self._due:
                    self._changed.wait(None if self._due is None else self._due - now)
                    continue
                self._due = now + self._again_s
                self._beat(self._line, now - self._since)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
