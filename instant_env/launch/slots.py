"""Slots of a pool in EC2's tags: a process finds the slots that another one, now dead, has filled.

EC2 is the state. A machine of a pool carries ``instant-env:role=pool`` and ``instant-env:pool`` from its
launch on; the rest is written in one call once the fill has proven itself. A slot that is handed out gets
another role, and is no slot any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from instant_env.cloud.handover import KEY_TAG
from instant_env.cloud.instances import address_of
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PREFIX, Role, expired, project_filter, read_tags
from instant_env.launch.techniques.base import PoolSlot
from instant_env.user_data import format_time

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

#: When the fill had proven itself, RFC 3339 in UTC.
READY_AT = f"{PREFIX}ready-at"
#: The boot id of the system that proved it.
BOOT_ID = f"{PREFIX}boot-id"
#: In which state it waits: ``running``, or ``stopped`` (hibernated ones, too). In another state somebody has
#: started it or it has ended, and it is no slot.
READY_STATE = f"{PREFIX}ready-state"
#: DescribeInstances' largest page.
_PAGE = 1000


def mark_ready(cloud: Cloud, slot: PoolSlot, now: datetime | None = None) -> None:
    """Write into the machine's tags that its fill has proven itself. botocore's errors are passed on."""
    state = "running" if slot.runs else "stopped"
    tags = {READY_AT: format_time(now or datetime.now(UTC)), BOOT_ID: slot.boot_id, READY_STATE: state}
    cloud.ec2.create_tags(
        Resources=[slot.instance_id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
    )


def mark_handed_out(cloud: Cloud, slot: PoolSlot, role: Role, expires_at: datetime) -> None:
    """Give the slot's machine the role ``lease`` or ``environment``, with an expiry: one call, after which it
    is not found as a slot and `clean` leaves it. botocore's errors are passed on."""
    tags = {f"{PREFIX}role": role.value, f"{PREFIX}expires-at": format_time(expires_at)}
    cloud.ec2.create_tags(
        Resources=[slot.instance_id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
    )


def adopt(
    cloud: Cloud,
    pool: str,
    *,
    page_size: int = _PAGE,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[PoolSlot]:
    """The ready slots of a pool, oldest first, from EC2's tags alone. botocore's errors are passed on.

    Left out: machines whose fill has not proven itself, that have expired, that were handed out (by role, or
    by a key in their tags), and those that are not in the state in which they were ready.
    """
    filters: list[Any] = [
        *project_filter(role=Role.POOL.value, pool=pool),
        {"Name": "instance-state-name", "Values": ["running", "stopped"]},
        {"Name": "tag-key", "Values": [READY_AT]},
    ]
    pages = cloud.ec2.get_paginator("describe_instances").paginate(
        Filters=filters, PaginationConfig={"PageSize": page_size}
    )
    private = cloud.settings.ssh_private
    machines = (i for page in pages for r in page["Reservations"] for i in r["Instances"])
    slots = (_slot_of(machine, now(), private=private) for machine in machines)
    return sorted((slot for slot in slots if slot is not None), key=lambda slot: slot.filled_ns)


def _slot_of(machine: InstanceTypeDef, now: datetime, *, private: bool) -> PoolSlot | None:
    tags, state = read_tags(machine.get("Tags")), machine["State"]["Name"]
    if expired(tags, now) or KEY_TAG in tags or tags.get(READY_STATE) != state:
        return None
    try:
        ready_at = datetime.strptime(tags[READY_AT], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    age_ns = round((now - ready_at).total_seconds() * 1e9)
    return PoolSlot(
        instance_id=machine["InstanceId"],
        address=address_of(machine, private=private) if state == "running" else "",
        boot_id=tags.get(BOOT_ID, ""),
        filled_ns=time.monotonic_ns() - age_ns,
    )
