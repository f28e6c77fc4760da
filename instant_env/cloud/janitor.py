"""What may go, and why: old AMIs with their snapshots, and what dead and expired runs left behind.

Nothing without our Project tag is ever looked at: every listing filters by it, and every removal goes by the
ids those listings gave.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud import instances, references, runs
from instant_env.cloud.copies import delete_copy
from instant_env.cloud.images import BakedImage, deregister, list_baked
from instant_env.cloud.interfaces import delete_public_interface
from instant_env.cloud.network import delete_group
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import (
    PREFIX,
    PROJECT,
    PROJECT_FILTER,
    Role,
    expired,
    expiry,
    project_filter,
    read_tags,
)
from instant_env.errors import UsageError
from instant_env.progress import Progress

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import ImageTypeDef

#: Machines these roles launch live minutes; images have no expiry.
_MACHINE_ROLES = (Role.BUILDER, Role.VERIFY, Role.BENCH, Role.POOL)
#: States of an AMI that nothing can be launched from any more (API_Image).
_BROKEN = ("failed", "invalid", "error")
#: What there is to remove, as `--what` has it.
KINDS = frozenset(
    {
        "instance", "image", "image-copy", "snapshot", "volume", "network-interface", "elastic-ip",
        "security-group", "key-pair",
    }
)  # fmt: skip


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
class Policy:
    """What may go. ``everything``: also what has neither expired nor a run that is known to be dead."""

    keep: int = 3
    min_age: timedelta = timedelta(0)
    kinds: frozenset[str] = KINDS
    everything: bool = False

    def check(self) -> None:
        """Raises UsageError."""
        if self.keep < 0:
            raise UsageError(
                f"--keep {self.keep} makes no sense", hint="0 removes every AMI that nothing refers to"
            )
        if self.min_age < timedelta(0):
            raise UsageError("a negative --min-age-h makes no sense", hint="0 is the default")
        if unknown := self.kinds - KINDS:
            raise UsageError(
                f"--what {', '.join(sorted(unknown))}: no such kind",
                hint=f"there are: {', '.join(sorted(KINDS))}",
            )


def policy(*, keep: int, min_age_h: int, what: str, everything: bool) -> Policy:
    """A policy as the front door has it. Raises UsageError."""
    kinds = frozenset(kind for text in what.split(",") if (kind := text.strip())) or KINDS
    found = Policy(keep, timedelta(hours=min_age_h), kinds, everything)
    found.check()
    return found


@dataclass(frozen=True)
class Survey:
    """What may go, and the AMIs that would but for the reasons that their rows have."""

    removals: list[Removal]
    kept: list[Removal]


ReasonOf = Callable[[Mapping[str, str]], str]


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


def _images(
    cloud: Cloud, policy: Policy, now: datetime, dead_runs: _DeadRuns, ending: set[str]
) -> tuple[list[Removal], list[Removal]]:
    """AMIs of ours that may go, and those that would but for somebody or something that keeps them."""
    groups = defaultdict(list)
    wanted: dict[str, str] = {}  # AMI -> why it may go
    baked = list_baked(cloud)
    for image in baked:
        if image.state in _BROKEN:
            wanted[image.id] = f"{image.state}: its copy was cut short"
        elif image.expires_at is not None and (image.expires_at <= now or dead_runs.why(image.run_id)):
            wanted[image.id] = "never verified, and its run is over"
        if image.state == "available" and image.verified:
            groups[image.recipe, image.arch].append(image)
    for (recipe, arch), images in sorted(groups.items()):
        for image in images[policy.keep :]:
            wanted[image.id] = f"older than the newest {policy.keep} of {recipe} {arch}"
    keepers = _keepers(cloud, policy, now, baked, wanted, ending)
    removals: list[Removal] = []
    kept: list[Removal] = []
    for image in baked:
        if image.id in wanted:
            why = "; ".join(keepers.get(image.id, []))
            row = Removal("image", image.id, image.name, why or wanted[image.id])
            (kept if why else removals).append(row)
    return removals, kept


def _keepers(
    cloud: Cloud, policy: Policy, now: datetime, baked: Sequence[BakedImage], wanted: Collection[str],
    ending: set[str],
) -> dict[str, list[str]]:  # fmt: skip
    """What keeps AMIs that would go otherwise: the reasons of each."""
    if not wanted:
        return {}
    found: defaultdict[str, list[str]] = defaultdict(list)
    latest, protected = _latest_ids(cloud), _protected_ids(cloud)
    for image in baked:
        if image.id in latest:
            found[image.id].append("`latest` points to it")
        if image.id in protected:
            found[image.id].append("protected from deregistration")
        if policy.min_age and now - image.created < policy.min_age:
            found[image.id].append(f"younger than {policy.min_age.total_seconds() / 3600:g} h")
        if image.base_ami in wanted and image.base_ami != image.id:
            found[image.base_ami].append(f"image {image.id} was baked from it")
    for image_id, reasons in references.find(cloud, wanted, ending=ending).items():
        found[image_id] += [
            reason for reason in reasons if not (image_id in latest and "/instant-env/" in reason)
        ]
    return found


def _own_images(cloud: Cloud) -> Iterator[ImageTypeDef]:
    """Every AMI of this account, of the project or not, disabled ones too."""
    pages = cloud.ec2.get_paginator("describe_images").paginate(Owners=["self"], IncludeDisabled=True)
    for page in pages:
        yield from page["Images"]


def _protected_ids(cloud: Cloud) -> set[str]:
    return {
        image["ImageId"]
        for image in _own_images(cloud)
        if image.get("DeregistrationProtection", "disabled") != "disabled"
    }


def _orphan_snapshots(cloud: Cloud, reason_of: ReasonOf) -> list[Removal]:
    """Snapshots of ours that no AMI is made of: uploads and bakes cut short, and deregistrations."""
    used = {
        mapping.get("Ebs", {}).get("SnapshotId")
        for image in _own_images(cloud)
        for mapping in image.get("BlockDeviceMappings", [])
    }
    removals = []
    pages = cloud.ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=PROJECT_FILTER)
    for snapshot in (snapshot for page in pages for snapshot in page["Snapshots"]):
        tags = read_tags(snapshot.get("Tags"))
        reason = reason_of(tags)
        if not reason and tags.get(f"{PREFIX}role") == Role.IMAGE and expiry(tags) is None:
            reason = "its image is gone"  # while an image is made, its snapshots have an expiry
        if snapshot["SnapshotId"] not in used and reason:
            name = tags.get("Name", "")
            removals.append(Removal("snapshot", snapshot["SnapshotId"], name, f"{reason}, no AMI has it"))
    return removals


def _expired_machines(cloud: Cloud, now: datetime, dead_runs: _DeadRuns, everything: bool) -> list[Removal]:
    """Machines past their time, those of dead runs, and those that the cloud lost: their runs are dead."""
    pages = cloud.ec2.get_paginator("describe_instances").paginate(Filters=PROJECT_FILTER)
    removals = []
    for page in pages:
        for instance in (i for r in page["Reservations"] for i in r["Instances"]):
            tags = read_tags(instance.get("Tags"))
            if instance["State"]["Name"] in ("terminated", "shutting-down"):
                continue
            if (role := tags.get(f"{PREFIX}role")) not in _MACHINE_ROLES and not everything:
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
            elif everything:
                reason = f"{role or 'no role'}: all were asked for"
                removals.append(Removal("instance", instance["InstanceId"], tags.get("Name", ""), reason))
    return removals


def _leftovers(cloud: Cloud, reason_of: ReasonOf) -> list[Removal]:
    """Volumes, security groups and key pairs of runs that never came to remove them."""
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
    pool = project_filter(role=Role.POOL.value)
    copies = cloud.ec2.get_paginator("describe_images").paginate(Owners=["self"], Filters=pool)
    for image in (image for page in copies for image in page["Images"]):
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
    removals.extend(
        Removal("key-pair", key["KeyPairId"], key["KeyName"], reason)
        for key in cloud.ec2.describe_key_pairs(Filters=PROJECT_FILTER)["KeyPairs"]
        if (reason := reason_of(read_tags(key.get("Tags"))))
    )
    return removals


def survey(cloud: Cloud, policy: Policy, now: datetime | None = None) -> Survey:
    """Everything that may go, machines first (groups and volumes depend on them), and AMIs that are kept.

    Raises UsageError for a policy that makes no sense, CloudError when something cannot be asked for: then
    nothing is known to be safe to remove.
    """
    policy.check()
    now = now or datetime.now(UTC)
    dead_runs = _DeadRuns(cloud)

    def reason_of(tags: Mapping[str, str]) -> str:
        if expired(tags, now):
            return "expired"
        return dead_runs.why(tags.get(f"{PREFIX}run", "")) or (
            "all were asked for" if policy.everything else ""
        )

    try:
        machines = _expired_machines(cloud, now, dead_runs, policy.everything)
        if "instance" not in policy.kinds:
            machines_ending: set[str] = set()  # they stay, so their images are needed
        else:
            machines_ending = {removal.id for removal in machines}
        images: list[Removal] = []
        kept: list[Removal] = []
        if "image" in policy.kinds:
            images, kept = _images(cloud, policy, now, dead_runs, machines_ending)
        left = _leftovers(cloud, reason_of)
        copies = {row.id for row in left if row.kind == "image-copy"} if "image-copy" in policy.kinds else ()
        needed = references.find(cloud, copies, ending=machines_ending)
        kept += [replace(row, reason="; ".join(needed[row.id])) for row in left if row.id in needed]
        left = [row for row in left if row.id not in needed]
        found = [
            *machines, *images, *left,
            *(_orphan_snapshots(cloud, reason_of) if "snapshot" in policy.kinds else []),
        ]  # fmt: skip
    except ClientError as error:
        raise cloud_error(error, "listing what is ours") from error
    return Survey([removal for removal in found if removal.kind in policy.kinds], kept)


def find_removals(cloud: Cloud, *, keep: int, now: datetime | None = None) -> list[Removal]:
    """What may go, of every kind."""
    return survey(cloud, Policy(keep=keep), now).removals


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


def _remove_snapshot(cloud: Cloud, removal: Removal) -> None:
    cloud.ec2.delete_snapshot(SnapshotId=removal.id)


_REMOVERS: dict[str, Callable[[Cloud, Removal], None]] = {
    "instance": _remove_instance,
    "image": _remove_image,
    "volume": _remove_volume,
    "snapshot": _remove_snapshot,
    "image-copy": _remove_copy,
    "network-interface": _remove_interface,
    "elastic-ip": _remove_address,
    "security-group": _remove_group,
    "key-pair": _remove_key,
}


def _still_ours(cloud: Cloud, resource_id: str) -> bool:
    """Asked once more right before the removal: a person may have looked at the table for an hour.

    What is gone by now carries no tags either.
    """
    filters: Any = [{"Name": "resource-id", "Values": [resource_id]}]
    return read_tags(cloud.ec2.describe_tags(Filters=filters)["Tags"]).get("Project") == PROJECT


def remove(cloud: Cloud, removals: list[Removal], progress: Progress) -> list[tuple[Removal, str]]:
    """Remove what was found; go on after a failure; return the failures with their reasons."""
    failures = []
    for removal in removals:
        try:
            if not _still_ours(cloud, removal.id):
                progress(f"left alone: {removal.kind} {removal.id} is gone, or not ours any more")
                continue
            _REMOVERS[removal.kind](cloud, removal)
            progress(f"removed {removal.kind} {removal.id} ({removal.reason})")
        except CloudError as error:
            failures.append((removal, error.message))
        except BotoCoreError as error:
            failures.append((removal, str(error)))
        except ClientError as error:
            if not error_code(error).endswith("NotFound"):
                failures.append((removal, cloud_error(error, f"removing {removal.id}").message))
    return failures
