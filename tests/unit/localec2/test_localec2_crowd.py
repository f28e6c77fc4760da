"""Many clients at once: nobody sees an error that one client alone would not, nor half of another's work."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

WRITERS, READERS, ROUNDS = 6, 3, 3


def state_of(ec2: EC2Client, instance_id: str) -> str:
    found = ec2.describe_instances(InstanceIds=[instance_id])
    return found["Reservations"][0]["Instances"][0]["State"]["Name"]


def await_state(ec2: EC2Client, instance_id: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while (found := state_of(ec2, instance_id)) != state:
        assert time.monotonic() < deadline, f"{instance_id} is {found}, not {state}"
        time.sleep(0.01)


def write(ec2: EC2Client, image_id: str, number: int) -> None:
    for turn in range(ROUNDS):
        name = f"w{number}-{turn}"
        group_id = ec2.create_security_group(GroupName=name, Description="d")["GroupId"]
        made = ec2.run_instances(
            ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=2, SecurityGroupIds=[group_id]
        )["Instances"]
        ids = [item["InstanceId"] for item in made]
        ec2.create_tags(Resources=ids, Tags=[{"Key": "Name", "Value": name}])
        for instance_id in ids:
            await_state(ec2, instance_id, "running")
        ec2.stop_instances(InstanceIds=ids[:1])
        await_state(ec2, ids[0], "stopped")
        # The pretended disk cannot be copied, so the image fails; it comes and goes all the same.
        baked = ec2.create_image(InstanceId=ids[0], Name=name)["ImageId"]
        while ec2.describe_images(ImageIds=[baked])["Images"][0]["State"] == "pending":
            time.sleep(0.01)
        ec2.terminate_instances(InstanceIds=ids)
        for instance_id in ids:
            await_state(ec2, instance_id, "terminated")
        ec2.deregister_image(ImageId=baked, DeleteAssociatedSnapshots=True)
        ec2.delete_security_group(GroupId=group_id)


def read(ec2: EC2Client, ended: threading.Event) -> None:
    while not ended.is_set():
        for reservation in ec2.describe_instances()["Reservations"]:
            for item in reservation["Instances"]:
                assert item["PrivateIpAddress"], item
        for volume in ec2.describe_volumes()["Volumes"]:
            assert volume["State"] in ("creating", "available", "in-use"), volume
        ec2.describe_snapshots()
        ec2.describe_images()
        ec2.describe_security_groups()
        ec2.describe_tags()
        ec2.describe_network_interfaces()


@pytest.mark.slow
def test_a_crowd_sees_no_errors_and_leaves_nothing(served: Served) -> None:
    image_id = served.register()
    ended = threading.Event()
    with ThreadPoolExecutor(READERS + WRITERS) as pool:
        readers = [pool.submit(read, served.client("ec2"), ended) for _ in range(READERS)]
        writers = [pool.submit(write, served.client("ec2"), image_id, number) for number in range(WRITERS)]
        wait(writers)
        ended.set()
    assert [error for work in (*writers, *readers) if (error := work.exception())] == []
    assert served.ec2.describe_volumes()["Volumes"] == []
    assert [image["ImageId"] for image in served.ec2.describe_images()["Images"]] == [image_id]
    assert len(served.ec2.describe_snapshots()["Snapshots"]) == 1
    before = served.ec2.describe_instances()["Reservations"]
    assert sum(len(part["Instances"]) for part in before) == 2 * WRITERS * ROUNDS
    served.restart()

    def by_id(reservations: list[Any]) -> dict[str, Any]:
        return {item["InstanceId"]: item for part in reservations for item in part["Instances"]}

    after, earlier = by_id(served.ec2.describe_instances()["Reservations"]), by_id(before)
    assert after.keys() == earlier.keys()
    different = {
        (name, str(item.get(name)), str(after[key].get(name)))
        for key, item in earlier.items()
        for name in item.keys() | after[key].keys()
        if item.get(name) != after[key].get(name)
    }
    assert different == set()
