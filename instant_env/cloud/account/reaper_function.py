"""Ends what is past its tag instant-env:expires-at. Lambda runs this file alone, on a schedule.

For accounts that want an expiry to act without anybody calling `clean`. It imports nothing of this project.
Only what carries Project=instant-env is touched, nothing with instant-env:protected, and only some minutes
after its time: the service ends its leases, and machines end themselves. What EC2 still calls in use goes
with a later run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

GRACE = timedelta(minutes=5)
_OURS: Any = [{"Name": "tag:Project", "Values": ["instant-env"]}]
_LIVE: Any = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
_log = logging.getLogger("instant-env-reaper")


def handler(event: Any, context: Any) -> dict[str, int]:  # noqa: ARG001 - Lambda's signature
    """What Lambda calls. The answer counts what was ended and what was refused."""
    _log.setLevel(logging.INFO)
    ended, refused = reap(boto3.client("ec2", region_name=os.environ["AWS_REGION"]), datetime.now(UTC))
    return {"ended": len(ended), "refused": len(refused)}


def reap(ec2: Any, now: datetime) -> tuple[list[str], list[str]]:
    """End everything that is past its time; the ids of what was ended, and of what EC2 refused to end.

    Machines first, as they hold the rest; then images before their snapshots.
    """
    ended: list[str] = []
    refused: list[str] = []
    for look, end in _kinds(ec2):
        for name in [name for name, tags in look() if _is_due(tags, now)]:
            # Once more, and by itself: a lease may have been extended since the listing.
            again = {one: tags for one, tags in look(name) if one == name}
            if name not in again or not _is_due(again[name], now):
                continue
            try:
                end(name)
            except (ClientError, BotoCoreError) as error:
                _log.warning("%s: %s", name, error)
                refused.append(name)
            else:
                _log.info("%s: ended", name)
                ended.append(name)
    return ended, refused


def _is_due(tags: dict[str, str], now: datetime) -> bool:
    """No expiry, or one that cannot be read, is none; any value of the protecting tag but false protects."""
    if tags.get("instant-env:protected", "false").strip().lower() != "false":
        return False
    try:
        text = tags.get("instant-env:expires-at", "")
        expiry = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return False
    return expiry + GRACE <= now


Look = Callable[..., Iterator[tuple[str, dict[str, str]]]]


def _kinds(ec2: Any) -> list[tuple[Look, Callable[[str], Any]]]:
    """For each kind of resource: what lists ours (all, or one of them), and what ends one."""

    def listing(operation: str, key: str, id_key: str, id_filter: str, *filters: Any, **more: Any) -> Look:
        def look(name: str = "") -> Iterator[tuple[str, dict[str, str]]]:
            only: Any = [{"Name": id_filter, "Values": [name]}] if name else []
            answer = getattr(ec2, operation)(Filters=[*_OURS, *filters, *only], **more)
            groups = answer["Reservations"] if key == "Instances" else [answer]
            for one in (one for group in groups for one in group[key]):
                yield (
                    one[id_key],
                    {tag["Key"]: tag["Value"] for tag in one.get("Tags") or one.get("TagSet", ())},
                )

        return look

    free: Any = {"Name": "status", "Values": ["available"]}
    return [
        (
            listing("describe_instances", "Instances", "InstanceId", "instance-id", _LIVE),
            lambda name: ec2.terminate_instances(InstanceIds=[name]),
        ),
        (
            listing("describe_images", "Images", "ImageId", "image-id", Owners=["self"]),
            lambda name: ec2.deregister_image(ImageId=name),
        ),
        (
            listing("describe_snapshots", "Snapshots", "SnapshotId", "snapshot-id", OwnerIds=["self"]),
            lambda name: ec2.delete_snapshot(SnapshotId=name),
        ),
        (
            listing("describe_volumes", "Volumes", "VolumeId", "volume-id", free),
            lambda name: ec2.delete_volume(VolumeId=name),
        ),
        (
            listing("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId",
                    "network-interface-id", free),
            lambda name: ec2.delete_network_interface(NetworkInterfaceId=name),
        ),
        (
            listing("describe_addresses", "Addresses", "AllocationId", "allocation-id"),
            lambda name: ec2.release_address(AllocationId=name),
        ),
        (
            listing("describe_key_pairs", "KeyPairs", "KeyPairId", "key-pair-id"),
            lambda name: ec2.delete_key_pair(KeyPairId=name),
        ),
        (
            listing("describe_security_groups", "SecurityGroups", "GroupId", "group-id"),
            lambda name: ec2.delete_security_group(GroupId=name),
        ),
    ]  # fmt: skip
