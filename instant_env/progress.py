"""Progress of what takes long, as lines of text for the person who waits."""

from __future__ import annotations

from collections.abc import Callable

#: Takes one line.
Progress = Callable[[str], None]


def quiet(_: str) -> None:
    """Progress for callers that show none."""
