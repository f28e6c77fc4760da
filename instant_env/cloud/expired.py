"""Machines of ours that are past their time: what each verb says at its start, and `invoke clean` ends.

Each machine has a timer of its own. It can still outlive its tag: stopped, when its timer stands still and
its volumes cost money; or with an image that does not boot, in which no timer runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PREFIX, PROJECT_FILTER, expired, read_tags

_LIVE: Any = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
#: More are counted.
_NAMED_MOST = 3


def warning(cloud: Cloud, now: datetime | None = None) -> str:
    """A line about the machines that are past their time, or an empty text. One call; a caller who may not
    make it is told nothing."""
    try:
        answer = cloud.ec2.describe_instances(Filters=[*PROJECT_FILTER, _LIVE])
    except (ClientError, BotoCoreError):
        return ""
    machines = [machine for reservation in answer["Reservations"] for machine in reservation["Instances"]]
    return _line(machines, now or datetime.now(UTC))


def _line(machines: Sequence[Any], now: datetime) -> str:
    late = []
    for machine in machines:
        tags = read_tags(machine.get("Tags"))
        if expired(tags, now):
            role, end = tags.get(f"{PREFIX}role", "no role"), tags[f"{PREFIX}expires-at"]
            late.append(f"{machine['InstanceId']} ({role}, {machine['State']['Name']}, until {end})")
    if not late:
        return ""
    more = f" and {len(late) - _NAMED_MOST} more" if len(late) > _NAMED_MOST else ""
    noun = "machine is" if len(late) == 1 else "machines are"
    named = ", ".join(late[:_NAMED_MOST])
    return f"warning: {len(late)} {noun} past the time that the tags say: {named}{more}; run: invoke clean"
