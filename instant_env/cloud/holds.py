"""What `clean` must leave, whatever its flags: machines in use, and what is protected.

A machine of the role ``lease`` or ``environment`` is in use until its expiry tag has passed; so is
what it needs: its volumes, interfaces, addresses and security groups, its key pair, and such resources of the
same run. A resource with the tag ``instant-env:protected`` stays for ever, and so does what would take it
along: a machine whose end deletes a protected volume, an AMI with a protected snapshot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PREFIX, PROTECTED, Role, expired, expiry, protected, read_tags

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

#: Machines of these roles are in use until they expire.
USED = (Role.LEASE, Role.ENVIRONMENT)
#: What a run makes for its machines. Machines are held one by one, and AMIs have rules of their own.
_OF_MACHINES = frozenset({"volume", "network-interface", "elastic-ip", "security-group", "key-pair"})
_PROTECTED = f"protected by its tag {PROTECTED}"
#: The tags that :func:`own_hold` reads.
_TELLING = (PROTECTED, f"{PREFIX}role", f"{PREFIX}expires-at")


def own_hold(tags: Mapping[str, str], now: datetime) -> str:
    """Why a resource with these tags must stay; empty when its tags do not say so."""
    if protected(tags):
        return _PROTECTED
    role = tags.get(f"{PREFIX}role")
    if role not in USED or expired(tags, now):
        return ""
    return f"{role} until {tags[f'{PREFIX}expires-at']}" if expiry(tags) else f"{role} that does not expire"


class Holds:
    """Reasons why resources must stay, from one reading of tags and machines."""

    def __init__(self, cloud: Cloud, machines: Iterable[InstanceTypeDef], now: datetime) -> None:
        """``machines``: those of the project. Raises botocore's ClientError."""
        self._reasons = _held_by_tags(cloud, now)
        self._runs: dict[str, str] = {}
        for machine in machines:
            if machine["State"]["Name"] not in ("terminated", "shutting-down"):
                self._hold_machine(machine)

    def _hold_machine(self, machine: InstanceTypeDef) -> None:
        machine_id = machine["InstanceId"]
        # A volume of a machine's own carries the expiry that the machine had at its launch: a lease that was
        # ended early is not held by it.
        along = next((item for item in deleted_with(machine) if self._reasons.get(item) == _PROTECTED), "")
        if along:
            self._reasons.setdefault(machine_id, f"its end would delete {along}: {_PROTECTED}")
        if machine_id not in self._reasons:
            return
        why = self._belongs_to(machine_id)
        for dependency in _needs(machine):
            self._reasons.setdefault(dependency, why)
        if run_id := read_tags(machine.get("Tags")).get(f"{PREFIX}run"):
            self._runs.setdefault(run_id, why)

    def hold_interface(self, interface: Any) -> None:
        """Hold the groups of an interface that must stay. Comes before :meth:`why` of groups."""
        interface_id = interface["NetworkInterfaceId"]
        if self.why("network-interface", interface_id, read_tags(interface.get("TagSet"))):
            for group in interface.get("Groups", []):
                self._reasons.setdefault(group["GroupId"], self._belongs_to(interface_id))

    def why(self, kind: str, resource_id: str, tags: Mapping[str, str], *others: str) -> str:
        """Why it must stay; empty when it may go. ``others``: its name, and ids of what uses it."""
        if resource_id in self._reasons:
            return self._reasons[resource_id]
        for other in others:
            if other in self._reasons:
                return self._belongs_to(other)
        return self._runs.get(tags.get(f"{PREFIX}run", ""), "") if kind in _OF_MACHINES else ""

    def why_image(self, image_id: str, snapshot_ids: Iterable[str]) -> str:
        """Why an AMI must stay with its snapshots, which would go with it."""
        held_ids = [snapshot_id for snapshot_id in snapshot_ids if snapshot_id in self._reasons]
        along = f"its snapshot {held_ids[0]} stays: {self._reasons[held_ids[0]]}" if held_ids else ""
        return self._reasons.get(image_id, along)

    def _belongs_to(self, resource_id: str) -> str:
        reason = self._reasons.get(resource_id, "")
        return reason if reason.startswith("belongs to ") else f"belongs to {resource_id}: {reason}"


def _held_by_tags(cloud: Cloud, now: datetime) -> dict[str, str]:
    """The reasons of every resource whose own tags hold it, by its id."""
    filters: Any = [{"Name": "key", "Values": list(_TELLING)}]
    tags: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for page in cloud.ec2.get_paginator("describe_tags").paginate(Filters=filters):
        for tag in page["Tags"]:
            tags[tag["ResourceId"]][tag["Key"]] = tag["Value"]
    reasons = {resource_id: own_hold(own, now) for resource_id, own in tags.items()}
    return {resource_id: reason for resource_id, reason in reasons.items() if reason}


def deleted_with(machine: InstanceTypeDef) -> Iterator[str]:
    """Ids of volumes and interfaces that go when the machine ends."""
    for mapping in machine.get("BlockDeviceMappings", []):
        if mapping.get("Ebs", {}).get("DeleteOnTermination"):
            yield mapping["Ebs"]["VolumeId"]
    for interface in machine.get("NetworkInterfaces", []):
        if interface.get("Attachment", {}).get("DeleteOnTermination"):
            yield interface["NetworkInterfaceId"]


def _needs(machine: InstanceTypeDef) -> Iterator[str]:
    """Ids of what a machine uses, and the name of its key pair."""
    yield from (mapping["Ebs"]["VolumeId"] for mapping in machine.get("BlockDeviceMappings", []))
    yield from (group["GroupId"] for group in machine.get("SecurityGroups", []))
    for interface in machine.get("NetworkInterfaces", []):
        yield interface["NetworkInterfaceId"]
        yield from (group["GroupId"] for group in interface.get("Groups", []))
    if "KeyName" in machine:
        yield machine["KeyName"]
