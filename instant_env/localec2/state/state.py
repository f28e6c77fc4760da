"""The server's state: records in memory and on disk, shown in moto, under one lock.

Order matters: a record reaches the disk before moto shows it, so what a client has seen survives any end of
the server.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from instant_env.localec2.records.journal import Request, StorageError, undo_unanswered
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.network_records import NetworkRecord
from instant_env.localec2.records.records import (
    AddressRecord,
    ImageRecord,
    InstanceRecord,
    InstanceState,
    InterfaceRecord,
    KeyPairRecord,
    ParameterRecord,
    Record,
    SecurityGroupRecord,
    ServerRecord,
    SnapshotRecord,
    SpotRequestRecord,
    TagsRecord,
    VolumeRecord,
)
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state.credentials import Issuer
from instant_env.localec2.state.faults import Faults
from instant_env.localec2.state.identities import Identities
from instant_env.localec2.state.launch_templates import LaunchTemplates, TemplateRecord
from instant_env.localec2.state.mirror import Mirror
from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.networks.networks import Networks
from instant_env.localec2.state.pushed_keys import InstanceConnect
from instant_env.localec2.state.strictness.strictness import Strictness

log = logging.getLogger(__name__)

#: Old ids have 8 digits, those since 2016 have 17.
_IMAGE_ID = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
_INSTANCE_ID = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
_RESOURCE_ID = re.compile(r"(?P<kind>[a-z]+)-([0-9a-f]{8}|[0-9a-f]{17})")

#: moto's objects are not made for threads: whoever touches them, or the records, holds this lock.
Lock = threading.RLock


def now() -> datetime:
    """The time for records: UTC, whole seconds, as EC2's answers have it."""
    return datetime.now(UTC).replace(microsecond=0)


def _launch_order(instance: InstanceRecord) -> tuple[datetime, str, int]:
    return instance.launch_time, instance.reservation_id, instance.launch_index


