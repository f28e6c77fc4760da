"""The network between machines, to this host and away from it, with guests that really speak."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]


def knock(address: str, port: int) -> str:
    """What a client meets: ``accepted``, ``refused`` or ``reset``."""
    try:
        with socket.create_connection((address, port), timeout=10) as connection:
            connection.settimeout(10)
            connection.recv(1)
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    return "accepted"


def eventually(address: str, port: int, expected: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while (met := knock(address, port)) != expected:
        assert time.monotonic() < deadline, f"{met}, not {expected}"
        time.sleep(0.02)


def test_two_machines_and_this_host(tiny_cloud: TinyCloud, tmp_path: Path) -> None:
    ec2, port = tiny_cloud.ec2, tiny_cloud.endpoint.ssh_port
    inner = ec2.create_security_group(GroupName="inner", Description="only its members")["GroupId"]
    one, two = (tiny_cloud.launch_tiny(SecurityGroupIds=[tiny_cloud.group_id, inner]) for _ in range(2))
    described = tiny_cloud.wait(one, "running")
    address = described["PublicIpAddress"]

    # Until its sshd listens, nobody accepts for it.
    assert knock(address, port) == "refused"
    first, second = tiny_cloud.login(one), tiny_cloud.login(two)
    its_own, others = described["PrivateIpAddress"], tiny_cloud.describe(two)["PrivateIpAddress"]

    # The subnet's own netmask, gateway and resolver, EC2's MTU.
    assert f"{its_own}/20" in first.run("ip -4 address show")
    assert "mtu 9001" in first.run("ip link show")
    assert first.run("cat /etc/resolv.conf").split()[-1] == "172.31.0.2"

    # Members of a group that admits its members reach each other; others do not.
    ping = f"ping -c 1 -W 3 {others}"
    assert first.status(ping) != 0, "no rule admits it yet"
    among_themselves = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": inner}]}
    ec2.authorize_security_group_ingress(GroupId=inner, IpPermissions=[among_themselves])  # type: ignore[list-item]
    assert first.status(ping) == 0
    assert second.status(f"ping -c 1 -W 3 {its_own}") == 0
    assert first.status(f"ping -c 1 -W 3 -s 8000 {others}") == 0, "a jumbo frame"
    second.run("echo hello | nc -l -p 7777 >/dev/null 2>&1 &")
    assert first.run(f"nc -w 5 {others} 7777 </dev/null") == "hello"
    name = f"ip-{others.replace('.', '-')}.ec2.internal"
    assert others in first.run(f"nslookup {name} || true").split(), "there is no AAAA, which it minds"

    # Neither this host's loopback nor its own services, by whatever address.
    own_port = tiny_cloud.endpoint.url.rsplit(":", 1)[1]
    for host in ("127.0.0.1", "172.31.0.1", "169.254.169.254", "203.0.113.1", address):
        assert first.status(f"nc -w 3 {host} {own_port} </dev/null") != 0, host

    # Megabytes through the forwarded connection, both ways.
    data = os.urandom(20 << 20)
    source, back = tmp_path / "data", tmp_path / "back"
    source.write_bytes(data)
    first.connection.put(str(source), "/run/data")
    assert first.run("sha256sum /run/data").split()[0] == hashlib.sha256(data).hexdigest()
    first.connection.get("/run/data", str(back))
    assert back.read_bytes() == data

    # A port is open while the guest listens, and while a rule says so.
    assert knock(address, port) == "accepted"
    # Moved away, so that init cannot start it again; the command's own connection dies with the others.
    first.run("mv /usr/sbin/sshd /run/; (sleep 1; killall sshd) </dev/null >/dev/null 2>&1 &")
    eventually(address, port, "refused")
    other_address = tiny_cloud.describe(two)["PublicIpAddress"]
    assert knock(other_address, port) == "accepted"
    ec2.revoke_security_group_ingress(
        GroupId=tiny_cloud.group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="127.0.0.1/32"
    )
    eventually(other_address, port, "refused")


def test_a_group_without_the_rule_lets_nothing_through(tiny_cloud: TinyCloud) -> None:
    ec2, port = tiny_cloud.ec2, tiny_cloud.endpoint.ssh_port
    shut = ec2.create_security_group(GroupName="shut", Description="no rule")["GroupId"]
    instance_id = tiny_cloud.launch_tiny(SecurityGroupIds=[shut])
    address = tiny_cloud.wait(instance_id, "running")["PublicIpAddress"]
    deadline = time.monotonic() + 120
    while (
        ec2.describe_instance_status(InstanceIds=[instance_id])["InstanceStatuses"][0]["InstanceStatus"][
            "Status"
        ]
        != "ok"
    ):
        assert time.monotonic() < deadline, "the guest never spoke"
        time.sleep(0.2)
    time.sleep(3)  # sshd is up within one
    assert knock(address, port) == "refused"
    ec2.modify_instance_attribute(InstanceId=instance_id, Groups=[tiny_cloud.group_id])
    eventually(address, port, "accepted")


def test_machines_end_with_their_network(tiny_cloud: TinyCloud) -> None:
    """They could not be reached any more; that must show, and the next ones must have a network again."""
    instance_id = tiny_cloud.launch_tiny()
    tiny_cloud.wait(instance_id, "running")
    (netd,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/status")
        if f"\nPPid:\t{tiny_cloud.endpoint.pid}\n" in path.read_text() and "Name:\tnetd\n" in path.read_text()
    )
    os.kill(netd, signal.SIGKILL)
    tiny_cloud.wait(instance_id, "stopped")
    tiny_cloud.ec2.start_instances(InstanceIds=[instance_id])
    assert tiny_cloud.login(instance_id).run("id -un") == "root"


def test_interfaces_made_ahead_and_plugged_in_later(tiny_cloud: TinyCloud) -> None:
    ec2 = tiny_cloud.ec2
    subnet = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-east-1a"]}])[
        "Subnets"
    ][0]
    ahead, later = (
        ec2.create_network_interface(SubnetId=subnet["SubnetId"], Groups=[tiny_cloud.group_id])[
            "NetworkInterface"
        ]
        for _ in range(2)
    )
    address = ec2.allocate_address()
    ec2.associate_address(
        AllocationId=address["AllocationId"], NetworkInterfaceId=ahead["NetworkInterfaceId"]
    )
    instance_id = tiny_cloud.launch(
        tiny_cloud.image_id, KeyName="tests",
        NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": ahead["NetworkInterfaceId"]}],
    )  # fmt: skip
    assert tiny_cloud.wait(instance_id, "running")["PublicIpAddress"] == address["PublicIp"]
    guest = tiny_cloud.login(instance_id)
    assert ahead["MacAddress"] in guest.run("ip link show")
    assert ahead["PrivateIpAddress"] in guest.run("ip -4 address show")

    mac = later["MacAddress"]
    ec2.attach_network_interface(
        NetworkInterfaceId=later["NetworkInterfaceId"], InstanceId=instance_id, DeviceIndex=1
    )
    guest.run(f"for n in $(seq 99); do ip link | grep -q {mac} && exit; usleep 100000; done; exit 1")
    macs = guest.run("imds meta-data/network/interfaces/macs/").split()
    assert sorted(macs) == sorted(f"{item['MacAddress']}/" for item in (ahead, later))
    path = f"meta-data/network/interfaces/macs/{later['MacAddress']}"
    assert guest.run(f"imds {path}/device-number; echo; imds {path}/local-ipv4s").split() == [
        "1", later["PrivateIpAddress"],
    ]  # fmt: skip
    name = guest.run(f"ip -o link | grep {later['MacAddress']} | cut -d: -f2").strip()
    guest.run(f"ip link set {name} up")
    lease = guest.run(f"busybox udhcpc -i {name} -n -q -f -s /bin/true -v 2>&1 || true")
    assert f"lease of {later['PrivateIpAddress']} obtained" in lease

    place = ec2.describe_network_interfaces(NetworkInterfaceIds=[later["NetworkInterfaceId"]])
    ec2.detach_network_interface(AttachmentId=place["NetworkInterfaces"][0]["Attachment"]["AttachmentId"])
    # The guest gives a PCIe slot up five seconds after its button, and emulated ones are not quick.
    guest.run(f"for n in $(seq 600); do ip link | grep -q {mac} || exit 0; usleep 100000; done; exit 1")
