"""What is to be run, and in which order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from instant_env.arch import Arch
from instant_env.errors import UsageError


def check_limits(iterations: int, timeout_s: float) -> None:
    """Raise UsageError for counts that make no run; cheap, so that it can come before any cloud is asked."""
    if iterations < 1:
        raise UsageError(
            f"--iterations must be at least 1, not {iterations}", hint="the default is 3 of each technique"
        )
    if timeout_s <= 0:
        raise UsageError(f"the time-out must be more than 0 s, not {timeout_s:g}")


@dataclass(frozen=True)
class Planned:
    """One attempt to come; both numbers count from 1."""

    attempt: int
    block: int
    technique: str


@dataclass(frozen=True)
class Experiment:
    """Techniques side by side. The same seed gives the same order.

    Attempts are interleaved in blocks: each block runs every technique once, in an order of its own drawn
    from ``seed``. So a host that becomes busier or a cloud that becomes slower in the course of a run does
    not favour whichever technique happened to run first.
    """

    techniques: tuple[str, ...]
    arch: Arch
    instance_type: str
    iterations: int
    seed: int
    timeout_s: float

    def __post_init__(self) -> None:
        if not self.techniques:
            raise UsageError("no technique to run", hint="for example: --technique cold")
        if len(set(self.techniques)) != len(self.techniques):
            raise UsageError(f"a technique is named twice: {', '.join(self.techniques)}")
        check_limits(self.iterations, self.timeout_s)

    @property
    def total(self) -> int:
        return self.iterations * len(self.techniques)

    def plan(self) -> Iterator[Planned]:
        """The attempts in the order in which they run."""
        shuffler = random.Random(self.seed)  # noqa: S311 - an order that can be drawn again, not a secret
        attempt = 0
        for block in range(1, self.iterations + 1):
            order = list(self.techniques)
            shuffler.shuffle(order)
            for technique in order:
                attempt += 1
                yield Planned(attempt, block, technique)
