"""What can be removed, and why: old AMIs with their snapshots, and what dead and expired runs left behind.

Nothing without our Project tag is ever looked at: every listing filters by it, and every removal goes by the
ids those listings gave. What others use, or have protected, stays: see :mod:`instant_env.cloud.holds`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from instant_env.cloud import references, runs
from instant_env.cloud.holds import Holds, deleted_with
from instant_env.cloud.images import BakedImage, list_baked
from instant_env.cloud.removal import KINDS, Removal, in_order
from instant_env.cloud.session import Cloud, cloud_error
from instant_env.cloud.tags import (
    PREFIX,
    PROJECT_FILTER,
    Role,
    expired,
    expiry,
    project_filter,
    read_tags,
)
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import ImageTypeDef, InstanceTypeDef

#: Machines of these roles may go once they have expired; images have no expiry.
_MACHINE_ROLES = (Role.BUILDER, Role.VERIFY, Role.BENCH, Role.POOL, Role.LEASE, Role.ENVIRONMENT)
#: States of an AMI that nothing can be launched from any more (API_Image).
_BROKEN = ("failed", "invalid", "error")


@dataclass(frozen=True)
class Policy:
    """What can be removed. ``everything``: also what has not expired and whose run may be alive."""

    keep: int = 3
    min_age: timedelta = timedelta(0)
    kinds: frozenset[str] = KINDS
    everything: bool = False

    def check(self) -> None:
        """Raises UsageError."""
        if self.keep < 0:
            raise UsageError(
                f"--keep {self.keep}: must be 0 or more", hint="0 removes every AMI that nothing refers to"
            )
        if self.min_age < timedelta(0):
            raise UsageError("--min-age-h must be 0 or more", hint="0 is the default")
        if unknown := self.kinds - KINDS:
            raise UsageError(
                f"--what {', '.join(sorted(unknown))}: no such kind",
                hint=f"there are: {', '.join(sorted(KINDS))}",
            )


#: A hundred years.
_MOST_HOURS = 100 * 365 * 24


def policy(*, keep: int, min_age_h: int, what: str, everything: bool) -> Policy:
    """A policy from the flags of ``invoke clean``. Raises UsageError."""
    kinds = frozenset(kind for text in what.split(",") if (kind := text.strip())) or KINDS
    if abs(min_age_h) > _MOST_HOURS:
        raise UsageError(
            f"--min-age-h must be at most {_MOST_HOURS}, not {min_age_h}", hint="0 is the default"
        )
    policy = Policy(keep, timedelta(hours=min_age_h), kinds, everything)
    policy.check()
    return policy


@dataclass(frozen=True)
class Survey:
    """What may go, in the order of removal; and what would but for the reasons that the rows have. Machines
    that somebody uses or has protected are always among ``kept``."""

    removals: list[Removal]
    kept: list[Removal]


class _DeadRuns:
    """Runs whose process is gone, whatever the expiry tags of their resources say."""

    def __init__(self, cloud: Cloud) -> None:
        self.lost: set[str] = set()  # the cloud lost a machine of theirs
        self._settings = cloud.settings

    def why(self, run_id: str) -> str:
        """Why this run is dead; empty when it is not known to be."""
        if run_id in self.lost:
            return "its run has lost its machine"
        return "its run is over" if runs.is_over(self._settings, run_id) else ""


def _latest_ids(cloud: Cloud) -> set[str]:
    """AMI ids that an SSM parameter of ours points to."""
    pages = cloud.ssm.get_paginator("get_parameters_by_path").paginate(Path="/instant-env", Recursive=True)
    return {parameter["Value"] for page in pages for parameter in page["Parameters"]}


def _images(
    cloud: Cloud, policy: Policy, now: datetime, dead_runs: _DeadRuns, holds: Holds, ending: set[str]
) -> tuple[list[Removal], list[Removal]]:
    """AMIs of ours that can be removed, and those that could be but for what needs them."""
    groups = defaultdict(list)
    candidates: dict[str, str] = {}  # AMI -> why it may go
    baked = list_baked(cloud)
    for image in baked:
        if image.state in _BROKEN:
            candidates[image.id] = f"{image.state}: its copy was cut short"
        elif image.expires_at is not None and (image.expires_at <= now or dead_runs.why(image.run_id)):
            candidates[image.id] = "never verified, and its run is over"
        if image.state == "available" and image.verified:
            groups[image.recipe, image.arch].append(image)
    for (recipe, arch), images in sorted(groups.items()):
        for image in images[policy.keep :]:
            candidates[image.id] = f"older than the newest {policy.keep} of {recipe} {arch}"
    keepers = _keepers(cloud, policy, now, baked, candidates, ending)
    removals: list[Removal] = []
    holdbacks: list[Removal] = []
    for image in baked:
        if image.id in candidates:
            hold = holds.why_image(image.id, image.snapshot_ids)
            why = "; ".join([*([hold] if hold else []), *keepers.get(image.id, [])])
            row = Removal("image", image.id, image.name, why or candidates[image.id])
            (holdbacks if why else removals).append(row)
    return removals, holdbacks


def _keepers(
    cloud: Cloud, policy: Policy, now: datetime, baked: Sequence[BakedImage], candidates: Collection[str],
    ending: set[str],
) -> dict[str, list[str]]:  # fmt: skip
    """What keeps AMIs that would go otherwise: the reasons of each."""
    if not candidates:
        return {}
    reasons_of: defaultdict[str, list[str]] = defaultdict(list)
    latest, protected = _latest_ids(cloud), _protected_ids(cloud)
    for image in baked:
        if image.id in latest:
            reasons_of[image.id].append("`latest` points to it")
        if image.id in protected:
            reasons_of[image.id].append("protected from deregistration")
        if policy.min_age and now - image.created < policy.min_age:
            reasons_of[image.id].append(f"younger than {policy.min_age.total_seconds() / 3600:g} h")
        if image.base_ami in candidates and image.base_ami != image.id:
            reasons_of[image.base_ami].append(f"image {image.id} was baked from it")
    for image_id, reasons in references.find(cloud, candidates, ending=ending).items():
        reasons_of[image_id] += [
            reason for reason in reasons if not (image_id in latest and "/instant-env/" in reason)
        ]
    return reasons_of


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


def _snapshots_of(image: ImageTypeDef) -> Iterator[str]:
    for mapping in image.get("BlockDeviceMappings", []):
        if snapshot_id := mapping.get("Ebs", {}).get("SnapshotId"):
            yield snapshot_id


class _Surveyor:
    """One survey: what was read of the cloud, and the rows that come of it."""

    def __init__(self, cloud: Cloud, policy: Policy, now: datetime) -> None:
        self._cloud = cloud
        self._policy = policy
        self._now = now
        self._dead_runs = _DeadRuns(cloud)
        pages = cloud.ec2.get_paginator("describe_instances").paginate(Filters=PROJECT_FILTER)
        self._machines = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
        self._holds = Holds(cloud, self._machines, now)
        self._gone_with_machines = {item for machine in self._machines for item in deleted_with(machine)}
        self._removals: list[Removal] = []
        self._kept: list[Removal] = []
        self._ending: set[str] = set()  # machines that are going, or will be by the end of the removal

    def survey(self) -> Survey:
        self._list_machines()
        if "image" in self._policy.kinds:
            self._list_images()
        self._list_leftovers()
        self._list_copies()
        if "snapshot" in self._policy.kinds:
            self._list_snapshots()
        kinds = self._policy.kinds
        removals = [row for row in in_order(self._removals) if row.kind in kinds]
        return Survey(removals, [row for row in self._kept if row.kind in kinds])

    def _add(self, row: Removal, hold: str) -> None:
        (self._kept if hold else self._removals).append(replace(row, reason=hold) if hold else row)

    def _reason_of(self, tags: Mapping[str, str]) -> str:
        if expired(tags, self._now):
            return "expired"
        dead = self._dead_runs.why(tags.get(f"{PREFIX}run", ""))
        return dead or ("all were asked for" if self._policy.everything else "")

    def _list_machines(self) -> None:
        """Machines past their time, of dead runs, and those that the cloud lost: their runs are dead."""
        for machine in self._machines:
            tags, machine_id = read_tags(machine.get("Tags")), machine["InstanceId"]
            if machine["State"]["Name"] in ("terminated", "shutting-down"):
                self._ending.add(machine_id)
            elif hold := self._holds.why("instance", machine_id, tags):
                self._kept.append(Removal("instance", machine_id, tags.get("Name", ""), hold))
            elif reason := self._reason_of_machine(machine, tags):
                self._removals.append(Removal("instance", machine_id, tags.get("Name", ""), reason))
                if "instance" in self._policy.kinds:  # else they stay, and need what they use
                    self._ending.add(machine_id)

    def _reason_of_machine(self, machine: InstanceTypeDef, tags: Mapping[str, str]) -> str:
        role = tags.get(f"{PREFIX}role")
        if role not in _MACHINE_ROLES and not self._policy.everything:
            return ""
        # Nobody of ours starts a stopped machine again, so its run is over, whatever its expiry says.
        by_cloud = machine.get("StateReason", {}).get("Code") == "Server.InternalError"
        if by_cloud and machine["State"]["Name"] == "stopped":
            self._dead_runs.lost |= {tags[f"{PREFIX}run"]} if f"{PREFIX}run" in tags else set()
            return f"{role} lost by the cloud (Server.InternalError)"
        if expired(tags, self._now):
            return f"{role} expired at {tags[f'{PREFIX}expires-at']}"
        # The key of a dead run was in its process's memory alone.
        reason = self._reason_of(tags)
        return f"{role or 'no role'}: {reason}" if reason else ""

    def _list_images(self) -> None:
        removals, kept = _images(
            self._cloud, self._policy, self._now, self._dead_runs, self._holds, self._ending
        )
        self._removals += removals
        self._kept += kept

    def _freed(self, resource_id: str, attachments: Sequence[Any]) -> bool:
        """Whether what is attached like this is left over once the machines of this survey have ended."""
        ends = all(attachment.get("InstanceId") in self._ending for attachment in attachments)
        return bool(attachments) and ends and resource_id not in self._gone_with_machines

    def _list_leftovers(self) -> None:
        """Interfaces, addresses, volumes, security groups and key pairs of runs that never came to remove
        them; those included that the end of a machine of this survey frees."""
        ec2, holds = self._cloud.ec2, self._holds
        for page in ec2.get_paginator("describe_network_interfaces").paginate(Filters=PROJECT_FILTER):
            for interface in page["NetworkInterfaces"]:
                holds.hold_interface(interface)
                interface_id, attached = interface["NetworkInterfaceId"], "Attachment" in interface
                attachments: list[Any] = [interface["Attachment"]] if attached else []
                if interface.get("Status") == "available" or self._freed(interface_id, attachments):
                    self._list_one("network-interface", interface_id, interface.get("TagSet"))
        for address in ec2.describe_addresses(Filters=PROJECT_FILTER)["Addresses"]:
            users = address.get("InstanceId", ""), address.get("NetworkInterfaceId", "")
            self._list_one("elastic-ip", address["AllocationId"], address.get("Tags"), *users)
        for volumes in ec2.get_paginator("describe_volumes").paginate(Filters=PROJECT_FILTER):
            for volume in volumes["Volumes"]:
                volume_id, attachments = volume["VolumeId"], volume.get("Attachments", [])
                if volume["State"] == "available":
                    self._list_one("volume", volume_id, volume.get("Tags"), more=", unattached")
                elif self._freed(volume_id, attachments):
                    self._list_one(
                        "volume", volume_id, volume.get("Tags"), more=", freed by its machine's end"
                    )
        for groups in ec2.get_paginator("describe_security_groups").paginate(Filters=PROJECT_FILTER):
            for group in groups["SecurityGroups"]:
                self._list_one("security-group", group["GroupId"], group.get("Tags"), name=group["GroupName"])
        for key in ec2.describe_key_pairs(Filters=PROJECT_FILTER)["KeyPairs"]:
            name = key["KeyName"]
            self._list_one("key-pair", key["KeyPairId"], key.get("Tags"), name, name=name)

    def _list_one(
        self, kind: str, resource_id: str, tag_list: Any, *others: str, name: str = "", more: str = ""
    ) -> None:
        tags = read_tags(tag_list)
        if reason := self._reason_of(tags):
            row = Removal(kind, resource_id, name or tags.get("Name", ""), reason + more)
            self._add(row, self._holds.why(kind, resource_id, tags, *others))

    def _list_copies(self) -> None:
        """AMIs that techniques made of ours for one run."""
        pool = project_filter(role=Role.POOL.value)
        pages = self._cloud.ec2.get_paginator("describe_images").paginate(Owners=["self"], Filters=pool)
        rows = []
        for image in (image for page in pages for image in page["Images"]):
            if reason := self._reason_of(read_tags(image.get("Tags"))):
                row = Removal("image-copy", image["ImageId"], image.get("Name", ""), reason)
                rows.append((row, self._holds.why_image(row.id, _snapshots_of(image))))
        copy_ids = {row.id for row, _ in rows} if "image-copy" in self._policy.kinds else set()
        users_of = references.find(self._cloud, copy_ids, ending=self._ending)
        for row, hold in rows:
            self._add(row, hold or "; ".join(users_of.get(row.id, [])))

    def _list_snapshots(self) -> None:
        """Snapshots of ours that no AMI is made of: uploads and bakes cut short, and deregistrations."""
        used = {snapshot for image in _own_images(self._cloud) for snapshot in _snapshots_of(image)}
        pages = self._cloud.ec2.get_paginator("describe_snapshots").paginate(
            OwnerIds=["self"], Filters=PROJECT_FILTER
        )
        for snapshot in (snapshot for page in pages for snapshot in page["Snapshots"]):
            tags, snapshot_id = read_tags(snapshot.get("Tags")), snapshot["SnapshotId"]
            reason = self._reason_of(tags)
            if not reason and tags.get(f"{PREFIX}role") == Role.IMAGE and expiry(tags) is None:
                reason = "its image is gone"  # while an image is made, its snapshots have an expiry
            if snapshot_id not in used and reason:
                row = Removal("snapshot", snapshot_id, tags.get("Name", ""), f"{reason}, no AMI has it")
                self._add(row, self._holds.why("snapshot", snapshot_id, tags))


def survey(cloud: Cloud, policy: Policy, now: datetime | None = None) -> Survey:
    """Everything that may go, machines first (groups and volumes depend on them), and what is kept.

    Raises UsageError for a policy that breaks a rule, CloudError when something cannot be listed: then
    nothing is known to be safe to remove.
    """
    policy.check()
    try:
        return _Surveyor(cloud, policy, now or datetime.now(UTC)).survey()
    except ClientError as error:
        raise cloud_error(error, "listing what is ours") from error
