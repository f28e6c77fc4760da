"""A server that is killed between two writes, and one whose disk is full: what the next request, or the next
server, finds is whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.patience import until

from instant_env import files
from instant_env.localec2 import restore
from instant_env.localec2.qemu import disks
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.records import VolumeRecord

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA5saFnYGnUwNL9UPyc929LGOTXJo5uhKHDcTOqznQmn somebody"

TRUST, POLICY = (
    json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | more]})
    for more in (
        {"Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
        {"Action": "ec2:Describe*", "Resource": "*"},
    )
)


def instances(served: Served) -> list[InstanceTypeDef]:
    return [item for part in served.ec2.describe_instances()["Reservations"] for item in part["Instances"]]


def all_are(served: Served, ids: list[str], state: str) -> bool:
    return {item["State"]["Name"] for item in instances(served) if item["InstanceId"] in ids} == {state}


def make_real_disk(self: Any, volume: VolumeRecord) -> None:
    """An image needs something to copy."""
    path = self.state.layout.volume(volume.id)
    if not path.exists():
        disks.create(path, volume.size_gib)


# Killed


def job(served: Served, image_id: str) -> None:
    """Three launches, a stop, an image, a volume, and the end of all: some eighty writes."""
    made = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=3, MaxCount=3)
    ids = [instance["InstanceId"] for instance in made["Instances"]]
    until(lambda: all_are(served, ids, "running"))
    served.ec2.stop_instances(InstanceIds=ids[:1])
    until(lambda: all_are(served, ids[:1], "stopped"))
    baked = served.ec2.create_image(InstanceId=ids[0], Name="baked")["ImageId"]
    until(lambda: served.ec2.describe_images(ImageIds=[baked])["Images"][0]["State"] == "available")
    served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)
    served.ec2.terminate_instances(InstanceIds=ids)
    until(lambda: all_are(served, ids, "terminated"))


def run_killed(directory: Path, image_id: str, at: int, where: str) -> bool:
    """Do the job in a process that is killed at its ``at``-th write; False when there were not so many."""
    from support.localec2_served import PretendAssembly, Served

    pid = os.fork()
    if pid == 0:
        write, count, lock = files.write_atomically, [0], threading.Lock()

        def killing(path: Path, content: bytes, mode: int = 0o600) -> None:
            with lock:
                count[0] += 1
                if count[0] == at and where == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                if count[0] == at and where == "within":
                    path.with_name(f".{path.name}.1.abcd").write_bytes(content[:10])
                    os.kill(os.getpid(), signal.SIGKILL)
                write(path, content, mode)
                if count[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            PretendAssembly.make_disk = make_real_disk  # type: ignore[method-assign]
            served = Served(directory)
            files.write_atomically = killing
            job(served, image_id)
        finally:
            os._exit(3 if count[0] < at else 4)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        # What the next server does first. A qemu-img that was being started has its name a moment later.
        time.sleep(0.1)
        restore.end_processes(Layout(directory))
        return True
    assert os.WEXITSTATUS(status) == 3, "the job failed before it was killed"
    return False


def assert_whole(served: Served) -> None:
    """Everything that a client can see is complete, and nothing lies around that it cannot see."""
    layout = served.state.layout
    found = instances(served)
    assert len(found) in (0, 3), "a request makes all of its instances or none"
    assert {item["State"]["Name"] for item in found} <= {"stopped", "terminated"}
    volumes = served.ec2.describe_volumes()["Volumes"]
    for item in found:
        roots = [v for v in volumes for a in v["Attachments"] if a["InstanceId"] == item["InstanceId"]]
        assert len(roots) == (1 if item["State"]["Name"] == "stopped" else 0)
    for image in served.ec2.describe_images(Owners=["self"])["Images"]:
        assert image["State"] in ("available", "failed")
        path = layout.snapshot(image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])
        assert path.exists() == (image["State"] == "available")
    for snapshot in served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]:
        assert snapshot["State"] in ("completed", "error")
    assert [path for path in layout.state_dir.rglob("*") if path.name.startswith(".")] == []
    assert list(layout.state_dir.rglob("*.part")) == []
    assert not layout.journal.exists()
    assert {path.stem for path in layout.volumes.iterdir()} <= {v["VolumeId"] for v in volumes}


def remove_everything(served: Served) -> None:
    if ids := [item["InstanceId"] for item in instances(served)]:
        served.ec2.terminate_instances(InstanceIds=ids)
        until(lambda: all_are(served, ids, "terminated"))
    for volume in served.ec2.describe_volumes()["Volumes"]:
        served.ec2.delete_volume(VolumeId=volume["VolumeId"])
    for image in served.ec2.describe_images(Owners=["self"])["Images"]:
        served.ec2.deregister_image(ImageId=image["ImageId"], DeleteAssociatedSnapshots=True)
    for snapshot in served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]:
        served.ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4))
def test_killed_anywhere_the_next_server_finds_what_is_whole(tmp_path: Path, first: int) -> None:
    """Every fourth write, in one of three ways each; the four runs together visit them all."""
    from support.localec2_served import Served

    directory = tmp_path / "state"
    served = Served(directory)
    image_id = served.register()
    stock = {path.name for path in served.state.layout.snapshots.iterdir()}
    served.stop()
    at, killed = first + 1, 0
    while run_killed(directory, image_id, at, ("before", "within", "after")[at // 4 % 3]):
        killed += 1
        served = Served(directory)
        try:
            assert_whole(served)
            assert image_id in {image["ImageId"] for image in served.ec2.describe_images()["Images"]}
            remove_everything(served)
            layout = served.state.layout
            assert list(layout.volumes.iterdir()) == []
            assert {path.name for path in layout.snapshots.iterdir()} == stock
            for instance in instances(served):
                served.state.forget(served.state.instances[instance["InstanceId"]])
        finally:
            served.stop()
        at += 4
    assert killed > 5


# A full disk


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """After calling it with n, n more records can be written; with -1, all."""
    room, write = [-1], files.write_atomically

    def limited(path: Path, content: bytes, mode: int = 0o600) -> None:
        if path.parent.parent.name == "records":
            if room[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            room[0] -= 1
        write(path, content, mode)

    monkeypatch.setattr(files, "write_atomically", limited)

    def fill(left: int) -> None:
        room[0] = left

    return fill


def refused() -> Any:
    return pytest.raises(ClientError, match=r"\(InternalError\).*No space left")


def test_a_launch_that_finds_no_room_makes_nothing(served: Served, full: Callable[[int], None]) -> None:
    image_id = served.register()
    arguments: dict[str, Any] = {"ImageId": image_id, "InstanceType": "t3.micro", "ClientToken": "once"}
    subnets = served.ec2.describe_subnets()["Subnets"]
    for left in range(6):
        full(left)
        with refused() as error:
            served.ec2.run_instances(MinCount=3, MaxCount=3, **arguments)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
        full(-1)
        assert instances(served) == []
        assert served.ec2.describe_volumes()["Volumes"] == []
        assert served.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
        assert served.ec2.describe_subnets()["Subnets"] == subnets, "addresses are free again"
    assert list((served.state.layout.records / "instance").iterdir()) == []
    made = served.ec2.run_instances(MinCount=3, MaxCount=3, **arguments)["Instances"]
    assert len(made) == 3, "the same token works once there is room"


def test_an_interface_made_ahead_is_free_again(served: Served, full: Callable[[int], None]) -> None:
    image_id = served.register()
    subnet_id = served.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    made = served.ec2.create_network_interface(SubnetId=subnet_id)["NetworkInterface"]
    interface_id = made["NetworkInterfaceId"]

    def launch() -> list[InstanceTypeDef]:
        first: Any = [{"DeviceIndex": 0, "NetworkInterfaceId": interface_id}]
        return served.ec2.run_instances(
            MinCount=1, MaxCount=1, ImageId=image_id, InstanceType="t3.micro", NetworkInterfaces=first
        )["Instances"]

    for left in range(3):  # of instance, interface and volume
        full(left)
        with refused():
            launch()
        full(-1)
        (shown,) = served.ec2.describe_network_interfaces()["NetworkInterfaces"]
        assert (shown["NetworkInterfaceId"], shown["Status"]) == (interface_id, "available")
        assert shown.get("Attachment") is None
        served.state.write_again()  # as the server does
        kept = served.state.layout.records / "interface" / f"{interface_id}.json"
        assert json.loads(kept.read_text())["attachment"] is None
    (instance,) = launch()
    assert instance["NetworkInterfaces"][0]["NetworkInterfaceId"] == interface_id


def test_what_moto_makes_itself_is_undone_too(served: Served, full: Callable[[int], None]) -> None:
    group_id = served.ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    served.ssm.put_parameter(Name="/x", Value="old", Type="String")
    iam = served.client("iam")
    iam.create_role(RoleName="r", AssumeRolePolicyDocument=TRUST)
    rule: Any = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "10.0.0.0/8"}
    calls: list[Callable[[], Any]] = [
        lambda: served.ec2.import_key_pair(KeyName="k", PublicKeyMaterial=PUBLIC_KEY),
        lambda: served.ec2.create_security_group(GroupName="h", Description="d"),
        lambda: served.ec2.authorize_security_group_ingress(GroupId=group_id, **rule),
        lambda: served.ec2.create_tags(Resources=[group_id], Tags=[{"Key": "a", "Value": "b"}]),
        lambda: served.ssm.put_parameter(Name="/x", Value="new", Overwrite=True),
        lambda: served.ssm.put_parameter(Name="/y", Value="new", Type="String"),
        lambda: served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1),
        lambda: iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=POLICY),
        lambda: iam.create_instance_profile(InstanceProfileName="p"),
    ]

    def picture() -> list[Any]:
        return [
            served.ec2.describe_key_pairs()["KeyPairs"],
            served.ec2.describe_security_groups()["SecurityGroups"],
            served.ssm.get_parameters(Names=["/x", "/y"])["Parameters"],
            served.ec2.describe_volumes()["Volumes"],
            iam.list_role_policies(RoleName="r")["PolicyNames"],
            iam.list_instance_profiles()["InstanceProfiles"],
            sorted(served.state.layout.volumes.iterdir()),
        ]

    before = picture()
    for call in calls:
        full(0)
        with refused():
            call()
        full(-1)
        assert picture() == before
    for call in calls:
        call()


def test_a_stop_that_cannot_be_recorded_does_not_happen(served: Served, full: Callable[[int], None]) -> None:
    made = served.ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1
    )
    ids = [made["Instances"][0]["InstanceId"]]
    until(lambda: all_are(served, ids, "running"))
    full(0)
    with refused():
        served.ec2.stop_instances(InstanceIds=ids)
    assert all_are(served, ids, "running")
    assert not served.machine(ids[0]).ended.is_set()
    full(-1)
    served.ec2.stop_instances(InstanceIds=ids)
    until(lambda: all_are(served, ids, "stopped"))


def test_a_machine_that_ends_while_the_disk_is_full_has_ended(
    served: Served, full: Callable[[int], None]
) -> None:
    made = served.ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1
    )
    ids = [made["Instances"][0]["InstanceId"]]
    until(lambda: all_are(served, ids, "running"))
    full(0)
    served.machine(ids[0]).power_off(guest=True)
    until(lambda: all_are(served, ids, "stopped"))
    path = served.state.layout.records / "instance" / f"{ids[0]}.json"
    assert '"running"' in path.read_text()
    full(-1)
    with served.state.lock:
        served.state.write_again()
    assert '"stopped"' in path.read_text()
