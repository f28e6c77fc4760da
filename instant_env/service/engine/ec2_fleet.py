"""Machines of the service: EC2 by boto3, and their systems over SSH, by the launching core.

Every machine carries the service's id, its own and its lease's in tags, so that each is found again without a
row. There is no EC2 key pair on any of them, and no role.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.arch import Arch
from instant_env.cloud import prices
from instant_env.cloud.images import BakedImage, find_baked
from instant_env.cloud.in_use import ENDED_BY, OPERATOR
from instant_env.cloud.instances import LaunchOptions, Market, address_of
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import PREFIX, Role, expiry, project_filter, read_tags
from instant_env.errors import InstantEnvError, UsageError
from instant_env.launch.delivery import Proof, deliver
from instant_env.launch.hand_over import AlreadyHandedOut, HandOverError, HandOverRequest
from instant_env.launch.host_keys import NoHostKeys, wait_for_host_keys
from instant_env.launch.launch import Launch
from instant_env.launch.launcher import Launcher
from instant_env.launch.login_check import PublicKeyQuery
from instant_env.launch.parked import Parked, park
from instant_env.launch.standing_query import Door
from instant_env.launch.techniques import TECHNIQUES, LaunchSpec, PoolSlot, Prepared, Technique
from instant_env.launch.techniques.base import FillError
from instant_env.launch.techniques.warm_hibernated import WarmHibernated
from instant_env.launch.techniques.warm_running import WarmRunning
from instant_env.launch.techniques.warm_stopped import WarmStopped
from instant_env.launch.timeline import MarkName, Outcome, Timeline
from instant_env.public_key import PublicKey
from instant_env.service.engine.fleet import (
    Catalogue,
    Delivered,
    MachineFailed,
    Named,
    Notice,
    Offer,
    Sighting,
)
from instant_env.service.engine.leases import CONSOLE, FIRST_CONTACT
from instant_env.service.records import EventKind, Lease, Machine, Timing
from instant_env.ssh.host_keys import HostKeyMismatch, HostKeys
from instant_env.ssh.login import HandshakeFailed, KeyRefused
from instant_env.user_data import UserData, format_time

T = TypeVar("T")

#: Techniques that launch an image plainly, with the recipe each needs.
_IMAGES = {name: TECHNIQUES[name] for name in ("custom-init", "minimal-ami", "cold")}
_WAYS: dict[str, type[WarmRunning] | type[WarmStopped] | type[WarmHibernated]] = {
    "warm-running": WarmRunning, "warm-stopped": WarmStopped, "warm-hibernated": WarmHibernated,
}  # fmt: skip
#: Starting a machine that sleeps does not look at its image.
_ANY_IMAGE = "custom-init"
#: A launch's marks are looked at this often for its events; the marks themselves are exact.
_EVENTS_S = 0.02
#: Cold machines print their host keys when cloud-init is done.
_CONSOLE_S = 300.0
#: The tags that only the service has, without the prefix.
SERVICE, MACHINE, LEASE, OWNER = "service", "machine", "lease", "owner"

_FAILURES = (
    HandOverError, HostKeyMismatch, KeyRefused, HandshakeFailed, TimeoutError, OSError, ClientError,
    BotoCoreError,
)  # fmt: skip


class Ec2Fleet:
    """Implements :class:`~instant_env.service.engine.fleet.Fleet`, for one service and one event loop."""

    def __init__(self, cloud: Cloud, launcher: Launcher, service_id: str, group_id: str) -> None:
        self._cloud = cloud
        self._launcher = launcher
        self._service_id = service_id
        self._group_id = group_id
        self._prepared: dict[tuple[str, Arch], Prepared] = {}
        self._parked: dict[str, Parked] = {}
        self._skew_s = 0.0
        cloud.ec2.meta.events.register("after-call.ec2", self._compare_clocks)
        #: Whoever fills has to hand in some key; nothing is let in by this one.
        self._no_key = KeyPair.generate().public_key

    @property
    def clock_skew_s(self) -> float:
        """How far this host's clock is ahead of EC2's by its newest answer, to a second as HTTP's Date is."""
        return self._skew_s

    def _compare_clocks(self, http_response: Any, **_: Any) -> None:
        date = getattr(http_response, "headers", {}).get("date")
        if date:
            with contextlib.suppress(ValueError, TypeError):
                self._skew_s = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()

    async def close(self) -> None:
        """Drop all connections. Machines stay as they are."""
        for parked in self._parked.values():
            parked.close()
        self._parked.clear()

    # what there is

    async def catalogue(self, pairs: frozenset[tuple[Arch, str]]) -> Catalogue:
        return await self._call("looking up images and prices", functools.partial(self._look_up, pairs))

    def _look_up(self, pairs: frozenset[tuple[Arch, str]]) -> Catalogue:
        missing: dict[tuple[str, Arch], str] = {}
        prepared: dict[tuple[str, Arch], Prepared] = {}
        for arch in sorted({arch for arch, _ in pairs}):
            images = self._images(arch)
            for name, technique in _IMAGES.items():
                try:
                    prepared[name, arch] = technique.prepare(self._cloud, images)
                except UsageError as error:
                    missing[name, arch] = f"{error.message} ({error.hint})" if error.hint else error.message
        self._prepared = prepared
        offers = {
            (name, arch, kind): Offer(name, arch, kind, one.image_id, one.username, one.recipe)
            for (name, arch), one in prepared.items()
            for pair_arch, kind in pairs
            if pair_arch is arch
        }
        wanted = [(kind, market) for _, kind in pairs for market in Market]
        found = prices.find(self._cloud, wanted)
        return Catalogue(offers, {pair: price.usd_per_hour for pair, price in found.items()}, missing)

    def _images(self, arch: Arch) -> dict[str, BakedImage]:
        images = {}
        for technique in _IMAGES.values():
            if technique.recipe is not None:
                with contextlib.suppress(UsageError):
                    images[technique.recipe] = find_baked(self._cloud, technique.recipe, arch)
        return images

    async def sightings(self) -> list[Sighting]:
        return await self._call("looking at the service's machines", self._sightings)

    def _sightings(self) -> list[Sighting]:
        pages = self._cloud.ec2.get_paginator("describe_instances").paginate(
            Filters=project_filter(**{SERVICE: self._service_id})
        )
        machines = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
        private = self._cloud.settings.ssh_private
        return [_sighting(machine, private=private) for machine in machines]

    # pools

    async def fill(self, offer: Offer, machine: Machine, named: Named) -> Machine:
        del named  # its tags are on it from its first moment, and the row learns its id when it is ready
        way = _way(machine.technique, offer.technique)
        prepared = self._prepared_for(offer.technique, machine)
        spec = self._spec(machine, Role.POOL, self._no_key, UserData(expires_at=machine.expires_at))
        spec = dataclasses.replace(spec, pool=machine.pool or "")
        try:
            if isinstance(way, WarmRunning):
                slot, self._parked[machine.id] = await self._launcher.fill_parked(way, prepared, spec)
            else:
                slot = await self._launcher.fill(way, prepared, spec)
        except (FillError, ClientError, BotoCoreError) as error:
            raise MachineFailed(str(error)) from error
        filled = dataclasses.replace(
            machine,
            instance_id=slot.instance_id,
            address=slot.address,
            username=prepared.username,
            boot_id=slot.boot_id,
            host_keys=_lines(slot.host_keys),
        )
        if parked := self._parked.get(machine.id):
            parked.stand_by(self._door(filled))
        return filled

    def is_well(self, machine: Machine) -> bool:
        if machine.technique != "warm-running":
            return True
        parked = self._parked.get(machine.id)
        return parked is not None and parked.alive

    async def adopt(self, machine: Machine) -> Machine | None:
        if machine.technique != "warm-running":
            return machine  # the tower sees when it is not there any more
        self.let_go(machine)
        try:
            parked = self._parked[machine.id] = await self._park(machine)
        except _FAILURES:
            return None
        parked.stand_by(self._door(machine))
        return machine

    def let_go(self, machine: Machine) -> None:
        if (parked := self._parked.pop(machine.id, None)) is not None:
            parked.close()

    async def _park(self, machine: Machine) -> Parked:
        keys = _host_keys(machine)
        return await park(self._cloud, machine.instance_id, machine.address, machine.username, keys)

    # leases

    async def hand_over(
        self, machine: Machine, lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice
    ) -> Delivered:
        del notice  # one write and one answer: nobody could follow that
        parked = self._parked.pop(machine.id, None)
        timeline = Timeline(t0_ns, lease.created_at)
        try:
            if parked is not None and not parked.alive:
                parked.close()  # its other connection may be there, and would be made anew for ever
                parked = None
            if parked is None:
                parked = await self._park(machine)
            request = HandOverRequest(
                lease.id, lease.request.public_key, ends_at, format_time(machine.expires_at)
            )
            await deliver(parked, self._door(machine), request, timeline)
        except AlreadyHandedOut as error:
            if error.lease != lease.id:
                await self._say_whose(machine, error.lease)
                raise MachineFailed(error.message, taken=True) from error
            await self._prove(machine, lease, timeline)  # before a restart it was handed to this very lease
        except (*_FAILURES, UsageError) as error:
            raise MachineFailed(f"{machine.instance_id}: {_words(error)}") from error
        finally:
            if parked is not None:
                parked.close()
        return Delivered(machine, _timing(timeline), CONSOLE if machine.host_keys else FIRST_CONTACT)

    async def _prove(self, machine: Machine, lease: Lease, timeline: Timeline) -> None:
        acknowledged_ns = timeline.t0_ns + round((datetime.now(UTC) - timeline.t0_utc).total_seconds() * 1e9)
        timeline.mark(MarkName.T1, acknowledged_ns)
        timeline.mark(MarkName.T2, acknowledged_ns)
        try:
            async with Proof(self._door(machine), lease.request.public_key, timeline) as proof:
                await proof.ask()
        except _FAILURES as error:
            raise MachineFailed(f"{machine.instance_id}: {_words(error)}") from error

    async def _say_whose(self, machine: Machine, lease_id: str) -> None:
        """The machine's mark knows better than its tags that it is somebody's. Its end is left alone: while
        the tag has the value that the mark replaces, the mark's end counts."""
        tags = {f"{PREFIX}role": Role.LEASE.value, f"{PREFIX}{LEASE}": lease_id}
        with contextlib.suppress(CloudError):
            await self._call("tagging a machine", functools.partial(self._tag, machine.instance_id, tags))

    def _door(self, machine: Machine) -> Door:
        return Door(machine.address, self._cloud.ssh_port, machine.username, _host_keys(machine))

    async def start(
        self, machine: Machine, lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice
    ) -> Delivered:
        way = _way(machine.technique, _ANY_IMAGE)
        prepared = Prepared(image_id=machine.image_id, username=machine.username)
        spec = self._spec(machine, Role.LEASE, lease.request.public_key, UserData(expires_at=ends_at))
        slot = PoolSlot(
            instance_id=machine.instance_id, boot_id=machine.boot_id, host_keys=_host_keys(machine)
        )
        try:
            # Its end passes while it sleeps: it has to be a later one when it wakes.
            await self.promise(machine, lease, ends_at)
        except CloudError as error:
            raise MachineFailed(error.message) from error
        if isinstance(way, WarmHibernated):
            return await self._wake(way, prepared, spec, slot, machine, lease, t0_ns, ends_at, notice)
        launch = self._launcher.launch(way, prepared, spec, slot)
        check = PublicKeyQuery(prepared.username, lease.request.public_key, slot.host_keys)
        async with _events(launch, t0_ns, notice, None):
            await self._launcher.follow(launch, check)
        return self._delivered(launch, check, machine, prepared, t0_ns)

    async def _wake(
        self, way: Technique, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot, machine: Machine,
        lease: Lease, t0_ns: int, ends_at: datetime, notice: Notice,
    ) -> Delivered:  # fmt: skip
        """Start a machine that hibernates; once sshd serves, hand it over as one that runs."""
        launch = self._launcher.launch(way, prepared, spec, slot)
        try:
            async with _events(launch, t0_ns, notice, None):
                await launch.start()
                found = await launch.while_it_lives(launch.version_line())
                found.sock.close()
        except InstantEnvError as error:
            raise MachineFailed(error.message) from error
        except (ClientError, BotoCoreError) as error:
            raise MachineFailed(str(error)) from error
        finally:
            await launch.close()
        awake = dataclasses.replace(machine, address=launch.address)
        delivered = await self.hand_over(awake, lease, t0_ns, ends_at, notice)
        early = _timing(launch.timeline, _shift_ms(launch, t0_ns))
        timing = dataclasses.replace(
            delivered.timing, t1_ms=early.t1_ms, t2_ms=early.t2_ms, t3_ms=early.t3_ms
        )
        return dataclasses.replace(delivered, timing=timing)

    async def launch(
        self, offer: Offer, machine: Machine, lease: Lease, t0_ns: int, notice: Notice, named: Named
    ) -> Delivered:
        technique = _IMAGES[offer.technique]
        prepared = self._prepared_for(offer.technique, machine)
        key = lease.request.public_key
        spec = self._spec(machine, Role.LEASE, key, UserData(expires_at=machine.expires_at, ssh_keys=(key,)))
        tags = {**spec.extra_tags, LEASE: lease.id, OWNER: lease.owner}
        spec = dataclasses.replace(spec, extra_tags=tags, market=machine.market)
        launch = self._launcher.launch(technique, prepared, spec, PoolSlot())
        check = PublicKeyQuery(prepared.username, key)
        async with _events(launch, t0_ns, notice, named):
            await self._launcher.follow(launch, check)
        return self._delivered(launch, check, machine, prepared, t0_ns)

    def _delivered(
        self, launch: Launch, check: PublicKeyQuery, machine: Machine, prepared: Prepared, t0_ns: int
    ) -> Delivered:
        if launch.outcome is not Outcome.OK:
            raise MachineFailed(
                f"{launch.instance_id or 'no machine'}: {launch.outcome}: {launch.error}",
                capacity=launch.outcome is Outcome.CAPACITY,
            )
        known = _lines(HostKeys((check.host_key,))) if check.host_key else ()
        ready = dataclasses.replace(
            machine,
            instance_id=launch.instance_id,
            address=launch.address,
            username=prepared.username,
            market=launch.market or machine.market,
            host_keys=machine.host_keys or known,
        )
        by = CONSOLE if machine.host_keys else FIRST_CONTACT
        return Delivered(ready, _timing(launch.timeline, _shift_ms(launch, t0_ns)), by)

    async def console_host_keys(self, machine: Machine) -> tuple[str, ...]:
        try:
            keys = await wait_for_host_keys(self._cloud, machine.instance_id, timeout_s=_CONSOLE_S)
            for line in machine.host_keys:
                keys.check(PublicKey.parse(line))
        except (NoHostKeys, HostKeyMismatch) as error:
            raise MachineFailed(error.message) from error
        except (ClientError, BotoCoreError) as error:
            raise MachineFailed(str(error)) from error
        return _lines(keys)

    async def promise(self, machine: Machine, lease: Lease, ends_at: datetime) -> None:
        tags = {
            f"{PREFIX}role": Role.LEASE.value,
            f"{PREFIX}expires-at": format_time(ends_at),
            f"{PREFIX}{LEASE}": lease.id,
            f"{PREFIX}{OWNER}": lease.owner,
        }
        await self._call("tagging a machine", functools.partial(self._tag, machine.instance_id, tags))

    def _tag(self, instance_id: str, tags: Mapping[str, str]) -> None:
        self._cloud.ec2.create_tags(
            Resources=[instance_id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
        )

    async def terminate(self, instance_id: str) -> None:
        await self._call(f"terminating {instance_id}", functools.partial(self._terminate, instance_id))

    def _terminate(self, instance_id: str) -> None:
        """Nobody is promised a clean shutdown, and one that hangs would outlive its time."""
        try:
            self._cloud.ec2.terminate_instances(InstanceIds=[instance_id], SkipOsShutdown=True)
        except ClientError as error:
            if error_code(error) != "InvalidInstanceID.NotFound":
                raise

    # common

    def _spec(self, machine: Machine, role: Role, key: PublicKey, user_data: UserData) -> LaunchSpec:
        return LaunchSpec(
            run_id=self._service_id,
            name=f"instant-env-{machine.id}",
            role=role,
            instance_type=machine.instance_type,
            key_name="",
            security_group_id=self._group_id,
            market=machine.market,
            expires_at=machine.expires_at,
            user_data=user_data,
            client_token=machine.client_token,
            public_key=key,
            options=LaunchOptions(tags_in_metadata=True),
            extra_tags={SERVICE: self._service_id, MACHINE: machine.id},
        )

    def _prepared_for(self, technique: str, machine: Machine) -> Prepared:
        """What the technique prepared, with the image that the machine's row has: a repeated request must be
        the same request."""
        prepared = self._prepared.get((technique, machine.arch))
        if prepared is None:
            raise MachineFailed(f"there is no image for {technique} any more")
        return dataclasses.replace(prepared, image_id=machine.image_id)

    async def _call(self, doing: str, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except ClientError as error:
            raise cloud_error(error, doing) from error
        except BotoCoreError as error:
            raise CloudError(f"{doing}: {error}") from error


def _way(technique: str, image: str) -> Technique:
    """A way of getting machines with the image of another technique."""
    return _WAYS[technique](_IMAGES[image], f"{image}+{technique}")


def _sighting(machine: Any, *, private: bool) -> Sighting:
    tags = read_tags(machine.get("Tags"))
    return Sighting(
        instance_id=machine["InstanceId"],
        state=machine["State"]["Name"],
        role=tags.get(f"{PREFIX}role", ""),
        machine_id=tags.get(f"{PREFIX}{MACHINE}", ""),
        lease_id=tags.get(f"{PREFIX}{LEASE}", ""),
        owner=tags.get(f"{PREFIX}{OWNER}", ""),
        expires_at=expiry(tags),
        address=address_of(machine, private=private),
        instance_type=machine.get("InstanceType", ""),
        arch=Arch(machine.get("Architecture", Arch.X86_64)),
        image_id=machine.get("ImageId", ""),
        reason=machine.get("StateReason", {}).get("Code", ""),
        by_operator=tags.get(ENDED_BY) == OPERATOR,
    )


def _lines(keys: HostKeys | None) -> tuple[str, ...]:
    return tuple(key.bare for key in keys.keys) if keys is not None else ()


def _host_keys(machine: Machine) -> HostKeys | None:
    return HostKeys.parse("\n".join(machine.host_keys))


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _shift_ms(launch: Launch, t0_ns: int) -> float:
    """How much earlier the request came than the launch began."""
    return (launch.timeline.t0_ns - t0_ns) / 1e6


def _timing(timeline: Timeline, shift_ms: float = 0.0) -> Timing:
    marks = timeline.marks

    def at(name: MarkName) -> float | None:
        return round(marks[name].ms + shift_ms, 3) if name in marks else None

    return Timing(
        t1_ms=at(MarkName.T1),
        t2_ms=at(MarkName.T2),
        t3_ms=at(MarkName.T3),
        t4_ms=at(MarkName.T4),
        t4_by="pk_ok" if MarkName.T4 in marks else "",
        resolution_ms={name.value: mark.resolution_ms for name, mark in marks.items()},
    )


@asynccontextmanager
async def _events(launch: Launch, t0_ns: int, notice: Notice, named: Named | None) -> AsyncIterator[None]:
    """While the block runs, tell of the launch's marks as they come, in ms from ``t0_ns``; at its end, of
    those that came since."""
    reporter = _Reporter(launch, t0_ns, notice, named)
    task = asyncio.create_task(reporter.run())
    try:
        yield
        await reporter.look()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Reporter:
    """Tells of each mark once."""

    def __init__(self, launch: Launch, t0_ns: int, notice: Notice, named: Named | None) -> None:
        self._launch = launch
        self._t0_ns = t0_ns
        self._notice = notice
        self._named = named
        self._steps = [
            (MarkName.T1, EventKind.LAUNCHED, "t1_ms"),
            (MarkName.T2, EventKind.RUNNING, "t2_ms"),
            (MarkName.T3, EventKind.SSH, "t3_ms"),
        ]
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        while self._steps:
            await self.look()
            await asyncio.sleep(_EVENTS_S)

    async def look(self) -> None:
        async with self._looking:
            for step in list(self._steps):
                if step[0] in self._launch.timeline.marks:
                    self._steps.remove(step)
                    await self._tell(*step)

    async def _tell(self, mark: MarkName, kind: EventKind, field: str) -> None:
        launch = self._launch
        at_ms = round(launch.timeline.marks[mark].ms + _shift_ms(launch, self._t0_ns), 3)
        data: dict[str, Any] = {field: at_ms, "instance_id": launch.instance_id}
        if launch.address:
            data["address"] = launch.address
        if mark is MarkName.T1 and self._named is not None:
            await self._named(launch.instance_id)
        await self._notice(kind, data)
