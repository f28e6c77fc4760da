"""The init's network when it is not as it should be: silent, late, doubled, without a driver."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.init_guest import PATIENCE_S, console, wait_for_line

from instant_env.localec2 import starter

if TYPE_CHECKING:
    from support.tiny_cloud import Guest, TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]

#: A message that nobody answers is sent again after this time (init/internal/dhcp/client.go).
FIRST_REPETITION_MS = 100
#: What a machine that has failed waits before it powers off (init/internal/boot/failure.go).
FATAL_PAUSE_S = 10


def marks(guest: Guest) -> dict[str, float]:
    """Milliseconds since the kernel's start by name."""
    timeline = json.loads(guest.run("cat /run/instant-init/timeline.json"))
    return {mark["name"]: mark["boottime_ms"] for mark in timeline["marks"]}


def banner(address: str, port: int) -> bytes:
    """What sshd says first at this address, which may take a moment to lead to its card."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with socket.create_connection((address, port), timeout=10) as connection:
                return connection.recv(8)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="module")
def started(shared_tiny_cloud: TinyCloud) -> dict[str, str]:
    """Three machines with something wrong each, and the fault's id of those that are waiting for its end."""
    faults: dict[str, dict[str, Any]] = {
        "lost": {"kind": "network", "drop_dhcp": 1},
        "silent": {"kind": "network", "drop_dhcp": 1_000_000},
        "late": {"kind": "unplugged"},
    }
    found = {}
    for name, fault in faults.items():
        made = starter.inject(shared_tiny_cloud.endpoint, instance="next", **fault)
        found[name] = shared_tiny_cloud.launch_tiny()
        shared_tiny_cloud.wait(found[name], "running")  # or it might take the next one's fault, too
        found[f"fault of {name}"] = made["id"]
    return found


def test_the_first_discover_is_lost(shared_tiny_cloud: TinyCloud, started: dict[str, str]) -> None:
    guest = shared_tiny_cloud.login(started["lost"])
    struck = {fault["id"]: fault["struck"] for fault in starter.faults(shared_tiny_cloud.endpoint)}
    assert struck[started["fault of lost"]] == 1
    seen = marks(guest)
    took_ms = seen["network_up"] - seen["nic_found"]
    print(f"a lost DISCOVER: {took_ms:.0f} ms from the card to the address")
    assert took_ms >= FIRST_REPETITION_MS
    assert "valid_lft forever" in guest.run("ip -4 addr show dev eth0"), "it stays when nobody renews it"


def test_dhcp_is_silent_for_ten_seconds(shared_tiny_cloud: TinyCloud, started: dict[str, str]) -> None:
    instance_id = started["silent"]
    words = "no network after 5 s: waiting for a DHCP answer on eth0"
    wait_for_line(shared_tiny_cloud, instance_id, words)
    time.sleep(5)
    starter.clear_faults(shared_tiny_cloud.endpoint, started["fault of silent"])
    guest = shared_tiny_cloud.login(instance_id)
    seen = marks(guest)
    assert seen["network_up"] - seen["nic_found"] > 9_000
    wait_for_line(shared_tiny_cloud, instance_id, "the network is up")
    shared_tiny_cloud.ec2.terminate_instances(InstanceIds=[instance_id])


def test_the_only_card_is_late(shared_tiny_cloud: TinyCloud, started: dict[str, str]) -> None:
    """It comes when the init has looked in vain, so its driver is not loaded either."""
    instance_id = started["late"]
    words = "no network after 5 s: waiting for a network interface"
    wait_for_line(shared_tiny_cloud, instance_id, words)
    starter.clear_faults(shared_tiny_cloud.endpoint, started["fault of late"])
    guest = shared_tiny_cloud.login(instance_id)
    seen = marks(guest)
    assert seen["nic_found"] - seen["init_start"] > 2_000
    shared_tiny_cloud.ec2.terminate_instances(InstanceIds=[instance_id])


def test_a_second_card_while_it_runs_and_at_the_start(
    shared_tiny_cloud: TinyCloud, started: dict[str, str]
) -> None:
    tiny_cloud, instance_id = shared_tiny_cloud, started["lost"]
    ec2, port = tiny_cloud.ec2, tiny_cloud.endpoint.ssh_port
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

    # At the next start both are there from the beginning; the machine's name is still the first one's. (What
    # the init has forgotten, the kernel gives up a second later, or when it ends.)
    ec2.stop_instances(InstanceIds=[instance_id])
    tiny_cloud.wait(instance_id, "stopped")
    free: Any = [{"Name": "status", "Values": ["available"]}]
    which = [card["NetworkInterfaceId"]]
    deadline = time.monotonic() + PATIENCE_S
    while not ec2.describe_network_interfaces(NetworkInterfaceIds=which, Filters=free)["NetworkInterfaces"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ec2.attach_network_interface(
        NetworkInterfaceId=card["NetworkInterfaceId"], InstanceId=instance_id, DeviceIndex=1
    )
    ec2.start_instances(InstanceIds=[instance_id])
    guest = tiny_cloud.login(instance_id)
    guest.run(wait.format(has_it))
    again = tiny_cloud.describe(instance_id)
    assert banner(again["PublicIpAddress"], port) == banner(second, port) == b"SSH-2.0-"
    assert guest.run("hostname") == f"ip-{again['PrivateIpAddress'].replace('.', '-')}"


def test_no_modules_directory(shared_tiny_cloud: TinyCloud, started: dict[str, str]) -> None:
    instance_id = started["lost"]
    guest = shared_tiny_cloud.login(instance_id)
    guest.run("mv /usr/lib/modules /usr/lib/modules.away; sync")
    guest.status("(sleep 0.5; reboot -f) </dev/null >/dev/null 2>&1 &")
    missing = "network drivers: no driver for pci:.*/lib/modules/.*no such file or directory"
    wait_for_line(shared_tiny_cloud, instance_id, missing)
    words = "no network after 5 s: waiting for a network.*modules.dep"
    wait_for_line(shared_tiny_cloud, instance_id, words)
    # It goes on waiting: whoever reads the console finds it there.
    time.sleep(FATAL_PAUSE_S + 2)
    assert shared_tiny_cloud.describe(instance_id)["State"]["Name"] == "running"
    assert "fatal" not in console(shared_tiny_cloud, instance_id)
