"""A machine of a pool is handed over by its parked connection: from then on it is the lessee's alone."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from support.patience import until
from support.tiny_cloud import INSTANCE_TYPES, KEY_NAME, Guest, TinyCloud

from instant_env.cloud.instances import LaunchOptions, Market
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud, connect
from instant_env.cloud.tags import PREFIX, Role, new_run_id
from instant_env.launch.delivery import Delivery, deliver
from instant_env.launch.hand_over import HandOverRequest, ParkBroken
from instant_env.launch.launcher import Launcher
from instant_env.launch.parked import Parked, park
from instant_env.launch.standing_query import Door
from instant_env.launch.techniques import LaunchSpec, PoolSlot, Prepared, find_technique
from instant_env.launch.techniques.warm_running import WarmRunning
from instant_env.launch.timeline import MarkName, Timeline
from instant_env.public_key import PublicKey
from instant_env.ssh import key_query
from instant_env.ssh.connection import wait_for_login
from instant_env.ssh.login import HandshakeFailed, KeyRefused
from instant_env.user_data import UserData, format_time

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(1200)]

TIMEOUT_S = 240.0
#: For so long EC2 Instance Connect gives a key to sshd.
CONNECT_S = 60.0


def pool_spec(tiny_cloud: TinyCloud) -> LaunchSpec:
    return LaunchSpec(
        run_id=new_run_id(), name="pool", role=Role.POOL, instance_type=INSTANCE_TYPES[tiny_cloud.arch],
        key_name=KEY_NAME, security_group_id=tiny_cloud.group_id, market=Market.ON_DEMAND,
        expires_at=datetime.now(UTC) + timedelta(hours=12), user_data=UserData(ttl_s=12 * 3600),
        client_token=new_run_id(), public_key=KeyPair.generate().public_key, pool="p1",
        options=LaunchOptions(tags_in_metadata=True),
    )  # fmt: skip


async def fill(cloud: Cloud, tiny_cloud: TinyCloud, spec: LaunchSpec) -> tuple[PoolSlot, Parked]:
    technique = find_technique("custom-init+warm-running")
    assert isinstance(technique, WarmRunning)
    prepared = Prepared(tiny_cloud.image_id, "root", root_device="/dev/xvda", root_gib=1)
    async with Launcher(cloud, timeout_s=TIMEOUT_S) as launcher:
        return await launcher.fill_parked(technique, prepared, spec)


async def hand_over(cloud: Cloud, slot: PoolSlot, parked: Parked, request: HandOverRequest) -> Delivery:
    """Deliver the machine while somebody else is logged in, and see that they are not afterwards."""
    other = await park(cloud, slot.instance_id, slot.address, "root", slot.host_keys)
    assert other.alive
    assert parked.alive
    door = Door(slot.address, cloud.ssh_port, "root", slot.host_keys)
    delivery = await deliver(parked, door, request, Timeline.start())
    await asyncio.wait_for(other.closed, 60)
    with pytest.raises(ParkBroken):
        await other.hand_over(request)
    assert not other.written
    with pytest.raises((KeyRefused, HandshakeFailed)):
        await park(cloud, slot.instance_id, slot.address, "root", slot.host_keys)
    parked.close()
    return delivery


async def accepts(cloud: Cloud, address: str, key: PublicKey) -> bool:
    """Whether sshd would let this key in."""
    sock = await asyncio.to_thread(socket.create_connection, (address, cloud.ssh_port), 60)
    sock.setblocking(False)
    try:
        await key_query.query(sock, "root", key)
    except KeyRefused:
        return False
    return True


def log_in(cloud: Cloud, slot: PoolSlot, key: KeyPair) -> Guest:
    return Guest(
        slot.instance_id, wait_for_login(slot.address, cloud.ssh_port, "root", key, timeout_s=TIMEOUT_S)
    )


def set_end(cloud: Cloud, slot: PoolSlot, value: str) -> None:
    cloud.ec2.create_tags(Resources=[slot.instance_id], Tags=[{"Key": f"{PREFIX}expires-at", "Value": value}])


def limits(guest: Guest) -> str:
    """What the init says about the machine's time limit."""
    return guest.run("dmesg | grep 'powering off in' || true")


