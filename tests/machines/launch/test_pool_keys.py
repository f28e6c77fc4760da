"""Who can log in to a machine of a pool: while it is filled, after it was handed over, after a reboot."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.tiny_cloud import INSTANCE_TYPES, KEY_NAME, TinyCloud

from instant_env.cloud.handover import HandOver
from instant_env.cloud.instances import Market
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud, connect
from instant_env.cloud.tags import Role, new_run_id
from instant_env.launch.launcher import Launcher
from instant_env.launch.login_check import PrivateKeyLogin
from instant_env.launch.techniques import LaunchSpec, PoolSlot, Prepared, find_technique
from instant_env.launch.timeline import Outcome
from instant_env.public_key import PublicKey
from instant_env.ssh import key_query
from instant_env.ssh.connection import wait_for_login
from instant_env.ssh.login import KeyRefused
from instant_env.user_data import UserData

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(900)]

TIMEOUT_S = 240.0
#: For so long EC2 Instance Connect gives a key to sshd.
CONNECT_S = 60.0


async def accepts(cloud: Cloud, address: str, key: PublicKey) -> bool:
    """Whether sshd would let this key in."""
    sock = await asyncio.to_thread(socket.create_connection, (address, cloud.ssh_port), 60)
    sock.setblocking(False)
    try:
        await key_query.query(sock, "root", key)
    except KeyRefused:
        return False
    return True


async def fill_and_hand_over(
    cloud: Cloud, prepared: Prepared, spec: LaunchSpec, receiver: KeyPair
) -> tuple[PoolSlot, str]:
    """A machine of a pool that the receiver has logged in to, and where it is."""
    technique = find_technique("custom-init+warm-running")
    async with Launcher(cloud, timeout_s=TIMEOUT_S) as launcher:
        slot = await launcher.fill(technique, prepared, spec)
        launch = launcher.launch(technique, prepared, spec, slot)
        login = PrivateKeyLogin("root", receiver.for_asyncssh())
        await launcher.follow(launch, login)
        assert launch.outcome is Outcome.OK, launch.error
        login.close()
        return slot, launch.address


def test_after_a_reboot_only_the_receivers_key_logs_in(tiny_cloud: TinyCloud) -> None:
    """Neither the key pair of the run that filled the pool nor the key that proved the fill."""
    cloud, receiver = connect(tiny_cloud.settings, print), KeyPair.generate()
    sent: list[tuple[float, str]] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        sent.append((time.monotonic(), params["SSHPublicKey"]))

    events = cloud.instance_connect.meta.events  # type: ignore[attr-defined]
    events.register("before-parameter-build.ec2-instance-connect.SendSSHPublicKey", note)
    prepared = Prepared(tiny_cloud.image_id, "root", root_device="/dev/xvda", root_gib=1)
    spec = LaunchSpec(
        run_id=new_run_id(), name="pool", role=Role.POOL, instance_type=INSTANCE_TYPES[tiny_cloud.arch],
        key_name=KEY_NAME, security_group_id=tiny_cloud.group_id, market=Market.ON_DEMAND,
        expires_at=datetime.now(UTC) + timedelta(hours=1), user_data=UserData(ttl_s=3600),
        client_token=new_run_id(), public_key=receiver.public_key, hand_over=HandOver.TAG,
    )  # fmt: skip
    slot, address = asyncio.run(fill_and_hand_over(cloud, prepared, spec, receiver))
    assert "KeyName" not in tiny_cloud.describe(slot.instance_id)
    filler = PublicKey.parse(sent[-1][1])
    assert filler.body not in (receiver.public_key.body, tiny_cloud.key.public_key.body)

    cloud.ec2.reboot_instances(InstanceIds=[slot.instance_id])
    deadline, boot_id = time.monotonic() + TIMEOUT_S, slot.boot_id
    while boot_id == slot.boot_id:  # the old sshd answers until the shutdown reaches it
        assert time.monotonic() < deadline
        connection = wait_for_login(address, cloud.ssh_port, "root", receiver, timeout_s=TIMEOUT_S)
        boot_id = str(connection.run("cat /proc/sys/kernel/random/boot_id", hide=True).stdout).strip()
        connection.close()
        time.sleep(1)
    time.sleep(max(0.0, sent[-1][0] + CONNECT_S + 1 - time.monotonic()))  # the minute is what is shown here
    assert not asyncio.run(accepts(cloud, address, filler))
    assert not asyncio.run(accepts(cloud, address, tiny_cloud.key.public_key))
    assert asyncio.run(accepts(cloud, address, receiver.public_key))
    wait_for_login(address, cloud.ssh_port, "root", receiver, timeout_s=TIMEOUT_S).close()
