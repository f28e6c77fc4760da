"""The end of the road: what was baked and what was left behind goes, and nothing else. After test_ssh.py."""

from __future__ import annotations

import time

import pytest
from support.front import NOTHING, Front

pytest_plugins = ("support.front",)
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def test_clean_says_first_and_takes_only_what_is_old_or_expired(front: Front, custom_init: str) -> None:
    """A second custom-init AMI, made from a bench machine that somebody left behind."""
    assert front.json("clean")["found"] == []
    (first,) = front.json("amis", "--recipe", "custom-init")["images"]
    assert first["ami"] == custom_init
    ours = "{Key=Project,Value=instant-env}"
    expired = "{Key=instant-env:role,Value=bench},{Key=instant-env:expires-at,Value=2020-01-01T00:00:00Z}"
    (machine,) = front.aws(
        "ec2", "run-instances", "--image-id", first["ami"], "--instance-type", "m7i.large",
        "--tag-specifications", f"ResourceType=instance,Tags=[{ours},{expired}]",
    )["Instances"]  # fmt: skip
    stop = ["ec2", "stop-instances", "--force", "--instance-ids", machine["InstanceId"]]
    while front.aws(*stop)["StoppingInstances"][0]["CurrentState"]["Name"] != "stopped":
        time.sleep(0.5)
    tags = "{Key=instant-env:role,Value=image},{Key=instant-env:recipe,Value=custom-init}"
    second = front.aws(
        "ec2", "create-image", "--instance-id", machine["InstanceId"], "--name", "second",
        "--tag-specifications", f"ResourceType=image,Tags=[{ours},{tags}]",
    )["ImageId"]  # fmt: skip
    while front.aws("ec2", "describe-images", "--image-ids", second)["Images"][0]["State"] == "pending":
        time.sleep(0.5)

    # The older one is `latest`, so it stays; the machine may go, and off a terminal nothing goes unasked.
    found = front.json("clean", "--keep", "1")
    assert [(row["kind"], row["id"]) for row in found["found"]] == [("instance", machine["InstanceId"])]
    assert not found["removed"]
    assert front.leftovers()["instances"] == [machine["InstanceId"]]

    parameter = "/instant-env/custom-init/x86_64/latest"
    front.aws(
        "ssm", "put-parameter", "--name", parameter, "--value", second, "--type", "String", "--overwrite"
    )
    found = front.json("clean", "--keep", "1", "--yes")
    assert {(row["kind"], row["id"]) for row in found["found"]} == {
        ("instance", machine["InstanceId"]),
        ("image", first["ami"]),
    }
    assert found["failures"] == []
    assert [image["ami"] for image in front.json("amis", "--recipe", "custom-init")["images"]] == [second]
    snapshots = front.aws("ec2", "describe-snapshots", "--owner-ids", "self")["Snapshots"]
    assert not {snapshot["SnapshotId"] for snapshot in snapshots} & set(first["snapshots"])
    assert front.leftovers() == NOTHING
