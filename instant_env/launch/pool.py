"""Fill a slot of a pool: launch a machine on demand, log in once, perhaps put it to sleep.

A fill is a launch of its own, off everybody's clock. It logs in once, so a machine is known to work before it
counts, and its boot id is known. The login's key is made for it and handed over by EC2 Instance Connect: sshd
takes it for 60 seconds and it is in no file of the machine. The machine has no EC2 key pair, because our init
installs that one at every start, and whoever filled the pool could log in to it for ever.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import TypeVar

import asyncssh
from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.handover import HandOver, by_instance_connect
from instant_env.cloud.instances import LaunchOptions, Market, describe, terminate
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.rules.consistency import is_not_known_to_launches, repeat_while_unknown
from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import Role
from instant_env.launch.follow import follow
from instant_env.launch.guest import GuestReadError
from instant_env.launch.hand_over import HandOverError
from instant_env.launch.host_keys import NoHostKeys, wait_for_host_keys
from instant_env.launch.launch import Launch
from instant_env.launch.login_check import PrivateKeyLogin
from instant_env.launch.parked import Parked
from instant_env.launch.techniques.base import (
    FillError,
    LaunchContext,
    LaunchSpec,
    PoolSlot,
    Prepared,
    run_instance,
)
from instant_env.launch.timeline import Outcome
from instant_env.ssh.host_keys import HostKeyMismatch, HostKeys

T = TypeVar("T")

#: StopInstances returns at once; the guest then goes down, or writes its memory out, within this.
_STOP_TIMEOUT_S = 300.0
_POLL_S = 0.25
#: For up to two minutes after a launch EC2 itself refuses to hibernate a machine, whatever its image says
#: ("UnsupportedOperation: ... not ready to hibernate yet": EC2 User Guide, "Troubleshoot EC2 instance
#: hibernation"): it is asked again, with these pauses, and for so long.
_NOT_READY_PAUSES_S = (5.0, 10.0, 15.0)
_NOT_READY_S = 300.0

#: Amazon's images get ready to hibernate by themselves, within two minutes of their start (EC2 User Guide,
#: "Hibernation prerequisites"). An image that has this command gets ready by it, at once, and our init as
#: process 1 finishes getting ready before it obeys the sleep key (init/internal/boot/sleep.go).
_GET_READY = (
    "if command -v hibinit >/dev/null; then hibinit; "
    'elif [ "$(cat /proc/1/comm)" != instant-init ]; then echo later; fi'
)
_GET_READY_TIMEOUT_S = 60.0
#: sshd asks for the key at each login, so a second refusal means that it does not; one more is for a metadata
#: service that answers late while the machine starts.
_REFUSALS_MAX = 3
_AGENT_S = 120.0


async def fill_running(
    context: LaunchContext,
    prepared: Prepared,
    spec: LaunchSpec,
    *,
    user_data: str | None,
    hibernation: bool = False,
) -> PoolSlot:
    """Launch a machine without a key pair and log in to it once. Raises FillError, and then the machine is
    gone; cancelled, it is the run's to end, by its tags.

    Somebody's pool (``spec.pool``) has the host keys of its machines: they are read from the console, and the
    login must have seen one of them.
    """
    slot, login = await _fill(context, prepared, spec, user_data=user_data, hibernation=hibernation)
    login.close()
    return slot


async def fill_parked(
    context: LaunchContext, prepared: Prepared, spec: LaunchSpec, *, user_data: str | None
) -> tuple[PoolSlot, Parked]:
    """As :func:`fill_running`, with the login that proved the machine left open, and parked."""
    slot, login = await _fill(context, prepared, spec, user_data=user_data)
    async with _ended_on_failure(context.cloud, lambda: slot.instance_id):
        try:
            return slot, await Parked.on(login.take(), prepared.username, login.host_key)
        except HandOverError as error:
            raise FillError(f"{slot.instance_id} cannot be parked: {error}", hint=error.hint) from error


async def _fill(
    context: LaunchContext,
    prepared: Prepared,
    spec: LaunchSpec,
    *,
    user_data: str | None,
    hibernation: bool = False,
) -> tuple[PoolSlot, PrivateKeyLogin]:
    """A slot and its login, which is still open."""
    pool_spec = dataclasses.replace(
        spec,
        role=Role.POOL,
        key_name="",
        market=Market.ON_DEMAND,  # a one-time spot machine cannot be stopped and started
        client_token=f"{spec.client_token}-pool",
    )
    filling = Launch(
        context.cloud,
        context.watcher,
        context.prober,
        lambda: repeat_while_unknown(  # not on a clock: an image may be new
            lambda: run_instance(context.cloud, prepared, pool_spec, user_data=user_data),
            is_not_known_to_launches,
        ),
    )
    login = _MinuteLogin(filling, prepared.username)
    async with _ended_on_failure(context.cloud, lambda: filling.instance_id):
        try:
            await follow(filling, login, timeout_s=context.timeout_s)
            if filling.outcome is not Outcome.OK:
                machine = filling.instance_id or "no machine"
                raise FillError(f"{machine}: {filling.outcome}: {filling.error}")
            boot_id = await _boot_id(login)
            if hibernation:
                await _get_ready(login)
            host_keys = await _host_keys(context, filling, login) if spec.pool else None
        except BaseException:
            login.close()
            raise
    return PoolSlot(
        instance_id=filling.instance_id,
        address=filling.address,
        boot_id=boot_id,
        host_keys=host_keys,
        filled_ns=time.monotonic_ns(),
    ), login


class _MinuteLogin(PrivateKeyLogin):
    """A login by a key of its own, which Instance Connect gives the machine right before each try."""

    def __init__(self, launch: Launch, username: str) -> None:
        pair = KeyPair.generate()
        super().__init__(username, pair.for_asyncssh())
        self._launch = launch
        self._username = username
        self._public_key = pair.public_key

    async def _prove(self, sock: socket.socket) -> int:
        if self.keys_refused == _REFUSALS_MAX:
            sock.close()
            raise FillError(
                f"{self._launch.instance_id}: sshd refused a key of EC2 Instance Connect {self.keys_refused} "
                "times: a pool needs an image that takes such keys",
                hint="use an AMI of the recipe minimal or custom-init, or a base with ec2-instance-connect",
            )
        try:
            await asyncio.to_thread(
                by_instance_connect,
                self._launch.cloud, self._launch.instance_id, self._username, self._public_key,
            )  # fmt: skip
        except BaseException:
            sock.close()
            raise
        return await super()._prove(sock)


async def _boot_id(login: PrivateKeyLogin) -> str:
    try:
        return (await login.report()).boot_id
    except GuestReadError as error:
        raise FillError(f"the guest's report cannot be read: {error}") from error


async def _host_keys(context: LaunchContext, filling: Launch, login: PrivateKeyLogin) -> HostKeys:
    """The machine's keys by its console, which has one that the login saw."""
    try:
        keys = await wait_for_host_keys(context.cloud, filling.instance_id, timeout_s=context.timeout_s)
        keys.check(login.host_key)
    except (NoHostKeys, HostKeyMismatch) as error:
        raise FillError(str(error), hint=error.hint) from error
    except (ClientError, BotoCoreError) as error:
        raise FillError(f"the console of {filling.instance_id} cannot be read: {error}") from error
    return keys


