"""Faults as a guest and a client on the other side of the network meet them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from instant_env.localec2 import starter

if TYPE_CHECKING:
    from support.tiny_cloud import Guest, TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]


@pytest.fixture
def guest(tiny_cloud: TinyCloud) -> Guest:
    """A machine whose first two DHCP messages were lost."""
    starter.inject(tiny_cloud.endpoint, kind="network", instance="next", drop_dhcp=2)
    return tiny_cloud.login(tiny_cloud.launch_tiny())


def seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_what_goes_wrong_is_felt_and_goes_away(tiny_cloud: TinyCloud, guest: Guest) -> None:
    """One machine for all of it: a boot takes longer than the rest."""
    endpoint, which = tiny_cloud.endpoint, {"instance": guest.instance_id}
    assert [fault["struck"] for fault in starter.faults(endpoint)] == [1], "it came up all the same"
    starter.clear_faults(endpoint)

    read = "imds meta-data/instance-id"
    usual_s = seconds(lambda: guest.run(read))
    starter.inject(endpoint, kind="imds", delay_ms=1500, **which)
    assert seconds(lambda: guest.run(read)) > usual_s + 1
    starter.clear_faults(endpoint)
    starter.inject(endpoint, kind="imds", status=503, **which)
    assert guest.status(read) != 0
    starter.clear_faults(endpoint)
    assert guest.run(read) == guest.instance_id

    usual_s = seconds(lambda: guest.run("true"))
    starter.inject(endpoint, kind="network", delay_ms=300, **which)
    assert seconds(lambda: guest.run("true")) > usual_s + 0.5, "there and back"
    starter.clear_faults(endpoint)

    volume_id = tiny_cloud.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]
    tiny_cloud.ec2.attach_volume(VolumeId=volume_id, InstanceId=guest.instance_id, Device="/dev/sdf")
    write = f"dd if=/dev/zero of={guest.device(volume_id)} bs=64k count=32 conv=fsync 2>/dev/null"
    usual_s = seconds(lambda: guest.run(write))
    starter.inject(endpoint, kind="disk", bytes_per_second=1 << 20, **which)
    assert seconds(lambda: guest.run(write)) > usual_s + 0.7, "2 MiB at 1 MiB/s, less what the bucket holds"
    starter.clear_faults(endpoint)

    starter.inject(endpoint, kind="freeze", seconds=2.0, **which)
    assert 1.5 < seconds(lambda: guest.run("true")) < 20, "it stands still, and then goes on"


def test_a_kernel_that_locks_up_as_it_boots_is_reset(tiny_cloud: TinyCloud) -> None:
    """And who was logged in is told, if only by being refused: a reset machine says no goodbye."""
    instance_id = tiny_cloud.launch_tiny()
    guest = tiny_cloud.login(instance_id)
    which = "cat /proc/sys/kernel/random/boot_id"
    boot_id = guest.run(which)
    lockup = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [swapper/0:1]"
    assert guest.status(f"echo '{lockup}' >/dev/console; sleep 600", timeout_s=300) == -1
    guest.connection.transport.join(60)  # its thread: it ends the command first, and then itself
    assert not guest.connection.is_connected
    again = tiny_cloud.login(instance_id)
    assert again.run(which) != boot_id
    assert again.run("echo it serves") == "it serves"
