"""A state directory on a file system that is really full: a small tmpfs, where mounting is allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.patience import until

from instant_env.localec2.instances.free_space import FAR_S, NEAR_S, DiskGuard

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

SIZE_MIB = 24


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def cramped(small: Path) -> Iterator[Served]:
    from support.localec2_served import Served

    served = Served(small / "state")
    yield served
    served.stop()


def fill(directory: Path, leave_kib: int = 0) -> Path:
    """A file that takes all the room but this."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(64 << 10))
        except OSError:
            stream.truncate(max(0, stream.tell() - (leave_kib << 10)))
    return filler


def state_of(served: Served, instance_id: str) -> str:
    found = served.ec2.describe_instances(InstanceIds=[instance_id])
    return found["Reservations"][0]["Instances"][0]["State"]["Name"]


def running(served: Served, image_id: str) -> str:
    made = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = made["Instances"][0]["InstanceId"]
    until(lambda: state_of(served, instance_id) == "running")
    return instance_id


def test_requests_fail_as_a_whole_and_work_again_with_room(cramped: Served, small: Path) -> None:
    image_id = cramped.register()
    instance_id = running(cramped, image_id)
    filler = fill(small)
    with pytest.raises(ClientError, match=r"\(InternalError\).*No space left"):
        cramped.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=2, MaxCount=2)
    with pytest.raises(ClientError, match=r"\(InsufficientVolumeCapacity|\(InternalError"):
        cramped.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)
    with pytest.raises(ClientError, match=r"\(InternalError\)"):
        cramped.ec2.stop_instances(InstanceIds=[instance_id])
    assert state_of(cramped, instance_id) == "running"
    assert len(cramped.ec2.describe_volumes()["Volumes"]) == 1
    filler.unlink()
    cramped.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: state_of(cramped, instance_id) == "stopped")
    cramped.restart()
    assert state_of(cramped, instance_id) == "stopped"
    assert len(cramped.ec2.describe_volumes()["Volumes"]) == 1


def test_a_vpc_is_made_whole_or_not_at_all(cramped: Served, small: Path) -> None:
    ec2 = cramped.ec2

    def seen() -> Any:
        return (
            ec2.describe_vpcs()["Vpcs"], ec2.describe_route_tables()["RouteTables"],
            ec2.describe_security_groups()["SecurityGroups"], ec2.describe_network_acls()["NetworkAcls"],
        )  # fmt: skip

    before = seen()
    (table,) = before[1]
    for leave_kib in (0, 4, 8, 12):  # room for none of its records, or for some
        filler = fill(small, leave_kib)
        with pytest.raises(ClientError, match=r"\(InternalError\).*No space left"):
            ec2.create_vpc(CidrBlock="10.0.0.0/16")
        assert seen() == before
        filler.unlink()
    filler = fill(small)
    with pytest.raises(ClientError, match=r"\(InternalError\)"):  # of the default VPC: stored when changed
        ec2.delete_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0")
    assert seen() == before
    filler.unlink()
    cramped.restart()
    ec2 = cramped.ec2
    assert seen() == before
    assert ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["State"] == "available"


def test_an_attachment_is_made_whole_or_not_at_all(cramped: Served, small: Path) -> None:
    """Without room for the record the call fails; without room for the bytes the volume is free again."""
    instance_id = running(cramped, cramped.register())
    volume_id = cramped.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]

    def attach() -> None:
        cramped.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")

    def volume() -> tuple[str, list[str]]:
        (found,) = cramped.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
        return found["State"], [item["State"] for item in found["Attachments"]]

    filler = fill(small)
    with pytest.raises(ClientError, match=r"\(InternalError\).*No space left"):
        attach()
    assert volume() == ("available", [])
    filler.unlink()
    filler = fill(small, leave_kib=24)  # records, but no disk
    attach()
    until(lambda: volume() == ("available", []))
    assert list(cramped.state.layout.volumes.glob(f"{volume_id}*")) == []
    filler.unlink()
    attach()
    until(lambda: volume() == ("in-use", ["attached"]))
    filler = fill(small)
    cramped.ec2.detach_volume(VolumeId=volume_id)
    until(lambda: volume() == ("available", []))
    filler.unlink()
    with cramped.state.lock:
        cramped.state.write_again()  # the guest let go by itself: it was to be recorded later
    cramped.restart()
    assert volume() == ("available", [])


def test_machines_stand_still_while_the_room_is_the_servers_own(cramped: Served) -> None:
    """And only one that has another reason to stand still stays so."""
    ec2, image_id = cramped.ec2, cramped.register()
    made = ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=2, MaxCount=2)["Instances"]
    first, second = (item["InstanceId"] for item in made)

    def running() -> bool:
        statuses = ec2.describe_instance_status(InstanceIds=[first, second])["InstanceStatuses"]
        return len(statuses) == 2

    until(running)
    free = [100 << 20]
    guard = DiskGuard(cramped.services.lifecycle, cramped.directory, lambda _: (free[0], 800 << 20))

    def frozen() -> list[bool]:
        return [cramped.machine(one).frozen for one in (first, second)]

    assert guard.look() == NEAR_S
    assert (frozen(), guard.short) == ([False, False], False)
    cramped.machine(second).freeze()
    free[0] -= 1
    guard.look()
    assert (frozen(), guard.short) == ([True, True], True)
    cramped.machine(second).thaw()
    assert frozen() == [True, False]
    guard.look()
    assert frozen() == [True, True], "whoever goes on, or starts, is stopped at the next look"
    free[0] += 1
    guard.look()
    assert frozen() == [True, True], "not to and fro"
    cramped.machine(second).freeze()
    free[0] = 700 << 20
    assert guard.look() == NEAR_S
    assert (frozen(), guard.short) == ([False, True], False)
    free[0] = 801 << 20
    assert guard.look() == FAR_S


def test_an_image_that_does_not_fit_has_failed_and_takes_no_room(cramped: Served, small: Path) -> None:
    instance_id = running(cramped, cramped.register())
    cramped.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: state_of(cramped, instance_id) == "stopped")
    (volume,) = cramped.state.layout.volumes.iterdir()
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", str(volume)]
    subprocess.run(write, check=True, capture_output=True)
    filler = fill(small, leave_kib=2048)
    before = set(cramped.state.layout.snapshots.iterdir())
    image_id = cramped.ec2.create_image(InstanceId=instance_id, Name="does not fit")["ImageId"]

    def image() -> str:
        return str(cramped.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"])

    until(lambda: image() != "pending")
    assert image() == "failed"
    assert set(cramped.state.layout.snapshots.iterdir()) == before, "no half of it is left"
    filler.unlink()
    cramped.ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
    image_id = cramped.ec2.create_image(InstanceId=instance_id, Name="fits")["ImageId"]
    until(lambda: image() != "pending")
    assert image() == "available"