@asynccontextmanager
async def _ended_on_failure(cloud: Cloud, instance_id: Callable[[], str]) -> AsyncIterator[None]:
    """The machine of a slot that comes to nothing ends before anything else is measured beside it."""
    try:
        yield
    except FillError:
        if instance_id():
            await _in_thread(lambda: terminate(cloud, [instance_id()]))
        raise


async def _get_ready(login: PrivateKeyLogin) -> None:
    """Wait until the guest can hibernate; on images whose agent tells nobody, the time that it may take."""
    try:
        result = await login.run_command(_GET_READY, timeout_s=_GET_READY_TIMEOUT_S)
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise FillError(f"the guest does not get ready to hibernate: {error}") from error
    if "later" in result:
        await asyncio.sleep(_AGENT_S)


async def stop_or_hibernate(context: LaunchContext, slot: PoolSlot, *, hibernate: bool = False) -> PoolSlot:
    """Stop the slot's machine, and wait until it is stopped. Raises FillError when it is not, or not asleep,
    and then the machine is gone."""
    async with _ended_on_failure(context.cloud, lambda: slot.instance_id):
        return await _rested(context, slot, hibernate=hibernate)


async def _rested(context: LaunchContext, slot: PoolSlot, *, hibernate: bool) -> PoolSlot:
    await _ask_to_stop(context.cloud, slot.instance_id, hibernate=hibernate)
    started = time.monotonic()
    deadline = started + _STOP_TIMEOUT_S
    state = ""
    while time.monotonic() < deadline:
        state, reason = await _in_thread(lambda: _state(context.cloud, slot.instance_id))
        if state == "stopped":
            # The reason says only that a hibernation was begun (API_StateReason): another one is a failure;
            # that the machine resumed is known by its boot id after the next start.
            if hibernate and reason != "Client.UserInitiatedHibernate":
                raise FillError(f"{slot.instance_id} stopped instead of hibernating: {reason}")
            return dataclasses.replace(slot, address="", filled_ns=time.monotonic_ns())
        if state in ("terminated", "shutting-down"):
            break
        await asyncio.sleep(_POLL_S)
    raise FillError(f"{slot.instance_id} is {state} {time.monotonic() - started:.0f} s after StopInstances")


