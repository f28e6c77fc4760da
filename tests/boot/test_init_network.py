"""The init's network when it is not as it should be: silent, late, doubled, without a driver."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from instant_env.localec2 import starter
from instant_env.localec2.layout import Layout

if TYPE_CHECKING:
    from tiny_cloud import Guest, TinyCloud

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]

#: From launch to a line on the console: firmware and kernel come first, other guests keep the host busy.
CONSOLE_TIMEOUT_S = 120.0


def await_console(cloud: TinyCloud, instance_id: str, *words: str) -> str:
    """The line of the machine's console with these words in it; waits for it."""
    path = Layout.create(cloud.settings.local_dir).instance(instance_id) / "console.log"
    deadline = time.monotonic() + CONSOLE_TIMEOUT_S
    while True:
        text = path.read_text(errors="replace") if path.exists() else ""
        for line in text.splitlines():
            if all(word in line for word in words):
                return line
        assert time.monotonic() < deadline, f"{words} not in:\n{text[-2000:]}"
        time.sleep(0.05)


def marks(guest: Guest) -> dict[str, float]:
    """Milliseconds since the kernel's start by name."""
    timeline = json.loads(guest.run("cat /run/instant-init/timeline.json"))
    return {mark["name"]: mark["boottime_ms"] for mark in timeline["marks"]}


def banner(address: str, port: int) -> bytes:
    """What sshd says first at this address."""
    with socket.create_connection((address, port), timeout=10) as connection:
        connection.settimeout(10)
        return connection.recv(8)


def test_the_first_discover_is_lost(tiny_cloud: TinyCloud) -> None:
    starter.inject(tiny_cloud.endpoint, kind="network", instance="next", drop_dhcp=1)
    guest = tiny_cloud.login(tiny_cloud.launch_tiny())
    assert [fault["struck"] for fault in starter.faults(tiny_cloud.endpoint)] == [1]
    seen = marks(guest)
    # Repeated after 100 ms, not after the seconds of other clients.
    assert 100 <= seen["network_up"] - seen["nic_found"] < 2500
    assert "valid_lft forever" in guest.run("ip -4 addr show dev eth0")


def test_dhcp_is_silent_for_ten_seconds(tiny_cloud: TinyCloud) -> None:
    starter.inject(tiny_cloud.endpoint, kind="network", instance="next", drop_dhcp=1_000_000)
    instance_id = tiny_cloud.launch_tiny()
    await_console(tiny_cloud, instance_id, "no network after 5 s: waiting for a DHCP answer on eth0")
    time.sleep(5)
    starter.clear_faults(tiny_cloud.endpoint)
    guest = tiny_cloud.login(instance_id)
    seen = marks(guest)
    assert seen["network_up"] - seen["nic_found"] > 9_000
    await_console(tiny_cloud, instance_id, "the network is up")


def test_the_only_card_is_late(tiny_cloud: TinyCloud) -> None:
    """It comes when the init has looked in vain, so its driver is not loaded either."""
    starter.inject(tiny_cloud.endpoint, kind="unplugged", instance="next")
    instance_id = tiny_cloud.launch_tiny()
    await_console(tiny_cloud, instance_id, "no network after 5 s: waiting for a network interface")
    starter.clear_faults(tiny_cloud.endpoint)
    guest = tiny_cloud.login(instance_id)
    seen = marks(guest)
    assert seen["nic_found"] - seen["init_start"] > 2_000
    # Told of by the kernel, not found by chance: the address is there soon after the card.
    assert seen["network_up"] - seen["nic_found"] < 2_500


def test_a_second_card_while_it_runs_and_at_the_start(tiny_cloud: TinyCloud) -> None:
    ec2, port = tiny_cloud.ec2, tiny_cloud.endpoint.ssh_port
    instance_id = tiny_cloud.launch_tiny()
    described = tiny_cloud.wait(instance_id, "running")
    first = described["PublicIpAddress"]
    card = ec2.create_network_interface(SubnetId=described["SubnetId"], Groups=[tiny_cloud.group_id])[
        "NetworkInterface"
    ]
    allocation = ec2.allocate_address()
    ec2.associate_address(
        AllocationId=allocation["AllocationId"], NetworkInterfaceId=card["NetworkInterfaceId"]
    )
    second, private = allocation["PublicIp"], card["PrivateIpAddress"]
    guest = tiny_cloud.login(instance_id)
    attached = ec2.attach_network_interface(
        NetworkInterfaceId=card["NetworkInterfaceId"], InstanceId=instance_id, DeviceIndex=1
    )
    wait = "for n in $(seq 300); do {} && exit; usleep 100000; done; ip address; ip rule; exit 1"
    has_it = f"ip -4 address show dev eth1 2>/dev/null | grep -q {private}/20"
    guest.run(wait.format(has_it))
    assert "mtu 9001" in guest.run("ip link show dev eth1")
    # Both answer, each by its own card: the subnet is the same, and so would be the way without a rule.
    assert banner(first, port) == banner(second, port) == b"SSH-2.0-"
    assert "dev eth1" in guest.run(f"ip route get 192.0.2.1 from {private}")
    assert "dev eth0" in guest.run("ip route get 192.0.2.1")
    received = "cat /sys/class/net/eth1/statistics/{}_packets"
    before = [int(guest.run(received.format(way))) for way in ("rx", "tx")]
    assert banner(second, port) == b"SSH-2.0-"
    after = [int(guest.run(received.format(way))) for way in ("rx", "tx")]
    assert all(late > early for early, late in zip(before, after, strict=True)), "answered by the other card"

    # Detached, it is forgotten.
    ec2.detach_network_interface(AttachmentId=attached["AttachmentId"])
    guest.run(wait.format(f"! ip rule | grep -q {private}"))
    assert guest.status("ip link show dev eth1") != 0

    # At the next start both are there from the beginning; the machine's name is still the first one's.
    ec2.stop_instances(InstanceIds=[instance_id])
    tiny_cloud.wait(instance_id, "stopped")
    ec2.attach_network_interface(
        NetworkInterfaceId=card["NetworkInterfaceId"], InstanceId=instance_id, DeviceIndex=1
    )
    ec2.start_instances(InstanceIds=[instance_id])
    guest = tiny_cloud.login(instance_id)
    guest.run(wait.format(has_it))
    again = tiny_cloud.describe(instance_id)
    assert banner(again["PublicIpAddress"], port) == banner(second, port) == b"SSH-2.0-"
    assert guest.run("hostname") == f"ip-{again['PrivateIpAddress'].replace('.', '-')}"


def test_no_modules_directory(tiny_cloud: TinyCloud) -> None:
    instance_id = tiny_cloud.launch_tiny()
    guest = tiny_cloud.login(instance_id)
    guest.run("mv /usr/lib/modules /usr/lib/modules.away; sync")
    guest.status("(sleep 0.5; reboot -f) </dev/null >/dev/null 2>&1 &")
    line = await_console(tiny_cloud, instance_id, "network drivers: no driver for pci:", "/lib/modules/")
    assert "no such file or directory" in line
    await_console(tiny_cloud, instance_id, "no network after 5 s: waiting for a network", "modules.dep")
    # It goes on waiting: whoever reads the console finds it there.
    time.sleep(12)
    assert tiny_cloud.describe(instance_id)["State"]["Name"] == "running"
    assert "fatal" not in await_console(tiny_cloud, instance_id, "waiting for")
