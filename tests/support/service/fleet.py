"""A fleet without EC2: machines are rows of a dict, and what fails is said beforehand."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Iterable
from datetime import datetime

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.cloud.session import CloudError
from instant_env.service.engine.fleet import (
    Catalogue,
    Delivered,
    MachineFailed,
    Named,
    Notice,
    Offer,
    Sighting,
)
from instant_env.service.engine.leases import CONSOLE
from instant_env.service.records import EventKind, Lease, Machine, Timing

TYPE = "m7i.large"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


class FakeFleet:
    """``fail`` holds the errors of the next calls, by operation; ``hold`` the operations that hang."""

    def __init__(self, *, usd_per_hour: float = 0.0, image_id: str = "ami-1") -> None:
        self.machines: dict[str, Sighting] = {}
        self.fail: dict[str, list[Exception]] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.calls: list[tuple[str, str]] = []
        self.promises: list[tuple[str, str, datetime]] = []
        self.unwell: set[str] = set()
        self.image_id = image_id
        self.usd_per_hour = usd_per_hour
        self.clock_skew_s = 0.0
        self.lingers = False
        """Whether a machine that is terminated is still seen running, until :meth:`vanish`."""
        self._numbers = itertools.count(1)

    async def _step(self, operation: str, about: str) -> None:
        self.calls.append((operation, about))
        if operation in self.hold:
            await self.hold[operation].wait()
        if errors := self.fail.get(operation):
            raise errors.pop(0)

    def count(self, operation: str) -> int:
        return sum(call == operation for call, _ in self.calls)

    def add(
        self, *, machine_id: str, role: str = "pool", lease_id: str = "", expires_at: datetime | None = None,
        instance_id: str = "", owner: str = "",
    ) -> Sighting:  # fmt: skip
        number = next(self._numbers)
        sighting = Sighting(
            instance_id=instance_id or f"i-{number:017x}", state="running", role=role, machine_id=machine_id,
            lease_id=lease_id, owner=owner, expires_at=expires_at, address=f"127.0.2.{number}",
            instance_type=TYPE, arch=Arch.X86_64, image_id=self.image_id,
        )  # fmt: skip
        self.machines[sighting.instance_id] = sighting
        return sighting

    def set_state(self, instance_id: str, state: str, reason: str = "") -> None:
        self.machines[instance_id] = dataclasses.replace(
            self.machines[instance_id], state=state, reason=reason
        )

    def vanish(self, instance_ids: Iterable[str]) -> None:
        for instance_id in instance_ids:
            self.machines.pop(instance_id, None)

    async def catalogue(self, pairs: frozenset[tuple[Arch, str]]) -> Catalogue:
        await self._step("catalogue", "")
        offers = {
            (technique, arch, kind): Offer(technique, arch, kind, self.image_id, "admin", technique)
            for technique in ("custom-init", "minimal-ami", "cold")
            for arch, kind in pairs
        }
        prices = {(kind, market): self.usd_per_hour for _, kind in pairs for market in Market}
        return Catalogue(offers, prices, {})

    async def fill(self, offer: Offer, machine: Machine, named: Named) -> Machine:
        sighting = self.add(machine_id=machine.id, expires_at=machine.expires_at)
        await named(sighting.instance_id)
        await self._step("fill", machine.id)
        return dataclasses.replace(
            machine, instance_id=sighting.instance_id, address=sighting.address, username=offer.username,
            host_keys=(HOST_KEY,),
        )  # fmt: skip

    async def hand_over(
        self, machine: Machine, lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice
    ) -> Delivered:
        del t0_ns, ends_at, notice
        await self._step("hand_over", lease.id)
        timing = Timing(t1_ms=20.0, t2_ms=20.0, t3_ms=15.0, t4_ms=60.0, t4_by="pk_ok")
        return Delivered(machine, timing, CONSOLE)

    async def start(
        self, machine: Machine, lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice
    ) -> Delivered:
        await self._step("start", lease.id)
        return await self.hand_over(machine, lease, t0_ns, ends_at, notice)

    async def launch(
        self, offer: Offer, machine: Machine, lease: Lease, t0_ns: int, notice: Notice, named: Named
    ) -> Delivered:
        del t0_ns
        await self._step("launch", machine.client_token)
        sighting = self.add(
            machine_id=machine.id, role="lease", lease_id=lease.id, expires_at=machine.expires_at,
            owner=lease.owner,
        )  # fmt: skip
        await self._step("launched", lease.id)
        await named(sighting.instance_id)
        await notice(EventKind.LAUNCHED, {"t1_ms": 30.0, "instance_id": sighting.instance_id})
        await self._step("login", lease.id)
        ready = dataclasses.replace(
            machine, instance_id=sighting.instance_id, address=sighting.address, username=offer.username,
            host_keys=(HOST_KEY,),
        )  # fmt: skip
        return Delivered(ready, Timing(t1_ms=30.0, t4_ms=900.0, t4_by="pk_ok"), CONSOLE)

    async def console_host_keys(self, machine: Machine) -> tuple[str, ...]:
        await self._step("console", machine.id)
        return machine.host_keys

    async def adopt(self, machine: Machine) -> Machine | None:
        await self._step("adopt", machine.id)
        if machine.id in self.unwell:
            return None
        return machine

    def let_go(self, machine: Machine) -> None:
        self.calls.append(("let_go", machine.id))

    def is_well(self, machine: Machine) -> bool:
        return machine.id not in self.unwell

    async def promise(self, machine: Machine, lease: Lease, ends_at: datetime) -> None:
        await self._step("promise", lease.id)
        self.promises.append((machine.id, lease.id, ends_at))
        if machine.instance_id in self.machines:
            self.machines[machine.instance_id] = dataclasses.replace(
                self.machines[machine.instance_id], role="lease", lease_id=lease.id, expires_at=ends_at,
                owner=lease.owner,
            )  # fmt: skip

    async def terminate(self, instance_id: str) -> None:
        await self._step("terminate", instance_id)
        if instance_id in self.machines and not self.lingers:
            self.set_state(instance_id, "terminated", "Client.UserInitiatedShutdown")

    async def sightings(self) -> list[Sighting]:
        await self._step("sightings", "")
        return list(self.machines.values())


def refused(message: str = "EC2 says no") -> CloudError:
    return CloudError(message)


def broken(message: str = "it did not come up", **options: bool) -> MachineFailed:
    return MachineFailed(message, **options)
