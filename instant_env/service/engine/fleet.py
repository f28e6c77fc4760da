"""What the engine asks of EC2 and of machines over SSH; ec2_fleet.py does it, tests have one of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.errors import InstantEnvError
from instant_env.service.records import EventKind, Lease, Machine, Timing

#: Told of what happens to a launch, while it happens. The event's data are small and public.
Notice = Callable[[EventKind, Mapping[str, Any]], Awaitable[None]]
#: Told of a machine's id, as soon as EC2 has named it.
Named = Callable[[str], Awaitable[None]]


class MachineFailed(InstantEnvError):
    """A machine did not come to a login, and is to be ended.
    ``taken``: by its own mark it is another lease's, so it must neither be given away nor ended.
    ``capacity``: EC2 had none to give."""

    def __init__(self, message: str, *, taken: bool = False, capacity: bool = False) -> None:
        super().__init__(message)
        self.taken = taken
        self.capacity = capacity


@dataclass(frozen=True)
class Offer:
    """What a launch by one technique takes, for one architecture and type. ``recipe`` is empty for cold."""

    technique: str
    arch: Arch
    instance_type: str
    image_id: str
    username: str
    recipe: str


@dataclass(frozen=True)
class Catalogue:
    """Offers and prices as last looked up. ``usd_per_hour`` by type and market; what nobody knows is missing.
    ``missing``: why an offer is not there, by technique and architecture."""

    offers: Mapping[tuple[str, Arch, str], Offer]
    usd_per_hour: Mapping[tuple[str, Market], float]
    missing: Mapping[tuple[str, Arch], str]


@dataclass(frozen=True)
class Delivered:
    """A machine that lets the lessee in."""

    machine: Machine
    timing: Timing
    host_keys_known_by: str


@dataclass(frozen=True)
class Sighting:
    """One machine of this service as EC2 describes it. ``machine_id``, ``lease_id`` and ``owner`` (a token's
    id) are from its tags, empty without; ``reason``: EC2's code of its state."""

    instance_id: str
    state: str
    role: str
    machine_id: str
    lease_id: str
    owner: str
    expires_at: datetime | None
    address: str
    instance_type: str
    arch: Arch
    image_id: str
    reason: str = ""
    by_operator: bool = False
    """Whether its tags say that a person has ended it on purpose."""

    @property
    def is_gone(self) -> bool:
        return self.state in ("terminated", "shutting-down")


class Fleet(Protocol):
    """Coroutines that never block the loop. What fails raises MachineFailed, and botocore's errors do not
    come through; CloudError does where no machine is concerned."""

    async def catalogue(self, pairs: frozenset[tuple[Arch, str]]) -> Catalogue:
        """Look up images and prices for these architectures and types."""
        ...

    async def fill(self, offer: Offer, machine: Machine, named: Named) -> Machine:
        """Make a machine of a pool: it has proven itself and waits. Returns it with what is known then."""
        ...

    async def hand_over(
        self, machine: Machine, lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice
    ) -> Delivered:
        """Give a running machine to a lease: one write, one proof. Repeated for the same lease it is the
        same. No call to EC2."""
        ...

    async def start(
        self, machine: Machine, lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice
    ) -> Delivered:
        """Start a stopped or hibernated machine for a lease."""
        ...

    async def launch(
        self, offer: Offer, machine: Machine, lease: Lease, t0_ns: int, notice: Notice, named: Named
    ) -> Delivered:
        """RunInstances for a lease. With the same client token it is the same machine."""
        ...

    async def adopt(self, machine: Machine) -> Machine | None:
        """A ready machine of a pool after a restart, or one whose connection broke: as it is found, and ready
        again. None when it is not well."""
        ...

    def let_go(self, machine: Machine) -> None:
        """Close what is kept open to a machine that waits no more: it may be somebody's by now."""
        ...

    async def console_host_keys(self, machine: Machine) -> tuple[str, ...]:
        """The machine's host keys by its console, waited for. Raises MachineFailed when they do not come, or
        are others than those that the machine's first connection showed (``machine.host_keys``)."""
        ...

    @property
    def clock_skew_s(self) -> float:
        """How far this host's clock is ahead of EC2's."""
        ...

    def is_well(self, machine: Machine) -> bool:
        """Whether the connection to a ready running machine stands; always true for one that sleeps."""
        ...

    async def promise(self, machine: Machine, lease: Lease, ends_at: datetime) -> None:
        """Write into the machine's tags whose it is and when it ends. Raises CloudError."""
        ...

    async def terminate(self, instance_id: str) -> None:
        """Ask EC2 to end it, without waiting for its system. Raises CloudError; unknown is fine."""
        ...

    async def sightings(self) -> list[Sighting]:
        """Every machine of this service that EC2 still describes. Raises CloudError."""
        ...
