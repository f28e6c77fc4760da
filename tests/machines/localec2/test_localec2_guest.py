"""What a Debian guest sees of its EC2: its key, its metadata, its volumes, and nothing of the host.

One machine for all of it, because it takes a minute to boot under software emulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from support.localec2_cloud import STOCK_TIMEOUT_S
from support.tiny_cloud import INSTANCE_TYPES

from instant_env.arch import Arch
from instant_env.cloud.keys import KeyPair
from instant_env.localec2 import starter
from instant_env.ssh.connection import wait_for_login

if TYPE_CHECKING:
    from support.localec2_cloud import LocalCloud

pytest_plugins = ("support.localec2_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(STOCK_TIMEOUT_S)]

#: A loaded machine with two cores needs several times the usual minute.
BOOT_TIMEOUT_S = 400.0

Guest = Callable[[str], str]

#: Prints the status of three requests: a token, the metadata without it, the metadata with it.
_IMDS = r"""
import urllib.request as u, urllib.error as e
def ask(method, path, **headers):
    request = u.Request('http://169.254.169.254/latest/' + path, method=method, headers=headers)
    try:
        with u.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except e.HTTPError as error:
        return error.code, ''
status, token = ask('PUT', 'api/token', **{'X-aws-ec2-metadata-token-ttl-seconds': '60'})
print(status)
print(ask('GET', 'meta-data/instance-id')[0])
print(ask('GET', 'meta-data/instance-id', **{'X-aws-ec2-metadata-token': token})[1])
"""


def login(local_cloud: LocalCloud, instance_id: str, key: KeyPair) -> Guest:
    """A function that runs a command as admin; waits until the guest lets us in."""
    address = local_cloud.describe(instance_id)["PublicIpAddress"]
    connection = wait_for_login(
        address, local_cloud.endpoint.ssh_port, "admin", key, timeout_s=BOOT_TIMEOUT_S
    )

    def run(command: str) -> str:
        return str(connection.run(command, hide=True, timeout=120).stdout)

    return run


@pytest.fixture
def key(local_cloud: LocalCloud) -> KeyPair:
    """A key whose public half EC2 knows as `mine`."""
    key = KeyPair.generate()
    local_cloud.ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=key.public_openssh.encode())
    return key


def test_a_debian_guest(local_cloud: LocalCloud, key: KeyPair, guest_arch: Arch) -> None:
    ec2 = local_cloud.ec2
    image_id = starter.ensure_stock(local_cloud.settings, "debian-12", guest_arch)
    group_id = ec2.create_security_group(GroupName="ssh", Description="ssh")["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="127.0.0.1/32"
    )
    instance_type = INSTANCE_TYPES[guest_arch]
    instance_id = local_cloud.launch(
        image_id, InstanceType=instance_type, KeyName="mine", SecurityGroupIds=[group_id],
        InstanceInitiatedShutdownBehavior="terminate",
    )  # fmt: skip
    described = local_cloud.wait(instance_id, "running")
    guest = login(local_cloud, instance_id, key)

    # It is the machine that the API describes.
    names = guest("cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name")
    assert names == f"Amazon EC2\n{instance_type}\n"
    assert described["PrivateIpAddress"] in guest("ip -4 -o address show")
    dashed = described["PrivateIpAddress"].replace(".", "-")
    assert guest("hostname").strip() == f"ip-{dashed}"
    assert guest(f'python3 -c "{_IMDS}"').split() == ["200", "401", instance_id]

    # It is shut in: the API listens on the host's loopback, which the network's own address stands for.
    port = local_cloud.endpoint.url.rsplit(":", 1)[1]
    knock = f"timeout 5 bash -c 'exec 3<>/dev/tcp/172.31.0.1/{port}' 2>/dev/null && echo open || echo shut"
    assert guest(knock) == "shut\n"

    # A volume of its own image's snapshot, while it runs. Of somebody else's, with a switch.
    local_cloud.strict(foreign_snapshots=False)
    snapshot_id = ec2.describe_images(ImageIds=[image_id])["Images"][0]["BlockDeviceMappings"][0]["Ebs"][
        "SnapshotId"
    ]
    volume_id = ec2.create_volume(SnapshotId=snapshot_id, AvailabilityZone="us-east-1a")["VolumeId"]
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    serial = volume_id.replace("-", "")
    device = guest(
        f"for n in $(seq 30); do lsblk -dno NAME,SERIAL | grep {serial} && break; sleep 1; done"
    ).split()[0]
    assert int(guest(f"sudo blockdev --getsize64 /dev/{device}")) == 2 * 1024**3
    assert guest(f"sudo blkid -s TYPE -o value /dev/{device}p1").strip() == "ext4"
    ec2.detach_volume(VolumeId=volume_id)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume_id], WaiterConfig={"Delay": 1})
    assert serial not in guest("lsblk -dno SERIAL")

    # What it says on its console is what the API shows.
    assert (
        "Linux version" in ec2.get_console_output(InstanceId=instance_id, Latest=True)["Output"]
        or "login:" in (ec2.get_console_output(InstanceId=instance_id, Latest=True)["Output"])
    )

    # Powering off from inside ends it as the launch asked.
    guest("sudo systemd-run --on-active=1 poweroff")
    ended = local_cloud.wait(instance_id, "terminated", timeout_s=120)
    assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
