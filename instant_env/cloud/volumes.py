"""Volumes that live as long as a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud, CloudError, error_code, retry_cleanup, undo_on_error
from instant_env.cloud.tags import Role, project_filter, tag_specifications
from instant_env.waiting import wait_until

_TIMEOUT_S = 120.0


def _wait(cloud: Cloud, volume_id: str, target: str) -> None:
    state: str = "unknown"

    def is_there() -> bool:
        nonlocal state
        try:
            state = cloud.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]["State"]
        except ClientError as error:
            if error_code(error) != "InvalidVolume.NotFound":
                raise
        return state == target

    if not wait_until(is_there, _TIMEOUT_S, 0.25):
        raise CloudError(f"volume {volume_id} is {state} after {_TIMEOUT_S:.0f} s, wanted {target}")


@contextmanager
def temporary_volume(
    cloud: Cloud, snapshot_id: str, zone: str, *, run_id: str, expires_at: datetime
) -> Iterator[str]:
    """A gp3 volume from a snapshot; deleted on the way out."""
    name = f"instant-env-audit-{run_id}"

    def delete_unanswered() -> None:
        named: Any = [*project_filter(run=run_id), {"Name": "tag:Name", "Values": [name]}]
        for volume in cloud.ec2.describe_volumes(Filters=named)["Volumes"]:
            _wait(cloud, volume["VolumeId"], "available")
            cloud.ec2.delete_volume(VolumeId=volume["VolumeId"])

    with undo_on_error(delete_unanswered, f"making a volume of {snapshot_id}"):
        volume_id = cloud.ec2.create_volume(
            SnapshotId=snapshot_id,
            AvailabilityZone=zone,
            VolumeType="gp3",
            TagSpecifications=tag_specifications(
                "volume", run_id=run_id, role=Role.VERIFY, name=name, expires_at=expires_at
            ),
        )["VolumeId"]
    try:
        _wait(cloud, volume_id, "available")
        yield volume_id
    finally:
        retry_cleanup(
            lambda: cloud.ec2.delete_volume(VolumeId=volume_id), missing_code="InvalidVolume.NotFound"
        )


@contextmanager
def attached(cloud: Cloud, volume_id: str, instance_id: str, device: str) -> Iterator[None]:
    """Attach a volume to a running machine; detached, and free again, on the way out."""
    cloud.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=device)
    try:
        _wait(cloud, volume_id, "in-use")
        yield
    finally:
        retry_cleanup(lambda: cloud.ec2.detach_volume(VolumeId=volume_id), missing_code="IncorrectState")
        retry_cleanup(lambda: _wait(cloud, volume_id, "available"))