class State:
    """Everything that is known. All attributes are read and changed with ``lock`` held."""

    def __init__(self, layout: Layout, store: RecordStore, server: ServerRecord, region: str) -> None:
        self.lock = Lock()
        self.layout = layout
        self.store = store
        self.server = server
        self.region = region
        self.faults = Faults()
        self.strictness = Strictness()
        self.mirror = Mirror(region, server.network_seed)
        self.networks = Networks(store, self.mirror)
        self.identities = Identities(store)
        self.launch_templates = LaunchTemplates(store)
        self.issuer = Issuer(server.secret_access_key)
        self.connect = InstanceConnect(layout.signer, region)
        self.instances: dict[str, InstanceRecord] = {}
        self.volumes: dict[str, VolumeRecord] = {}
        self.snapshots: dict[str, SnapshotRecord] = {}
        self.images: dict[str, ImageRecord] = {}
        self.spot_requests: dict[str, SpotRequestRecord] = {}
        self.interfaces: dict[str, InterfaceRecord] = {}
        self.addresses: dict[str, AddressRecord] = {}
        #: Told of every instance that is saved: a spot request follows its instance.
        self.on_instance: Callable[[InstanceRecord], None] = lambda _: None
        self._awaited = threading.local()
        self._request: Request | None = None
        self._unwritten: dict[tuple[type[Record], str], Record] = {}
        self._default_groups = [
            self.mirror.capture_group(group.id)
            for group in self.mirror.ec2.describe_security_groups()
            if group.is_default
        ]

    def answer_after(self, event: threading.Event, timeout_s: float) -> None:
        """The request that this thread serves is answered after the event: :meth:`await_answer`."""
        self._awaited.events = [*getattr(self._awaited, "events", []), (event, timeout_s)]

    def await_answer(self) -> None:
        """Wait for what :meth:`answer_after` named, without the lock: other requests go on meanwhile."""
        events, self._awaited.events = getattr(self._awaited, "events", []), []
        for event, timeout_s in events:
            event.wait(timeout_s)

    def load(self) -> None:
        """Show everything that is on the disk, what others refer to first."""
        undo_unanswered(self.layout.journal, self.store)
        self.identities.load()
        self.launch_templates.load()
        for template in self.launch_templates.records.values():
            self.mirror.show_tags(TagsRecord(resource_id=template.id, tags=template.tags))
        self.networks.load()
        for group in self.store.load_all(SecurityGroupRecord):
            if group.vpc_id in ("", *self.networks.vpcs):
                self.mirror.show_group(group)
            else:  # its VPC was about to be deleted
                self.store.delete(SecurityGroupRecord, group.key)
        for pair in self.store.load_all(KeyPairRecord):
            self.mirror.show_key_pair(pair)
        for parameter in self.store.load_all(ParameterRecord):
            self.mirror.show_parameter(parameter)
        for snapshot in self.store.load_all(SnapshotRecord):
            self.snapshots[snapshot.id] = snapshot
            self.mirror.show_snapshot(snapshot)
        for image in self.store.load_all(ImageRecord):
            self.images[image.id] = image
            self.mirror.show_image(image)
        for instance in sorted(self.store.load_all(InstanceRecord), key=_launch_order):
            self.instances[instance.id] = instance
            self.mirror.show_instance(instance)
        for volume in self.store.load_all(VolumeRecord):
            self.volumes[volume.id] = volume
            self.mirror.show_volume(volume)
        for interface in self.store.load_all(InterfaceRecord):
            self.interfaces[interface.id] = interface
            self.mirror.show_interface(interface)
        for address in self.store.load_all(AddressRecord):
            self.addresses[address.id] = address
            self.mirror.show_address(address)
        for request in self.store.load_all(SpotRequestRecord):
            self.spot_requests[request.id] = request
            self.mirror.show_tags(TagsRecord(resource_id=request.id, tags=request.tags))
        # A terminated instance's first interface is not shown; its tags go with the instance's record.
        first_interfaces = {instance.interface_id for instance in self.instances.values()}
        for tags in self.store.load_all(TagsRecord):
            try:
                if tags.resource_id not in first_interfaces:
                    self.check_resource(tags.resource_id)
            except EC2ClientError:
                log.warning("tags of %s, which does not exist, are removed", tags.resource_id)
                self.store.delete(TagsRecord, tags.key)
            else:
                self.mirror.show_tags(tags)

    def save(self, record: Record) -> None:
        """Write a record of a disk, image or instance, then show it.

        In a request (:meth:`request`), raises StorageError when it cannot be written; then it is as it was
        before. Out of one, what happened has happened: it is shown, and written as soon as that is possible.
        """
        if self._request is not None:
            self.write(record)
        else:
            self._write_or_remember(record)
        self._show(record)

    def _show(self, record: Record) -> None:
        match record:
            case InstanceRecord():
                self.instances[record.id] = record
                self.mirror.show_instance(record)
                self.on_instance(record)
            case NetworkRecord():
                self.networks.show(record)
            case SecurityGroupRecord():
                self.mirror.show_group(record)
            case InterfaceRecord():
                self.interfaces[record.id] = record
                self.mirror.show_interface(record)
            case AddressRecord():
                self.addresses[record.id] = record
                self.mirror.show_address(record)
            case TemplateRecord():
                self.launch_templates.records[record.id] = record
                self.mirror.show_tags(TagsRecord(resource_id=record.id, tags=record.tags))
            case SpotRequestRecord():
                self.spot_requests[record.id] = record
                self.mirror.show_tags(TagsRecord(resource_id=record.id, tags=record.tags))
            case VolumeRecord():
                self.volumes[record.id] = record
                self.mirror.show_volume(record)
            case SnapshotRecord():
                self.snapshots[record.id] = record
                self.mirror.show_snapshot(record)
            case ImageRecord():
                self.images[record.id] = record
                self.mirror.show_image(record)

    @contextmanager
    def request(self) -> Iterator[None]:
        """What is made in this context is there whole or not at all (lock held)."""
        self._request = Request(self.layout.journal)
        try:
            yield
        finally:
            self._request.end()
            self._request = None

    def write(self, record: Record) -> None:
        """Write a record. Raises StorageError, and then undoes what the request has made."""
        try:
            new = self._request is not None and not self.store.exists(record)
            if self._request is not None and new:
                self._request.note(record)
            self.store.save(record)
            if new:
                self.strictness.made(record)
        except OSError as error:
            log.error("%s %s is not written: %s", record.kind, record.key, error)
            self._undo(record)
            raise StorageError(
                f"localec2 cannot write below {self.layout.state_dir}: {error.strerror or error}",
                hint="make room there",
            ) from error

    def _undo(self, failed: Record) -> None:
        new_records = self._request.new_records if self._request is not None else []
        for record in new_records:
            self.forget(record)
            if isinstance(record, VolumeRecord):
                self.layout.volume(record.id).unlink(missing_ok=True)
            if isinstance(record, InstanceRecord):
                self._free_interfaces(record.id)
        if not any(record is failed for record in new_records) and self.store.exists(failed):
            self._show(self.store.revert(failed))
        # What moto makes itself it had made before we could record it.
        self.mirror.keep_only(
            [*self._default_groups, *self.store.load_all(SecurityGroupRecord)],
            self.store.load_all(KeyPairRecord),
            self.store.load_all(ParameterRecord),
        )

    def _free_interfaces(self, instance_id: str) -> None:
        """An interface that was there before its instance stays."""
        for interface in self.interfaces.values():
            if interface.attachment is not None and interface.attachment.instance_id == instance_id:
                interface.attachment = None
                self._write_or_remember(interface)
                self._show(interface)

    def _write_or_remember(self, record: Record) -> None:
        place = (type(record), record.key)
        try:
            self.store.save(record)
            self._unwritten.pop(place, None)
        except OSError as error:
            log.error("%s %s is to be written later: %s", record.kind, record.key, error)
            self._unwritten[place] = record

    def write_again(self) -> None:
        """Write what could not be written when it happened."""
        for record in list(self._unwritten.values()):
            self._write_or_remember(record)

    def forget(self, record: Record) -> None:
        """The reverse of save."""
        self._unwritten.pop((type(record), record.key), None)
        match record:
            case InstanceRecord():
                self.instances.pop(record.id, None)
                self.mirror.hide_instance(record)
            case VolumeRecord():
                self.volumes.pop(record.id, None)
                self.mirror.hide_volume(record.id)
            case SnapshotRecord():
                self.snapshots.pop(record.id, None)
                self.mirror.hide_snapshot(record.id)
            case ImageRecord():
                self.images.pop(record.id, None)
                self.mirror.hide_image(record.id)
            case TemplateRecord():
                self.launch_templates.forget(record)
                self.mirror.ec2.tags.pop(record.id, None)
            case SpotRequestRecord():
                self.spot_requests.pop(record.id, None)
                self.mirror.ec2.tags.pop(record.id, None)
            case NetworkRecord():
                self.networks.forget(record)
            case InterfaceRecord():
                self.interfaces.pop(record.id, None)
                self.mirror.hide_interface(record.id)
            case AddressRecord():
                self.addresses.pop(record.id, None)
                self.mirror.hide_address(record.id)
            case TagsRecord():
                self.mirror.ec2.tags.pop(record.resource_id, None)
        self.store.delete(type(record), record.key)

    def in_subnet(self, subnet_id: str) -> list[InstanceRecord | InterfaceRecord]:
        """Instances that have not ended and interfaces of a subnet: those that have an address there."""
        instances = [item for item in self.instances.values() if item.state != "terminated"]
        members: list[InstanceRecord | InterfaceRecord] = [*instances, *self.interfaces.values()]
        return [item for item in members if item.subnet_id == subnet_id]

    def elastic_ip(self, interface_id: str) -> str | None:
        """The Elastic IP of an interface."""
        addresses = (item.public_ip for item in self.addresses.values() if item.interface_id == interface_id)
        return next(addresses, None)

    def attached_interfaces(self, instance_id: str) -> list[InterfaceRecord]:
        """Interfaces that were made by themselves and are attached to this instance, by device index."""
        pairs = [(item.attachment, item) for item in self.interfaces.values() if item.attachment is not None]
        mine = [(place.device_index, item) for place, item in pairs if place.instance_id == instance_id]
        return [item for _, item in sorted(mine, key=lambda pair: pair[0])]

    # Look-ups that answer as EC2 does

    def interface(self, interface_id: str) -> InterfaceRecord:
        if interface_id not in self.interfaces:
            raise EC2ClientError(
                "InvalidNetworkInterfaceID.NotFound",
                f"The networkInterface ID '{interface_id}' does not exist",
            )
        return self.interfaces[interface_id]

    def address(self, allocation_id: str) -> AddressRecord:
        if allocation_id not in self.addresses:
            raise EC2ClientError(
                "InvalidAllocationID.NotFound", f"The allocation ID '{allocation_id}' does not exist"
            )
        return self.addresses[allocation_id]

    def instance(self, instance_id: str) -> InstanceRecord:
        if not _INSTANCE_ID.fullmatch(instance_id):
            raise EC2ClientError("InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}"')
        if instance_id not in self.instances:
            raise EC2ClientError(
                "InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist"
            )
        return self.instances[instance_id]

    def volume(self, volume_id: str) -> VolumeRecord:
        if volume_id not in self.volumes:
            raise EC2ClientError("InvalidVolume.NotFound", f"The volume '{volume_id}' does not exist.")
        return self.volumes[volume_id]

    def snapshot(self, snapshot_id: str) -> SnapshotRecord:
        if snapshot_id not in self.snapshots:
            raise EC2ClientError("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
        return self.snapshots[snapshot_id]

    def image(self, image_id: str) -> ImageRecord:
        if not _IMAGE_ID.fullmatch(image_id):
            raise EC2ClientError("InvalidAMIID.Malformed", f'Invalid id: "{image_id}" (expecting "ami-...")')
        if image_id not in self.images:
            raise EC2ClientError("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")
        return self.images[image_id]

    def check_resource(self, resource_id: str) -> None:
        """Refuse the id of a resource that is not there, whatever its kind: what has tags is there."""
        match = _RESOURCE_ID.fullmatch(resource_id)
        ec2, kind = self.mirror.ec2, match["kind"] if match else ""
        look_up: dict[str, Callable[[str], object]] = {
            "i": self.instance, "vol": self.volume, "snap": self.snapshot, "ami": self.image,
            "eipalloc": self.address, "subnet": self.subnet,
        }  # fmt: skip
        if kind in look_up:
            look_up[kind](resource_id)
            return
        # What has no record of its own, or one of several: the code of the kind, and the ids that there are.
        ids_of_kind: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
            "eni": ("InvalidNetworkInterfaceID.NotFound", lambda: [*self.interfaces, *ec2.enis]),
            "key": ("InvalidKeyPair.NotFound", lambda: [pair.id for pair in ec2.key_pairs.values()]),
            "sg": ("InvalidGroup.NotFound", lambda: [g.id for g in ec2.describe_security_groups()]),
            "sgr": ("InvalidSecurityGroupRuleId.NotFound", self._rule_ids),
            "lt": ("InvalidLaunchTemplateId.NotFound", lambda: self.launch_templates.records),
            "sir": ("InvalidSpotInstanceRequestID.NotFound", lambda: self.spot_requests),
            "vpc": ("InvalidVpcID.NotFound", lambda: ec2.vpcs),
            "rtb": ("InvalidRouteTableID.NotFound", lambda: ec2.route_tables),
            "igw": ("InvalidInternetGatewayID.NotFound", lambda: ec2.internet_gateways),
            "acl": ("InvalidNetworkAclID.NotFound", lambda: ec2.network_acls),
        }
        if kind not in ids_of_kind:
            raise EC2ClientError("InvalidID", f"The ID '{resource_id}' is not valid")
        code, ids = ids_of_kind[kind]
        if resource_id not in ids():
            raise EC2ClientError(code, f"The ID '{resource_id}' does not exist")

    def _rule_ids(self) -> list[str]:
        groups = self.mirror.ec2.describe_security_groups()
        return [rule.id for group in groups for rule in [*group.ingress_rules, *group.egress_rules]]

    def subnet(self, subnet_id: str) -> Any:
        """moto's subnet."""
        for by_zone in self.mirror.ec2.subnets.values():
            if subnet_id in by_zone:
                return by_zone[subnet_id]
        raise EC2ClientError("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist")

    def attached(self, instance_id: str) -> list[VolumeRecord]:
        """Volumes of an instance, the root first."""
        root = self.instances[instance_id].root_device_name
        pairs = [(v.attachment, v) for v in self.volumes.values() if v.attachment is not None]
        mine = [(a.device != root, a.device, v) for a, v in pairs if a.instance_id == instance_id]
        return [volume for _, _, volume in sorted(mine, key=lambda item: item[:2])]

    def groups(self) -> list[SecurityGroupRecord]:
        """All security groups, as they are now."""
        return [self.mirror.capture_group(group.id) for group in self.mirror.ec2.describe_security_groups()]

    def group_names(self, group_ids: Iterable[str]) -> dict[str, str]:
        """The names of security groups by their ids; one that is deleted has none."""
        groups = (self.mirror.ec2.get_security_group_from_id(group_id) for group_id in group_ids)
        return {group.id: group.name for group in groups if group is not None}

    def set_instance_state(
        self,
        instance: InstanceRecord,
        state: InstanceState,
        *,
        reason: str = "",
        code: str = "",
        message: str = "",
    ) -> None:
        """Change an instance's state and say why (``StateTransitionReason`` and ``StateReason``)."""
        instance.state = state
        instance.transition_reason = reason
        instance.state_reason_code = code
        instance.state_reason_message = f"{code}: {message}" if code else ""
        if state == "running":
            self.strictness.running(instance.id)
        if state == "terminated":
            instance.terminated_at = now()
        self.save(instance)
