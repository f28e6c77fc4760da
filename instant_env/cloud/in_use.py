"""Machines that are somebody's, and a word in their tags when a person ends them all the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from instant_env.cloud.holds import USED, own_hold
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PREFIX, PROJECT_FILTER, read_tags

#: On a machine that somebody ends on purpose: who.
ENDED_BY, OPERATOR = f"{PREFIX}ended-by", "operator"


@dataclass(frozen=True)
class InUse:
    """A machine that is somebody's. ``why``: as :func:`own_hold` says it."""

    instance_id: str
    why: str


def machines_in_use(cloud: Cloud, now: datetime) -> list[InUse]:
    """Machines of this account that are leased or environments, and have not ended. botocore's errors are
    passed on."""
    filters: Any = [*PROJECT_FILTER, {"Name": f"tag:{PREFIX}role", "Values": [role.value for role in USED]}]
    pages = cloud.ec2.get_paginator("describe_instances").paginate(Filters=filters)
    machines = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
    return [
        InUse(machine["InstanceId"], why)
        for machine in machines
        if machine["State"]["Name"] not in ("terminated", "shutting-down")
        and (why := own_hold(read_tags(machine.get("Tags")), now))
    ]


def say_ended_by_operator(cloud: Cloud, machines: Iterable[InUse]) -> None:
    """Write into the machines' tags that a person is about to end them, for whoever keeps a record of them.
    botocore's errors are passed on."""
    ids = [machine.instance_id for machine in machines]
    cloud.ec2.create_tags(Resources=ids, Tags=[{"Key": ENDED_BY, "Value": OPERATOR}])
