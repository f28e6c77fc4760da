"""What may go, and why: old AMIs with their snapshots, and what dead and expired runs left behind.

Nothing without our Project tag is ever looked at: every listing filters by it, and every removal goes by the
ids those listings gave.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from botocore.exceptions import ClientError

from instant_env.cloud import instances, runs
from instant_env.cloud.copies import delete_copy
from instant_env.cloud.images import deregister, list_baked
from instant_env.cloud.interfaces import delete_public_interface
from instant_env.cloud.network import delete_group
from instant_env.cloud.session import Cloud, CloudError, Progress, cloud_error, error_code
from instant_env.cloud.tags import PREFIX, PROJECT_FILTER, Role, expired, project_filter, read_tags
from instant_env.errors import UsageError

#: Machines these roles launch live minutes; images have no expiry.
_MACHINE_ROLES = (Role.BUILDER, Role.VERIFY, Role.BENCH, Role.POOL)
#: States of an AMI that nothing can be launched from any more (API_Image).
_BROKEN = ("failed", "invalid", "error")


@dataclass(frozen=True)
class Removal:
    """One thing to remove, with the reason a person reads."""

    kind: str
    id: str
    name: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class _DeadRuns:
    """Runs that nobody carries on, whatever the expiry of their things says."""

    def __init__(self, cloud: Cloud) -> None:
        self.lost: set[str] = set()  # the cloud lost a machine of theirs
        self._settings = cloud.settings

    def why(self, run_id: str) -> str:
        """Why this run is dead; empty when nobody knows that it is."""
        if run_id in self.lost:
            return "its run has lost its machine"
        return "its run is over" if runs.is_over(self._settings, run_id) else ""


def _latest_ids(cloud: Cloud) -> set[str]:
    """AMI ids that an SSM parameter of ours points to."""
    pages = cloud.ssm.get_paginator("get_parameters_by_path").paginate(Path="/instant-env", Recursive=True)
    return {parameter["Value"] for page in pages for parameter in page["Parameters"]}


def _old_images(cloud: Cloud, keep: int, now: datetime, dead_runs: _DeadRuns) -> list[Removal]:
    groups = defaultdict(list)
    broken = []
    for image in list_baked(cloud):
        if image.state in _BROKEN:
            broken.append(Removal("image", image.id, image.name, f"{image.state}: its copy was cut short"))
        elif image.expires_at is not None and (image.expires_at <= now or dead_runs.why(image.run_id)):
            broken.append(Removal("image", image.id, image.name, "never verified, and its run is over"))
        if image.state != "available" or not image.verified:
            continue
        groups[image.recipe, image.arch].append(image)
    latest = _latest_ids(cloud)
    return broken + [
        Removal("image", image.id, image.name, f"older than the newest {keep} of {recipe} {arch}")
        for (recipe, arch), images in sorted(groups.items())
        for image in images[keep:]
        if image.id not in latest
    ]


def _expired_machines(cloud: Cloud, now: datetime, dead_runs: _DeadRuns) -> list[Removal]:
    """Machines past their time, those of dead runs, and those that the cloud lost: their runs are dead."""
    pages = cloud.ec2.get_paginator("describe_instances").paginate(Filters=PROJECT_FILTER)
    removals = []
    for page in pages:
        for instance in (i for r in page["Reservations"] for i in r["Instances"]):
            tags = read_tags(instance.get("Tags"))
            if instance["State"]["Name"] in ("terminated", "shutting-down"):
                continue
            if (role := tags.get(f"{PREFIX}role")) not in _MACHINE_ROLES:
                continue
            # Nobody of ours starts a stopped machine again, so its run is over, whatever its expiry says.
            lost = instance.get("StateReason", {}).get("Code") == "Server.InternalError"
            if lost and instance["State"]["Name"] == "stopped":
                dead_runs.lost |= {tags[f"{PREFIX}run"]} if f"{PREFIX}run" in tags else set()
                reason = f"{role} lost by the cloud (Server.InternalError)"
                removals.append(Removal("instance", instance["InstanceId"], tags.get("Name", ""), reason))
            elif expired(tags, now):
                reason = f"{role} expired at {tags[f'{PREFIX}expires-at']}"
                removals.append(Removal("instance", instance["InstanceId"], tags.get("Name", ""), reason))
            elif why := dead_runs.why(
                tags.get(f"{PREFIX}run", "")
            ):  # its key was in that process's memory alone
                reason = f"{role}: {why}"
                removals.append(Removal("instance", instance["InstanceId"], tags.get("Name", ""), reason))
    return removals


def _expired_leftovers(cloud: Cloud, now: datetime, dead_runs: _DeadRuns) -> list[Removal]:
    """Volumes, security groups and key pairs of runs that never came to remove them."""

    def reason_of(tags: dict[str, str]) -> str:
        return "expired" if expired(tags, now) else dead_runs.why(tags.get(f"{PREFIX}run", ""))

    removals = []
    for page in cloud.ec2.get_paginator("describe_volumes").paginate(Filters=PROJECT_FILTER):
        for volume in page["Volumes"]:
            tags = read_tags(volume.get("Tags"))
            if volume["State"] == "available" and (reason := reason_of(tags)):
                name = tags.get("Name", "")
                removals.append(Removal("volume", volume["VolumeId"], name, f"{reason}, unattached"))
    for interfaces in cloud.ec2.get_paginator("describe_network_interfaces").paginate(Filters=PROJECT_FILTER):
        for interface in interfaces["NetworkInterfaces"]:
            tags = read_tags(interface.get("TagSet"))
            if interface.get("Status") == "available" and (reason := reason_of(tags)):
                name = tags.get("Name", "")
                removals.append(Removal("network-interface", interface["NetworkInterfaceId"], name, reason))
    for image in cloud.ec2.describe_images(Owners=["self"], Filters=project_filter(role=Role.POOL.value))[
        "Images"
    ]:
        if reason := reason_of(read_tags(image.get("Tags"))):
            name = f"{image.get('Name', '')}"
            removals.append(Removal("image-copy", image["ImageId"], name, reason))
    for address in cloud.ec2.describe_addresses(Filters=PROJECT_FILTER)["Addresses"]:
        tags = read_tags(address.get("Tags"))
        if reason := reason_of(tags):
            name = tags.get("Name", "")
            removals.append(Removal("elastic-ip", address["AllocationId"], name, reason))
    for groups in cloud.ec2.get_paginator("describe_security_groups").paginate(Filters=PROJECT_FILTER):
        for group in groups["SecurityGroups"]:
            tags = read_tags(group.get("Tags"))
            if reason := reason_of(tags):
                removals.append(Removal("security-group", group["GroupId"], group["GroupName"], reason))
    for key in cloud.ec2.describe_key_pairs(Filters=PROJECT_FILTER)["KeyPairs"]:
        if reason := reason_of(read_tags(key.get("Tags"))):
            removals.append(Removal("key-pair", key["KeyPairId"], key["KeyName"], reason))
    return removals


def find_removals(cloud: Cloud, *, keep: int, now: datetime | None = None) -> list[Removal]:
    """Everything that may go, machines first (groups and volumes depend on them).

    Raises UsageError for a negative ``keep``, CloudError when listing fails.
    """
    if keep < 0:
        raise UsageError(
            f"--keep {keep} makes no sense", hint="0 removes every AMI that `latest` does not name"
        )
    now = now or datetime.now(UTC)
    dead_runs = _DeadRuns(cloud)
    try:
        return [
            *_expired_machines(cloud, now, dead_runs),
            *_old_images(cloud, keep, now, dead_runs),
            *_expired_leftovers(cloud, now, dead_runs),
        ]
    except ClientError as error:
        raise cloud_error(error, "listing what is ours") from error


def _remove_image(cloud: Cloud, removal: Removal) -> None:
    deregister(cloud, removal.id)


def _remove_instance(cloud: Cloud, removal: Removal) -> None:
    instances.terminate(cloud, [removal.id])


def _remove_volume(cloud: Cloud, removal: Removal) -> None:
    cloud.ec2.delete_volume(VolumeId=removal.id)


def _remove_group(cloud: Cloud, removal: Removal) -> None:
    delete_group(cloud, removal.id)


def _remove_key(cloud: Cloud, removal: Removal) -> None:
    cloud.ec2.delete_key_pair(KeyName=removal.name)


def _remove_copy(cloud: Cloud, removal: Removal) -> None:
    delete_copy(cloud, removal.id)


def _remove_interface(cloud: Cloud, removal: Removal) -> None:
    delete_public_interface(cloud, removal.id, "")


def _remove_address(cloud: Cloud, removal: Removal) -> None:
    delete_public_interface(cloud, "", removal.id)


_REMOVERS: dict[str, Callable[[Cloud, Removal], None]] = {
    "instance": _remove_instance,
    "image": _remove_image,
    "volume": _remove_volume,
    "image-copy": _remove_copy,
    "network-interface": _remove_interface,
    "elastic-ip": _remove_address,
    "security-group": _remove_group,
    "key-pair": _remove_key,
}


def remove(cloud: Cloud, removals: list[Removal], progress: Progress) -> list[tuple[Removal, str]]:
    """Remove what was found; go on after a failure; return the failures with their reasons."""
    failures = []
    for removal in removals:
        try:
            _REMOVERS[removal.kind](cloud, removal)
            progress(f"removed {removal.kind} {removal.id} ({removal.reason})")
        except CloudError as error:
            failures.append((removal, error.message))
        except ClientError as error:
            if not error_code(error).endswith("NotFound"):
                failures.append((removal, cloud_error(error, f"removing {removal.id}").message))
    return failures
