"""Remove what `clean` lists, in order of dependency, again while something changes.

The end of a machine frees its interfaces and volumes a little later, an interface its address and its group.
EC2 refuses to delete what is in use, so what was refused is tried again until nothing is left of the plan, or
nothing has moved for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud import instances
from instant_env.cloud.copies import delete_copy
from instant_env.cloud.holds import own_hold
from instant_env.cloud.images import deregister
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import PROJECT, read_tags
from instant_env.progress import Progress

#: EC2 counts a dying machine as a user of its interfaces and groups for about this long.
_PATIENCE_S = 60.0
_PAUSE_S = 0.5

#: What EC2 answers while something else uses the resource. It has no code of its own for an interface that a
#: machine has (InvalidParameterValue) or that detaches (OperationNotPermitted).
_IN_USE = frozenset({
    "DependencyViolation", "VolumeInUse", "IncorrectState", "InvalidGroup.InUse", "InvalidIPAddress.InUse",
    "InvalidNetworkInterface.InUse", "InvalidSnapshot.InUse",
})  # fmt: skip
_INTERFACE_IN_USE = frozenset({"InvalidParameterValue", "OperationNotPermitted"})


@dataclass(frozen=True)
class Removal:
    """One thing to remove, with the reason a person reads."""

    kind: str
    id: str
    name: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a plan: the rows that went, and those that did not, with the reasons."""

    removed: list[Removal]
    left_alone: list[tuple[Removal, str]]  # not to be removed any more when their turn came
    failures: list[tuple[Removal, str]]

    def sentence(self) -> str:
        """What a person reads about all of it."""
        total = len(self.removed) + len(self.left_alone) + len(self.failures)
        counts = [f"removed {len(self.removed)} of {total}"]
        if self.left_alone:
            counts.append(f"{len(self.left_alone)} left alone")
        if self.failures:
            counts.append(f"{len(self.failures)} still there")
        return ", ".join(counts)


#: How each kind is removed, in the order of removal: users come before what they use.
_REMOVERS: dict[str, Callable[[Cloud, Removal], object]] = {
    "instance": lambda cloud, row: instances.terminate(cloud, [row.id]),
    "network-interface": lambda cloud, row: cloud.ec2.delete_network_interface(NetworkInterfaceId=row.id),
    "elastic-ip": lambda cloud, row: cloud.ec2.release_address(AllocationId=row.id),
    "volume": lambda cloud, row: cloud.ec2.delete_volume(VolumeId=row.id),
    "image": lambda cloud, row: deregister(cloud, row.id),
    "image-copy": lambda cloud, row: delete_copy(cloud, row.id),
    "snapshot": lambda cloud, row: cloud.ec2.delete_snapshot(SnapshotId=row.id),
    "security-group": lambda cloud, row: cloud.ec2.delete_security_group(GroupId=row.id),
    "key-pair": lambda cloud, row: cloud.ec2.delete_key_pair(KeyName=row.name),
}
#: What there is to remove, as `--what` has it.
KINDS = frozenset(_REMOVERS)
_ORDER = {kind: place for place, kind in enumerate(_REMOVERS)}


def in_order(removals: Sequence[Removal]) -> list[Removal]:
    """Sorted so that nothing comes before what uses it."""
    return sorted(removals, key=lambda removal: _ORDER[removal.kind])


def remove(
    cloud: Cloud,
    removals: Sequence[Removal],
    progress: Progress,
    *,
    patience_s: float = _PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Remove these; go on after a failure.

    What is in use is tried again until nothing has moved for ``patience_s``.
    """
    outcome = Outcome([], [], [])
    pending, give_up_at = in_order(removals), clock() + patience_s
    while True:
        in_use: list[tuple[Removal, str]] = []
        for removal in pending:
            try:
                why = _remove_one(cloud, removal, progress)
            except (CloudError, ClientError, BotoCoreError) as error:
                (in_use if _is_in_use(removal, error) else outcome.failures).append(
                    (removal, _reason(removal, error))
                )
            else:
                if why:
                    outcome.left_alone.append((removal, why))
                else:
                    outcome.removed.append(removal)
        if len(in_use) < len(pending):
            give_up_at = clock() + patience_s
        if not in_use or clock() >= give_up_at:
            return replace(outcome, failures=outcome.failures + in_use)
        pending = [removal for removal, _ in in_use]
        sleep(_PAUSE_S)


def _remove_one(cloud: Cloud, removal: Removal, progress: Progress) -> str:
    """Why it was left alone; empty when it is gone now."""
    if why := _left_alone(cloud, removal.id):
        progress(f"left alone: {removal.kind} {removal.id}: {why}")
        return why
    try:
        _REMOVERS[removal.kind](cloud, removal)
    except ClientError as error:
        if not error_code(error).endswith("NotFound"):
            raise
    progress(f"removed {removal.kind} {removal.id} ({removal.reason})")
    return ""


def _left_alone(cloud: Cloud, resource_id: str) -> str:
    """Why it must stay after all. Its tags are read once more right before the removal: a person may have
    looked at the table for an hour, and a pool's machine may be somebody's lease by now."""
    filters: Any = [{"Name": "resource-id", "Values": [resource_id]}]
    tags = read_tags(cloud.ec2.describe_tags(Filters=filters)["Tags"])
    if tags.get("Project") != PROJECT:  # what is gone has no tags either
        return "it is gone, or not ours any more"
    return own_hold(tags, datetime.now(UTC))


def _is_in_use(removal: Removal, error: Exception) -> bool:
    cause = error.__cause__ if isinstance(error, CloudError) else error
    code = error_code(cause) if isinstance(cause, ClientError) else ""
    return code in _IN_USE or (removal.kind == "network-interface" and code in _INTERFACE_IN_USE)


def _reason(removal: Removal, error: Exception) -> str:
    if isinstance(error, ClientError):
        error = cloud_error(error, f"removing {removal.id}")
    return error.message if isinstance(error, CloudError) else str(error)
