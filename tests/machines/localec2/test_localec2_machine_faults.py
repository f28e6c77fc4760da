"""Faults of real QEMU processes: what the monitor and the kernel say, not what we remember."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.patience import until

from instant_env.arch import Arch
from instant_env.localec2 import starter
from instant_env.localec2.qemu import command_line, disks
from instant_env.localec2.qemu.machine import Machine

if TYPE_CHECKING:
    from support.localec2_cloud import LocalCloud

pytest_plugins = ("support.localec2_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]


def cpu_ticks(pid: int) -> int:
    """Processor time of a process (proc(5): utime and stime are fields 14 and 15)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stream:  # noqa: PTH123
        fields = stream.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def ticks_within(pid: int, seconds: float) -> int:
    before = cpu_ticks(pid)
    time.sleep(seconds)
    return cpu_ticks(pid) - before


def until_busy(pid: int) -> None:
    """Machines are nice to others, so it may take a while on a busy host."""
    until(lambda: ticks_within(pid, 1.0) > 10)


def test_a_killed_machine_is_an_instance_that_ended(local_cloud: LocalCloud) -> None:
    starter.inject(local_cloud.endpoint, kind="kill", instance="next", after_ms=200)
    instance_id = local_cloud.launch(local_cloud.register_blank())
    stopped = local_cloud.wait(instance_id, "stopped")
    assert stopped["StateReason"]["Code"] == "Server.InternalError"
    assert local_cloud.machines(instance_id) == []
    assert starter.faults(local_cloud.endpoint) == []


def test_what_a_machine_has_not_let_go_of_is_free_when_it_has_ended(local_cloud: LocalCloud) -> None:
    """Asked to give up a card and a volume it does nothing, as a guest does that is going down."""
    ec2 = local_cloud.ec2
    instance_id = local_cloud.launch(local_cloud.register_blank())
    running = local_cloud.wait(instance_id, "running")
    made = ec2.create_network_interface(SubnetId=running["SubnetId"])
    card = made["NetworkInterface"]["NetworkInterfaceId"]
    volume = ec2.create_volume(Size=1, AvailabilityZone=running["Placement"]["AvailabilityZone"])["VolumeId"]
    plug: Any = {"NetworkInterfaceId": card, "InstanceId": instance_id}
    attached = ec2.attach_network_interface(**plug, DeviceIndex=1)
    ec2.attach_volume(VolumeId=volume, InstanceId=instance_id, Device="/dev/sdf")
    ec2.get_waiter("volume_in_use").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
    time.sleep(2)  # until both are in their slots

    def seen() -> tuple[str, str]:
        (interface,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[card])["NetworkInterfaces"]
        return interface["Status"], ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"]

    ec2.detach_network_interface(AttachmentId=attached["AttachmentId"])
    ec2.detach_volume(VolumeId=volume)
    time.sleep(1)
    assert seen() == ("in-use", "in-use")
    ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    local_cloud.wait(instance_id, "stopped")
    until(lambda: seen() == ("available", "available"))
    ec2.attach_network_interface(**plug, DeviceIndex=1)


def test_a_frozen_machine_stands_still_and_goes_on(local_cloud: LocalCloud) -> None:
    instance_id = local_cloud.launch(local_cloud.register_blank())
    local_cloud.wait(instance_id, "running")
    (pid,) = local_cloud.machines(instance_id)
    until_busy(pid)  # firmware with nothing to boot is
    fault = starter.inject(local_cloud.endpoint, kind="freeze", instance=instance_id)
    time.sleep(0.5)
    assert ticks_within(pid, 1.0) < 10
    assert local_cloud.describe(instance_id)["State"]["Name"] == "running", "EC2 does not notice either"
    assert starter.status(local_cloud.settings).faults == [fault]
    assert starter.clear_faults(local_cloud.endpoint) == [fault["id"]]
    until_busy(pid)
    starter.inject(local_cloud.endpoint, kind="freeze", instance=instance_id)
    local_cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    local_cloud.wait(instance_id, "terminated")
    assert starter.faults(local_cloud.endpoint) == [], "there is nothing left to thaw"


def test_every_volume_is_as_slow_as_it_was_told(tmp_path: Path) -> None:
    volumes = tuple(
        command_line.Disk(f"vol-{number:017x}", tmp_path / f"{number}.qcow2") for number in range(2)
    )
    for volume in volumes:
        disks.create(volume.path, 1)
    platform = command_line.find_platform(Arch.X86_64)
    spec = command_line.MachineSpec(
        "i-0123456789abcdef0", "t3.micro", platform, "tcg", 1, 256, volumes, (),
        tmp_path / "variables.fd", tmp_path / "console.log", tmp_path / "qmp",
    )  # fmt: skip
    shutil.copyfile(platform.firmware_variables, spec.variables)
    machine = Machine(spec, tmp_path / "qemu.log", lambda _: None)
    machine.start()
    try:
        for bound in ((1_000_000, 50), (0, 0)):
            machine.throttle(*bound)
            found = [item.get("inserted", {}) for item in machine.qmp.execute("query-block")]
            shown = {item.get("node-name"): (item.get("bps"), item.get("iops")) for item in found}
            assert {volume.node: shown[volume.node] for volume in volumes} == {
                volume.node: bound for volume in volumes
            }
    finally:
        machine.quit()
