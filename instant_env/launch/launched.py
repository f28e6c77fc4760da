"""The result of a technique's launch: the machine, and what is known about it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from instant_env.cloud.instances import Market


@dataclass(frozen=True)
class Launched:
    """A machine that EC2 has given an id. ``returned_ns``: ``time.monotonic_ns()`` when its answer came.

    ``address``: where it will be, when that is known already. ``running``: it ran before the launch.
    ``restarted``: it was stopped, and may be called so for a moment longer. ``deliver``: hands the key over
    and returns a note; to be called once the machine runs, on the clock, and before a login is tried.
    ``resumes``: the boot id that it must still have, or it was not resumed. ``no_spot``: EC2's code when it
    gives this account no spot machines at all; this one is on demand.
    """

    instance_id: str
    market: Market
    returned_ns: int
    note: str = ""
    address: str = ""
    running: bool = False
    restarted: bool = False
    deliver: Callable[[], str] | None = None
    resumes: str = ""
    no_spot: str = ""
