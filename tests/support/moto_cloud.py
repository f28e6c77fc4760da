"""moto in process as a cloud: for what is asked of EC2, and for the services that localec2 has not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from moto import mock_aws

from instant_env.cloud import instances
from instant_env.cloud.instances import LaunchRequest
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, new_run_id, tag_specifications
from instant_env.settings import CloudName, Settings
from support.harness_cloud import mock_session

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # thousands, which nobody asks for here
    session = mock_session()
    with mock_aws():
        yield Cloud(
            name=CloudName.AWS,
            settings=Settings(state_dir=tmp_path),
            ec2=session.client("ec2"),
            ssm=session.client("ssm"),
            instance_connect=session.client("ec2-instance-connect"),
            region="us-east-1",
            ssh_port=22,
            caller_ip_url="http://127.0.0.1:9/",
            accelerator="ec2",
            session=session,
        )


def launch(cloud: Cloud, role: Role = Role.BENCH, expires_at: datetime = LATER, run_id: str = "r1") -> str:
    return instances.launch(cloud, launch_of("ami-12c6146b", role, expires_at, run_id))


def launch_of(
    image_id: str, role: Role = Role.BENCH, expires_at: datetime = LATER, run_id: str = "r1"
) -> LaunchRequest:
    return LaunchRequest(
        image_id=image_id, instance_type="m7i.large", run_id=run_id, role=role, name="n",
        expires_at=expires_at, client_token=new_run_id(),
    )  # fmt: skip


def make_image(cloud: Cloud, recipe: str, tag: bool = True) -> str:
    instance_id = launch(cloud)
    extra = {"recipe": recipe, "arch": "x86_64", "plan-hash": "f" * 64, "login-user": "admin"}
    tags = tag_specifications("image", run_id="r", role=Role.IMAGE, name="i", extra=extra)
    image_id = cloud.ec2.create_image(
        InstanceId=instance_id, Name=f"{recipe}-{new_run_id()}", TagSpecifications=tags if tag else []
    )["ImageId"]
    if tag:  # moto tags the image only
        snapshots = [
            mapping["Ebs"]["SnapshotId"]
            for mapping in cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]["BlockDeviceMappings"]
        ]
        cloud.ec2.create_tags(Resources=snapshots, Tags=tags[0]["Tags"])
    return str(image_id)
