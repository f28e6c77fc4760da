"""`clean` against localec2: protected and disabled AMIs, which moto does not know, and no auto-scaling."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from instant_env.cloud import janitor
from instant_env.cloud.janitor import Policy, survey
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, tag_list
from instant_env.settings import CloudName, Settings

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

NOW = datetime.now(UTC) + timedelta(minutes=1)


def cloud_of(served: Served, directory: Path) -> Cloud:
    server = served.state.server
    session = boto3.Session(server.access_key_id, server.secret_access_key, region_name="us-east-1")
    return Cloud(
        name=CloudName.LOCAL, settings=Settings(state_dir=directory), ec2=served.ec2, ssm=served.ssm,
        instance_connect=served.client("ec2-instance-connect"), region="us-east-1", ssh_port=22,
        caller_ip_url="", accelerator="tcg", session=session, endpoint_url=served.server.url,
    )  # fmt: skip


def own(served: Served, name: str) -> str:
    tags: Any = tag_list("r", Role.IMAGE, name=name, extra={"recipe": "minimal"})
    image_id = served.ec2.copy_image(
        Name=name, SourceImageId=served.register(), SourceRegion="us-east-1",
        TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")],
    )["ImageId"]  # fmt: skip
    while served.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"] != "available":
        time.sleep(0.02)
    return image_id


def test_protected_and_disabled_images_stay_with_their_snapshots(served: Served, tmp_path: Path) -> None:
    cloud = cloud_of(served, tmp_path)
    free, protected, disabled, launched = (own(served, f"image-{n}") for n in range(4))
    served.ec2.enable_image_deregistration_protection(ImageId=protected)
    served.ec2.disable_image(ImageId=disabled)
    instance = served.ec2.run_instances(ImageId=launched, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = instance["Instances"][0]["InstanceId"]
    found = survey(cloud, Policy(keep=0, everything=True), NOW)
    assert [(row.kind, row.id) for row in found.removals] == [("image", free)]
    reasons = {row.id: row.reason for row in found.kept}
    assert reasons[protected] == "protected from deregistration"
    assert reasons[launched].startswith(f"instance {instance_id} (")
    (snapshot,) = served.ec2.describe_images(ImageIds=[free])["Images"][0]["BlockDeviceMappings"]
    assert janitor.remove(cloud, found.removals, lambda _: None) == []
    left = {item["SnapshotId"] for item in served.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    assert snapshot["Ebs"]["SnapshotId"] not in left
    assert len(left) == 3
    assert survey(cloud, Policy(keep=0, everything=True), NOW).removals == []


def test_what_a_dead_run_left_of_every_kind_goes(served: Served, tmp_path: Path) -> None:
    cloud, ec2 = cloud_of(served, tmp_path), served.ec2
    tags = tag_list("r", Role.BENCH, name="n", expires_at=NOW - timedelta(hours=1))

    def of(kind: str) -> Any:
        return [{"ResourceType": kind, "Tags": tags}]

    volume = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", TagSpecifications=of("volume"))[
        "VolumeId"
    ]
    snapshot = ec2.create_snapshot(VolumeId=volume, TagSpecifications=of("snapshot"))["SnapshotId"]
    while ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"] != "completed":
        time.sleep(0.02)
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_security_group(GroupName="g", Description="g", TagSpecifications=of("security-group"))
    ec2.create_key_pair(KeyName="k", TagSpecifications=of("key-pair"))
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=of("network-interface"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=of("elastic-ip"))
    upload = cloud.client("ebs").start_snapshot(VolumeSize=1, Tags=tags)["SnapshotId"]
    ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        TagSpecifications=of("instance"),
    )  # fmt: skip
    found = survey(cloud, Policy(), NOW)
    kinds = sorted(row.kind for row in found.removals)
    assert kinds == sorted([*(janitor.KINDS - {"image", "image-copy"}), "snapshot"])
    assert upload in {row.id for row in found.removals}
    told: list[str] = []
    assert janitor.remove(cloud, found.removals, told.append) == []
    assert [line for line in told if not line.startswith("removed ")] == []
    assert survey(cloud, Policy(), NOW).removals == []
