"""Volumes that live as long as a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud, CloudError, error_code, retry_cleanup, undo_on_error
from instant_env.cloud.tags import Role, project_filter, tag_specifications
from instant_env.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import CreateVolumeRequestTypeDef

_TIMEOUT_S = 120.0
#: The highest provisioned rate at which blocks come out of a snapshot, in MiB/s (API_CreateVolume). Without
#: one they come when they are first read, at a rate that is not promised (EBS User Guide, "Initialize Amazon
#: EBS volumes"); 6 MB/s were seen.
_INITIALIZATION_MIB_S = 300
#: Codes of an endpoint that does not take the rate.
_NO_RATE = frozenset(
    {
        "InvalidParameterValue",
        "InvalidParameterCombination",
        "InvalidParameter",
        "UnknownParameter",
        "UnsupportedOperation",
    }
)


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


def _create_fast(cloud: Cloud, body: CreateVolumeRequestTypeDef) -> str:
    """CreateVolume with the highest initialisation rate; without one where that is refused."""
    try:
        fast: CreateVolumeRequestTypeDef = {**body, "VolumeInitializationRate": _INITIALIZATION_MIB_S}
        return cloud.ec2.create_volume(**fast)["VolumeId"]
    except ClientError as error:
        if error_code(error) not in _NO_RATE:
            raise
    return cloud.ec2.create_volume(**body)["VolumeId"]


@contextmanager
def temporary_volume(
    cloud: Cloud, snapshot_id: str, zone: str, *, run_id: str, expires_at: datetime
) -> Iterator[str]:
    """A gp3 volume from a snapshot that is read at once and once; deleted on the way out."""
    name = f"instant-env-audit-{run_id}"

    def delete_unanswered() -> None:
        named: Any = [*project_filter(run=run_id), {"Name": "tag:Name", "Values": [name]}]
        for volume in cloud.ec2.describe_volumes(Filters=named)["Volumes"]:
            _wait(cloud, volume["VolumeId"], "available")
            cloud.ec2.delete_volume(VolumeId=volume["VolumeId"])

    with undo_on_error(delete_unanswered, f"making a volume of {snapshot_id}"):
        body: CreateVolumeRequestTypeDef = {
            "SnapshotId": snapshot_id,
            "AvailabilityZone": zone,
            "VolumeType": "gp3",
            "TagSpecifications": tag_specifications(
                "volume", run_id=run_id, role=Role.VERIFY, name=name, expires_at=expires_at
            ),
        }
        volume_id = _create_fast(cloud, body)
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