async def _ask_to_stop(cloud: Cloud, instance_id: str, *, hibernate: bool) -> None:
    """StopInstances; where EC2 is not ready to hibernate the machine yet, again. Raises FillError."""
    deadline = time.monotonic() + _NOT_READY_S
    pauses = chain(_NOT_READY_PAUSES_S, repeat(_NOT_READY_PAUSES_S[-1]))
    while True:
        try:
            await asyncio.to_thread(
                lambda: cloud.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=hibernate)
            )
            return
        except ClientError as error:
            words = error.response.get("Error", {}).get("Message", "")
            early = error_code(error) == "UnsupportedOperation" and "not ready" in words
            if not (hibernate and early) or time.monotonic() > deadline:
                raise FillError(str(error)) from error
        except BotoCoreError as error:
            raise FillError(str(error)) from error
        await asyncio.sleep(next(pauses))


async def _in_thread(call: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(call)
    except (ClientError, BotoCoreError) as error:
        raise FillError(str(error)) from error


def _state(cloud: Cloud, instance_id: str) -> tuple[str, str]:
    """State and the code of the state's reason."""
    instance = describe(cloud, instance_id)
    if instance is None:
        return "unknown", ""
    return instance["State"]["Name"], instance.get("StateReason", {}).get("Code", "")


def with_memory(cloud: Cloud, prepared: Prepared, spec: LaunchSpec) -> LaunchOptions:
    """Options of a machine that can hibernate: an encrypted root volume with room for its memory beside."""
    kinds = cloud.ec2.describe_instance_types(InstanceTypes=[spec.instance_type])["InstanceTypes"]  # type: ignore[list-item]
    memory_gib = -(-kinds[0]["MemoryInfo"]["SizeInMiB"] // 1024)
    root_gib = (spec.options.root_gib or prepared.root_gib) + memory_gib
    return dataclasses.replace(spec.options, root_gib=root_gib, hibernation=True)


def with_tags_for_keys(spec: LaunchSpec) -> LaunchSpec:
    """The spec, with tags in the machine's metadata where keys are handed over by a tag."""
    if spec.hand_over is not HandOver.TAG:
        return spec
    return dataclasses.replace(spec, options=dataclasses.replace(spec.options, tags_in_metadata=True))
