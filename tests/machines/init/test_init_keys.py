"""Who gets into a machine of instant-init, and when: by launch, by user data, handed over later."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from support.init_guest import PATIENCE_S, console, wait_for_line

from instant_env.cloud.keys import KeyPair
from instant_env.localec2 import starter

if TYPE_CHECKING:
    from support.tiny_cloud import Guest, TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

#: Who the machine and its users are.
IDENTITY = "cat /etc/ssh/ssh_host_*_key /etc/passwd /etc/shadow | sha256sum"
#: What the metadata service can do wrong, besides refusing connections.
ANSWERS: tuple[dict[str, Any], ...] = (
    {"status": 401}, {"status": 403}, {"status": 404}, {"status": 503}, {"delay_ms": 3000},
    {"answer": "truncated"}, {"answer": "garbage"},
)  # fmt: skip


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


class EarlyBird(threading.Thread):
    """Connects to a machine that waits for its key, and waits for the answer to one authentication."""

    def __init__(self, cloud: TinyCloud, instance_id: str, key: KeyPair) -> None:
        super().__init__(daemon=True)
        self.address = (cloud.describe(instance_id)["PublicIpAddress"], cloud.endpoint.ssh_port)
        self.key = key
        self.let_in: bool | None = None

    def run(self) -> None:
        while self.let_in is None:
            try:
                with socket.create_connection(self.address, timeout=30) as connection:
                    self.let_in = self._authenticate(paramiko.Transport(connection))
            except (OSError, EOFError, paramiko.SSHException):
                time.sleep(0.2)  # sshd is not there yet

    def _authenticate(self, transport: paramiko.Transport) -> bool:
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = 300
        try:
            transport.connect(username="root", pkey=self.key.for_paramiko())
        except paramiko.AuthenticationException:
            return False
        finally:
            transport.close()
        return True


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
    wait_for_line(cloud, instance_id, 'unknown field "colour"')
    said = console(cloud, instance_id)
    assert "instant-env.ssh_keys[0]: not a public key" in said
    assert 'instant-env.hostname: not a host name: "a b"' in said

    # Handed over: the first attempt counts, as a client makes it right after the call.
    assert not lets_in(cloud, instance_id, pushed)
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

    # Who reads the console can compare the host keys.
    printed = wait_for_line(cloud, instance_id, r"BEGIN SSH HOST KEY KEYS-----([\s\S]*?)-----END SSH")
    assert printed[1].split() == guest.run("cat /etc/ssh/ssh_host_*_key.pub").split()

    # A key in authorized_keys needs nobody's answer; another one does not wait for ever.
    starter.inject(cloud.endpoint, kind="imds", instance=instance_id, answer="refused")
    assert lets_in(cloud, instance_id, wished)
    assert not lets_in(cloud, instance_id, pushed)


def test_it_waits_for_the_metadata_service_and_says_so(tiny_cloud: TinyCloud) -> None:
    """Everything that the service can do wrong, one after the other, in one boot; and two more starts."""
    cloud = tiny_cloud
    starter.inject(cloud.endpoint, kind="imds", instance="next", answer="refused")
    instance_id = cloud.launch_tiny()
    wait_for_line(cloud, instance_id, "waiting for the SSH key, .*connection refused")
    early = EarlyBird(cloud, instance_id, cloud.key)
    early.start()
    for answer in ANSWERS:
        starter.inject(cloud.endpoint, kind="imds", instance=instance_id, **answer)
        time.sleep(2)
    said = console(cloud, instance_id)
    assert "sshd_listening" not in said
    assert "powering off" not in said
    assert early.let_in is None, "nobody is answered before the key is there"
    starter.clear_faults(cloud.endpoint)
    early.join(PATIENCE_S)
    assert early.let_in, "nobody is turned away because he was quick"

    # Whatever sshd logs: it waits for the key all the same, and the boot goes on when it has it.
    guest = cloud.login(instance_id)
    guest.run("sed -i '1i LogLevel QUIET' /etc/ssh/sshd_config; rm /root/.ssh/authorized_keys")
    identity = guest.run(IDENTITY)
    fault = starter.inject(cloud.endpoint, kind="imds", instance=instance_id, status=503)
    reboot(guest)
    wait_for_line(cloud, instance_id, "waiting for the SSH key, .*503")
    early = EarlyBird(cloud, instance_id, cloud.key)
    early.start()
    time.sleep(3)
    assert early.let_in is None
    starter.clear_faults(cloud.endpoint, fault["id"])
    early.join(PATIENCE_S)
    assert early.let_in
    wait_for_line(cloud, instance_id, "timeline .*sshd_listening")
    assert cloud.login(instance_id).run(IDENTITY) == identity, "a start without metadata is no first one"

    # Where somebody has been let in before, the service is not waited for as long as that.
    guest = cloud.login(instance_id)
    starter.inject(cloud.endpoint, kind="imds", instance=instance_id, answer="refused")
    reboot(guest)
    wait_for_line(cloud, instance_id, "the SSH keys of an earlier start stay")
    cloud.login(instance_id)


def reboot(guest: Guest) -> None:
    """At once and without order; what was written is on the disk."""
    guest.run("(sleep 0.5; reboot -f) </dev/null >/dev/null 2>&1 &")
    guest.connection.close()