def test_a_machine_that_was_handed_over_is_the_lessees_alone(tiny_cloud: TinyCloud) -> None:
    cloud, lessee, spec = connect(tiny_cloud.settings, print), KeyPair.generate(), pool_spec(tiny_cloud)
    end = datetime.now(UTC) + timedelta(minutes=30)
    request = HandOverRequest("lease-1", lessee.public_key, end, format_time(spec.expires_at))

    async def whole() -> tuple[PoolSlot, Delivery, float]:
        slot, parked = await fill(cloud, tiny_cloud, spec)
        assert slot.host_keys is not None
        delivery = await hand_over(cloud, slot, parked, request)
        return slot, delivery, time.monotonic()

    slot, delivery, sent_s = asyncio.run(whole())
    assert slot.host_keys is not None
    assert delivery.host_key in slot.host_keys.keys
    assert delivery.answer.ended_sessions >= 2, "sshd's process and the command below it"
    assert {MarkName.T1, MarkName.T2, MarkName.T3, MarkName.T4} <= delivery.timeline.marks.keys()
    print({name.value: mark.ms for name, mark in delivery.timeline.marks.items()})

    guest = log_in(cloud, slot, lessee)
    assert guest.run("cat /root/.ssh/authorized_keys") == lessee.public_key.bare
    again = guest.run("/usr/sbin/instant-init hand-over </dev/null || true")
    assert '"code":"handed-out","lease":"lease-1"' in again, "a second hand-over is refused by the machine"
    assert until(lambda: "handed over until" in limits(guest), 60, 0.5)
    set_end(cloud, slot, format_time(end + timedelta(hours=1)))
    assert until(lambda: "tag instant-env:expires-at" in limits(guest).splitlines()[-1], 60, 0.5)

    boot_id = guest.run("cat /proc/sys/kernel/random/boot_id")
    guest.connection.close()
    cloud.ec2.reboot_instances(InstanceIds=[slot.instance_id])
    deadline = time.monotonic() + TIMEOUT_S
    while (guest := log_in(cloud, slot, lessee)).run("cat /proc/sys/kernel/random/boot_id") == boot_id:
        assert time.monotonic() < deadline, "the old sshd answers until the shutdown reaches it"
        guest.connection.close()
        time.sleep(1)
    time.sleep(max(0.0, sent_s + CONNECT_S + 1 - time.monotonic()))  # the minute is what is shown here
    assert guest.run("cat /root/.ssh/authorized_keys") == lessee.public_key.bare
    assert not asyncio.run(accepts(cloud, slot.address, tiny_cloud.key.public_key))
    assert asyncio.run(accepts(cloud, slot.address, lessee.public_key))
    assert until(lambda: "tag instant-env:expires-at" in limits(guest), 60, 0.5)


def test_a_caller_that_dies_before_the_tag_leaves_no_machine_with_a_pools_life(tiny_cloud: TinyCloud) -> None:
    cloud, lessee, spec = connect(tiny_cloud.settings, print), KeyPair.generate(), pool_spec(tiny_cloud)

    async def whole() -> tuple[str, datetime]:
        slot, parked = await fill(cloud, tiny_cloud, spec)
        end = datetime.now(UTC) + timedelta(seconds=20)
        await parked.hand_over(
            HandOverRequest("lease-1", lessee.public_key, end, format_time(spec.expires_at))
        )
        parked.close()
        return slot.instance_id, end

    instance_id, end = asyncio.run(whole())
    tiny_cloud.wait(instance_id, "terminated", timeout_s=TIMEOUT_S)
    assert datetime.now(UTC) >= end.replace(microsecond=0)
