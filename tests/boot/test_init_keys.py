"""Who gets into a machine of instant-init, and when: by launch, by user data, handed over later."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import paramiko
import pytest

from instant_env.cloud.keys import KeyPair
from instant_env.localec2 import starter

if TYPE_CHECKING:
    from tiny_cloud import TinyCloud

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

#: API_SendSSHPublicKey: "The key remains for 60 seconds."
CONNECT_S = 60


def lets_in(cloud: TinyCloud, instance_id: str, key: KeyPair, user: str = "root") -> bool:
    """One attempt to log in, as a client makes it that does not come back."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.MissingHostKeyPolicy())
    address = cloud.describe(instance_id)["PublicIpAddress"]
    try:
        client.connect(
            address, cloud.endpoint.ssh_port, user, pkey=key.for_paramiko(), look_for_keys=False,
            allow_agent=False, timeout=30, banner_timeout=30, auth_timeout=30,
        )  # fmt: skip
    except paramiko.AuthenticationException:
        return False
    finally:
        client.close()
    return True


def console(cloud: TinyCloud, instance_id: str) -> str:
    return str(cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", ""))


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.2)


def push(cloud: TinyCloud, instance_id: str, key: KeyPair) -> None:
    starter.client(cloud.endpoint, "ec2-instance-connect").send_ssh_public_key(
        InstanceId=instance_id, InstanceOSUser="root", SSHPublicKey=key.public_openssh
    )


def test_keys(tiny_cloud: TinyCloud) -> None:
    """Of the launch, of user data, of Instance Connect and of the tag, on one machine."""
    cloud, ec2 = tiny_cloud, tiny_cloud.ec2
    wished, pushed, tagged, stranger = (KeyPair.generate(name) for name in ("w", "p", "t", "s"))
    wishes = {"ssh_keys": ["no key", wished.public_openssh], "hostname": "a b", "colour": "red"}
    instance_id = cloud.launch_tiny(
        UserData=json.dumps({"instant-env": wishes, "else": 1}),
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )
    guest = cloud.login(instance_id)
    assert lets_in(cloud, instance_id, wished), "no later than the key of the launch"
    until(lambda: 'unknown field "colour"' in console(cloud, instance_id))
    said = console(cloud, instance_id)
    assert "instant-env.ssh_keys[0]: not a public key" in said
    assert 'instant-env.hostname: not a host name: "a b"' in said

    # Handed over: the first attempt counts, as a client makes it right after the call.
    assert not lets_in(cloud, instance_id, pushed)
    pushed_at = time.monotonic()
    push(cloud, instance_id, pushed)
    assert lets_in(cloud, instance_id, pushed)
    assert not lets_in(cloud, instance_id, pushed, user="nobody")
    ec2.create_tags(
        Resources=[instance_id], Tags=[{"Key": "instant-env:ssh-key", "Value": tagged.public_openssh}]
    )
    assert lets_in(cloud, instance_id, tagged)
    assert not lets_in(cloud, instance_id, stranger)
    ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:ssh-key"}])
    assert not lets_in(cloud, instance_id, tagged)

    # Nothing of it is on the disk.
    assert guest.run("wc -l </root/.ssh/authorized_keys; ls -A /root/.ssh").split() == [
        "2",
        "authorized_keys",
    ]

    # A key in authorized_keys needs nobody's answer; another one does not wait for ever.
    starter.inject(cloud.endpoint, kind="imds", instance=instance_id, answer="refused")
    assert lets_in(cloud, instance_id, wished)
    assert not lets_in(cloud, instance_id, pushed)
    starter.clear_faults(cloud.endpoint)

    time.sleep(max(0.0, pushed_at + CONNECT_S + 2 - time.monotonic()))
    assert not lets_in(cloud, instance_id, pushed), "its minute is over"


def test_it_waits_for_the_metadata_service_and_says_so(tiny_cloud: TinyCloud) -> None:
    """Everything that the service can do wrong, one after the other, in one boot."""
    cloud = tiny_cloud
    starter.inject(cloud.endpoint, kind="imds", instance="next", answer="refused")
    instance_id = cloud.launch_tiny()
    until(lambda: "waiting for the SSH key" in console(cloud, instance_id), 120)
    assert "connection refused" in console(cloud, instance_id)
    for fault in (
        {"status": 401}, {"status": 403}, {"status": 404}, {"status": 503}, {"delay_ms": 3000},
        {"answer": "truncated"}, {"answer": "garbage"},
    ):  # fmt: skip
        starter.inject(cloud.endpoint, kind="imds", instance=instance_id, **fault)
        time.sleep(3)
    said = console(cloud, instance_id)
    assert "sshd_listening" not in said
    assert "powering off" not in said
    starter.clear_faults(cloud.endpoint)
    guest = cloud.login(instance_id)

    # Where somebody has been let in before, the service is not waited for as long as that.
    starter.inject(cloud.endpoint, kind="imds", instance=instance_id, answer="refused")
    guest.run("(sleep 0.5; reboot -f) >/dev/null 2>&1 &")
    guest.connection.close()
    until(lambda: "the SSH keys of an earlier start stay" in console(cloud, instance_id), 120)
    cloud.login(instance_id)
