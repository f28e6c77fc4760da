"""What is to be run, and in which order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from harness.results_file import label
from instant_env.arch import Arch
from instant_env.cloud.handover import HandOver
from instant_env.cloud.instances import LaunchOptions, Market
from instant_env.errors import UsageError

#: Of one run: at a second each, eleven days.
MOST_ATTEMPTS = 1_000_000
#: A day.
MOST_TIMEOUT_S = 86_400


def check_limits(iterations: int, timeout_s: float) -> None:
    """Raise UsageError for counts that make no run; cheap, so that it can come before any cloud is asked."""
    if iterations < 1:
        raise UsageError(
            f"--iterations must be at least 1, not {iterations}", hint="the default is 3 of each technique"
        )
    if iterations > MOST_ATTEMPTS:
        raise UsageError(f"--iterations must be at most {MOST_ATTEMPTS}", hint="a hundred tell a lot")
    if timeout_s > MOST_TIMEOUT_S:
        raise UsageError(f"the time-out must be at most {MOST_TIMEOUT_S} s, not {timeout_s:g}")
    if timeout_s <= 0:
        raise UsageError(f"the time-out must be more than 0 s, not {timeout_s:g}")


@dataclass(frozen=True)
class Options:
    """What an experiment may vary beside technique, architecture, type and market. None: as we do it
    otherwise.

    ``boot_mode`` launches a copy of the AMI that differs in this alone. ``fresh_copy`` copies the AMI with
    its snapshots for the attempt, so that it is the first launch of them. ``rest_s`` is how long a place of a
    pool stands before its attempt; ``pause_s`` how long nothing of the run happens before it.
    """

    hop_limit: int | None = None
    boot_mode: str | None = None
    root_gib: int | None = None
    volume_rate_mib_s: int | None = None
    user_data_bytes: int | None = None
    instance_profile: str | None = None
    zone: str | None = None
    hand_over: HandOver | None = None
    rest_s: float | None = None
    pause_s: float | None = None
    fresh_copy: bool | None = None

    def __str__(self) -> str:
        """What differs, as `hop_limit=2 zone=us-east-1b`: a row's variant."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return " ".join(f"{name}={value}" for name, value in values if value is not None)

    def for_launch(self) -> LaunchOptions:
        return LaunchOptions(
            hop_limit=1 if self.hop_limit is None else self.hop_limit,
            zone=self.zone,
            root_gib=self.root_gib,
            volume_rate_mib_s=self.volume_rate_mib_s,
            instance_profile=self.instance_profile,
        )


@dataclass(frozen=True)
class Cell:
    """One combination of an experiment's matrix. ``market`` None is the run's own, ``usual_market``, which is
    no part of what is varied; None is the cloud's.
    """

    technique: str
    arch: Arch
    instance_type: str
    market: Market | None = None
    options: Options = field(default_factory=Options)
    usual_market: Market | None = None

    @property
    def variant(self) -> str:
        market = f"market={self.market}" if self.market else ""
        return " ".join(part for part in (market, str(self.options)) if part)

    @property
    def label(self) -> str:
        """What people read: `custom-init [hop_limit=2]`."""
        return label(self.technique, self.variant)


@dataclass(frozen=True)
class Planned:
    """One attempt to come; both numbers count from 1. Attempts of block 0 warm up and do not count."""

    attempt: int
    block: int
    cell: Cell

    @property
    def technique(self) -> str:
        return self.cell.technique


@dataclass(frozen=True)
class Experiment:
    """Cells side by side. The same seed gives the same order.

    Attempts are interleaved in blocks: each block runs every cell once, in an order of its own drawn from
    ``seed``. So a host that becomes busier or a cloud that becomes slower in the course of a run does not
    favour whichever cell happened to run first. ``warm_up`` attempts of each cell come before the first
    block, as block 0; they are rows like others, and no figure is computed from them.

    ``parallel`` attempts at most are in flight, begun at most ``launches_per_s``.
    """

    cells: tuple[Cell, ...]
    iterations: int
    seed: int
    timeout_s: float
    warm_up: int = 0
    parallel: int = 1
    launches_per_s: float = 2.0  # RunInstances: its request bucket is refilled at 2/s

    def __post_init__(self) -> None:
        if not self.cells:
            raise UsageError("no technique to run", hint="for example: --technique cold")
        check_limits(self.iterations, self.timeout_s)
        if self.total > MOST_ATTEMPTS:
            raise UsageError(
                f"{len(self.cells)} combinations of {self.iterations} attempts each are {self.total}; "
                f"a run has at most {MOST_ATTEMPTS}",
                hint="fewer of either",
            )
        for cell, times in Counter(self.cells).items():
            if times > 1:
                raise UsageError(f"{cell.label} is named twice")
        if self.parallel < 1:
            raise UsageError(f"--parallel must be at least 1, not {self.parallel}")
        if self.warm_up < 0:
            raise UsageError(f"warm_up must not be negative: {self.warm_up}")

    @classmethod
    def race(
        cls,
        techniques: Sequence[str],
        arch: Arch,
        instance_type: str,
        *,
        iterations: int,
        seed: int,
        timeout_s: float,
        parallel: int = 1,
        market: Market | None = None,
    ) -> Experiment:
        """Techniques side by side on one kind of machine."""
        cells = tuple(Cell(name, arch, instance_type, usual_market=market) for name in techniques)
        return cls(cells, iterations, seed, timeout_s, parallel=parallel)

    @property
    def techniques(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.technique for cell in self.cells))

    @property
    def total(self) -> int:
        return (self.warm_up + self.iterations) * len(self.cells)

    def plan(self) -> Iterator[Planned]:
        """The attempts in the order in which they run."""
        shuffler = random.Random(self.seed)  # noqa: S311 - an order that can be drawn again, not a secret
        attempt = 0
        for turn in range(1 - self.warm_up, self.iterations + 1):
            order = list(self.cells)
            shuffler.shuffle(order)
            for cell in order:
                attempt += 1
                yield Planned(attempt, max(turn, 0), cell)
