"""moto's objects as the mirror of our records: what is described and filtered is what is on the disk.

The same functions show a record that was just made and one that was read at start, so a restart cannot differ
from the original. All of them want the server's lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from instant_env.localec2.records.records import (
    AddressRecord,
    ImageRecord,
    InstanceRecord,
    InterfaceRecord,
    KeyPairRecord,
    ParameterRecord,
    RuleRecord,
    SecurityGroupRecord,
    SnapshotRecord,
    TagsRecord,
    VolumeRecord,
)
from instant_env.localec2.state import moto_api as moto
from instant_env.localec2.state.group_rules import GroupRule
from instant_env.localec2.state.instance_types import cpu_options

#: EC2's state codes (API_InstanceState).
STATE_CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}


#: What every instance has, in moto's names of EC2's members: the values that a launch may ask for.
AS_IT_IS: dict[str, dict[str, Any]] = {
    "capacity_reservation_specification": {"CapacityReservationPreference": "open"},
    "enclave_options": {"Enabled": False},
    "maintenance_options": {"AutoRecovery": "default", "RebootMigration": "default"},
    "private_dns_name_options": {
        "HostnameType": "ip-name",
        "EnableResourceNameDnsARecord": False,
        "EnableResourceNameDnsAAAARecord": False,
    },
}


class _OwnInterface(moto.interfaces.NetworkInterface):  # type: ignore[misc]  # moto is untyped
    """In its own groups alone; moto adds those of its instance."""

    @property
    def group_set(self) -> Any:
        return self._group_set


@dataclass(frozen=True)
class _LostSubnet:
    """What is left to show of the subnet of a terminated instance when it is deleted."""

    id: str
    availability_zone: str
    vpc_id: None = None

    def del_subnet_ip(self, _: str) -> None:
        """There are no addresses to give back."""


class Mirror:
    """Shows records in moto's backends of one region."""

    def __init__(self, region: str, seed: int) -> None:
        self.region = region
        self.ec2: Any = moto.ec2_backend(region, seed)
        self.ssm: Any = moto.ssm_backend(region)

    def _tag(self, resource_id: str, tags: dict[str, str]) -> None:
        self.ec2.tags[resource_id] = dict(tags)

    # Disks and images

    def show_snapshot(self, record: SnapshotRecord) -> None:
        zone = self.ec2.get_zone_by_name(f"{self.region}a")
        # The volume it was made of may be gone; moto asks its snapshot's volume for id and size.
        volume = moto.block_store.Volume(self.ec2, record.volume_id, record.size_gib, zone)
        snapshot = moto.block_store.Snapshot(
            self.ec2, record.id, volume, record.description, owner_id=record.owner_id
        )
        snapshot.start_time = record.start_time.replace(tzinfo=None)
        snapshot.status = record.state
        self.ec2.snapshots[record.id] = snapshot
        self._tag(record.id, record.tags)

    def hide_snapshot(self, snapshot_id: str) -> None:
        self.ec2.snapshots.pop(snapshot_id, None)
        self.ec2.tags.pop(snapshot_id, None)

    def show_image(self, record: ImageRecord) -> None:
        earlier_ids = set(self.ec2.snapshots)
        image = moto.amis.Ami(
            self.ec2, record.id, name=record.name, description=record.description, owner_id=record.owner_id,
            owner_alias=record.owner_alias, public=record.public, virtualization_type="hvm",
            architecture=record.architecture, state=record.state, hypervisor="xen", root_device_type="ebs",
            creation_date=record.creation_date.replace(tzinfo=None), root_device_name=record.root_device_name,
            boot_mode=record.boot_mode, region_name=f"{self.region}a",
        )  # fmt: skip
        for made_up in set(self.ec2.snapshots) - earlier_ids:  # moto invents one for every image
            self.hide_snapshot(made_up)
        image.ebs_snapshot = self.ec2.snapshots[record.snapshot_id]
        image.instance_id = record.source_instance_id
        self.ec2.amis[record.id] = image
        self._tag(record.id, record.tags)

    def hide_image(self, image_id: str) -> None:
        self.ec2.amis.pop(image_id, None)
        self.ec2.tags.pop(image_id, None)

    def show_volume(self, record: VolumeRecord) -> None:
        """The volume and, when its instance is shown already, the attachment."""
        self._unplug(record.id)
        zone = self.ec2.get_zone_by_name(record.zone)
        volume = moto.block_store.Volume(
            self.ec2, record.id, record.size_gib, zone, snapshot_id=record.snapshot_id,
            volume_type=record.volume_type,
            iops=(record.performance.iops or moto.block_store.GP3_DEFAULT_IOPS) if record.volume_type == "gp3"
            else None,
        )  # fmt: skip
        volume.create_time = record.create_time.replace(tzinfo=None)
        self.ec2.volumes[record.id] = volume
        self._tag(record.id, record.tags)
        if record.attachment is not None:
            attachment = record.attachment
            attached = self.ec2.attach_volume(
                record.id, attachment.instance_id, attachment.device, attachment.delete_on_termination
            )
            attached.attach_time = attachment.attach_time.replace(tzinfo=None)
            instance = self.ec2.get_instance(attachment.instance_id)
            instance.block_device_mapping[attachment.device].attach_time = attached.attach_time

    def _unplug(self, volume_id: str) -> None:
        for reservation in self.ec2.reservations.values():
            for instance in reservation.instances:
                for device, block in list(instance.block_device_mapping.items()):
                    if block.volume_id == volume_id:
                        del instance.block_device_mapping[device]

    def hide_volume(self, volume_id: str) -> None:
        self._unplug(volume_id)
        self.ec2.volumes.pop(volume_id, None)
        self.ec2.tags.pop(volume_id, None)

    # Instances

    def show_instance(self, record: InstanceRecord) -> None:
        """Make or update moto's instance."""
        instance = self.find_instance(record.id)
        if instance is None:
            instance = self._make_instance(record)
        instance._state.name, instance._state.code = record.state, STATE_CODES[record.state]
        instance._reason = record.transition_reason
        instance.state_reason = (
            moto.instances.StateReason(record.state_reason_message, record.state_reason_code)
            if record.state_reason_code
            else None
        )
        instance.launch_time = record.launch_time.replace(tzinfo=None)
        instance.monitoring_state = "enabled" if record.monitoring else "disabled"
        instance.spot_instance_request_id = record.spot_request_id
        instance.hibernation_options = {"Configured": record.hibernation}
        instance.instance_initiated_shutdown_behavior = record.shutdown_behavior
        instance.instance_type, instance.ebs_optimized = record.instance_type, record.ebs_optimized
        instance.cpu_options = cpu_options(record.instance_type)
        alive = record.state != "terminated"  # EC2 shows no groups of an instance that has ended
        instance.security_groups = self._groups(record.security_group_ids) if alive else []
        options = record.metadata_options
        instance.metadata_options = moto.instances.MetadataOptions(
            {
                "HttpTokens": options.http_tokens,
                "HttpPutResponseHopLimit": options.hop_limit,
                "HttpEndpoint": options.http_endpoint,
                "InstanceMetadataTags": "enabled" if options.instance_tags else "disabled",
            }
        )
        profile = record.profile
        instance.iam_instance_profile = (
            {"Arn": profile.profile_arn, "Id": profile.profile_id} if profile else None
        )
        nic = instance.nics[0]
        nic.public_ip = record.public_ip
        nic._group_set = list(instance.security_groups)
        self._tag(record.id, record.tags)
        if record.state == "terminated":
            if self.ec2.enis.get(nic.id) is nic:  # an interface that outlives its instance is shown by itself
                del self.ec2.enis[nic.id]
            nic.subnet.del_subnet_ip(record.private_ip)

    def show_public_addresses(
        self, records: Mapping[str, InstanceRecord], is_late: Callable[[str], bool]
    ) -> None:
        """Show the public addresses that are not late; an Elastic IP was there before its instance."""
        elastic = {address.public_ip for address in self.ec2.addresses}
        for reservation in self.ec2.reservations.values():
            for instance in reservation.instances:
                address = records[instance.id].public_ip
                late = address not in elastic and is_late(instance.id)
                instance.nics[0].public_ip = None if late else address

    def _make_instance(self, record: InstanceRecord) -> Any:
        alive = record.state != "terminated"
        lost = not any(record.subnet_id in by_zone for by_zone in self.ec2.subnets.values())
        shown_in = self.ec2.get_default_subnets()[record.zone].id if lost else record.subnet_id
        with (
            moto.fixed_ids(
                moto.instances,
                random_instance_id=record.id,
                random_eni_attach_id=record.interface_attachment_id,
            ),
            moto.fixed_ids(
                moto.interfaces, random_eni_id=record.interface_id, random_mac_address=record.mac_address
            ),
        ):
            instance = moto.instances.Instance(
                self.ec2, record.image_id, record.user_data_base64, self._groups(record.security_group_ids),
                instance_type=record.instance_type, region_name=self.region, placement=record.zone,
                subnet_id=shown_in, key_name=record.key_name, client_token=record.client_token,
                # The address of a terminated machine may be another's by now.
                private_ip=record.private_ip if alive else None,
                associate_public_ip=False, ebs_optimized=record.ebs_optimized,
                ami_launch_index=record.launch_index,
                lifecycle="spot" if record.market == "spot" else None,
            )  # fmt: skip
        if not alive:
            nic = instance.nics[0]
            nic.subnet.del_subnet_ip(nic.private_ip_address)
            nic.private_ip_address = record.private_ip
            nic.private_ip_addresses[0]["PrivateIpAddress"] = record.private_ip
            nic.private_dns_name = moto.interfaces.generate_dns_from_ip(record.private_ip)
        nic = instance.nics[0]
        if lost:  # it was deleted after the instance had ended
            nic.subnet = _LostSubnet(record.subnet_id, record.zone)
            instance._subnet_id = record.subnet_id
        nic.delete_on_termination = True
        nic.attach_time = record.launch_time.replace(tzinfo=None)
        # The image may be deregistered by now; these come from the record.
        instance.architecture, instance.root_device_name = record.architecture, record.root_device_name
        instance.virtualization_type, instance.boot_mode = "hvm", "uefi"
        instance.ena_support, instance.current_instance_boot_mode = True, "uefi"
        for name, value in AS_IT_IS.items():
            setattr(instance, name, value)
        reservation = self.ec2.reservations.get(record.reservation_id)
        if reservation is None:
            reservation = moto.instances.Reservation(record.reservation_id, owner_id=self.ec2.account_id)
            self.ec2.reservations[record.reservation_id] = reservation
        reservation.instances.append(instance)
        return instance

    # Interfaces and addresses

    def show_interface(self, record: InterfaceRecord) -> None:
        """Show an interface; one that is its instance's first is shown by the instance."""
        place = record.attachment
        owner = self.find_instance(place.instance_id) if place is not None else None
        # Without one, it was terminated long ago, and the record follows.
        if place is not None and owner is not None and place.device_index == 0:
            nic = owner.nics[0]
            nic.description, nic.delete_on_termination = record.description, place.delete_on_termination
            self._tag(record.id, record.tags)
            return
        nic = self.ec2.enis.get(record.id)
        if not isinstance(nic, _OwnInterface):
            with moto.fixed_ids(
                moto.interfaces, random_eni_id=record.id, random_mac_address=record.mac_address
            ):
                nic = _OwnInterface(self.ec2, record.subnet_id, record.private_ip)
            self.ec2.enis[record.id] = nic
        nic.description, nic._group_set = record.description, self._groups(record.security_group_ids)
        if nic.instance is not None:
            nic.instance.detach_eni(nic)
        if place is not None and owner is not None:
            owner.attach_eni(nic, place.device_index)
            nic.attachment_id, nic.delete_on_termination = place.id, place.delete_on_termination
            nic.attach_time = place.attach_time.replace(tzinfo=None)
        self._tag(record.id, record.tags)

    def hide_interface(self, interface_id: str) -> None:
        nic = self.ec2.enis.pop(interface_id, None)
        if nic is not None and nic.instance is not None and nic.device_index:
            nic.instance.detach_eni(nic)
        self.ec2.tags.pop(interface_id, None)

    def show_address(self, record: AddressRecord) -> None:
        self.hide_address(record.id)
        address = moto.addresses.ElasticAddress(self.ec2, "vpc", record.public_ip)
        address.id = address.allocation_id = record.id
        address.association_id = record.association_id
        if record.interface_id is not None:
            address.eni = self.ec2.enis.get(record.interface_id)
            address.instance = address.eni.instance if address.eni else None
            if address.eni:
                address.eni.public_ip = record.public_ip
        self.ec2.addresses.append(address)
        self._tag(record.id, record.tags)

    def hide_address(self, allocation_id: str) -> None:
        for item in [item for item in self.ec2.addresses if item.id == allocation_id]:
            self.ec2.addresses.remove(item)
            if item.eni is not None and item.eni.public_ip == item.public_ip:
                item.eni.public_ip = None
        self.ec2.tags.pop(allocation_id, None)

    def _groups(self, group_ids: list[str]) -> list[Any]:
        # A terminated instance may name groups that are deleted.
        groups = (self.ec2.get_security_group_from_id(group_id) for group_id in group_ids)
        return [group for group in groups if group is not None]

    def find_instance(self, instance_id: str) -> Any:
        """moto's instance, or None."""
        for reservation in self.ec2.reservations.values():
            for instance in reservation.instances:
                if instance.id == instance_id:
                    return instance
        return None

    def hide_instance(self, record: InstanceRecord) -> None:
        instance = self.find_instance(record.id)
        nic = instance.nics[0] if instance is not None else None
        if nic is not None and record.state != "terminated":
            # Of a launch that is undone. The address of a terminated machine may be another's by now.
            nic.subnet.del_subnet_ip(record.private_ip)
            if self.ec2.enis.get(nic.id) is nic:
                del self.ec2.enis[nic.id]
        reservation = self.ec2.reservations.get(record.reservation_id)
        if reservation is not None:
            reservation.instances = [item for item in reservation.instances if item.id != record.id]
            if not reservation.instances:
                del self.ec2.reservations[record.reservation_id]
        self.ec2.tags.pop(record.id, None)

    # What moto makes itself: captured after its action, shown at the next start

    def capture_key_pair(self, name: str) -> KeyPairRecord:
        pair = self.ec2.key_pairs[name]
        return KeyPairRecord(
            id=pair.id, name=name, key_type=pair.key_type or "rsa", fingerprint=pair.key_fingerprint,
            public_key=pair.public_key, create_time=pair.create_time, tags=self.tags_of(pair.id),
        )  # fmt: skip

    def show_key_pair(self, record: KeyPairRecord) -> None:
        with moto.fixed_ids(moto.key_pairs, random_key_pair_id=record.id):
            pair = moto.key_pairs.KeyPair(
                record.name, record.key_type, record.fingerprint, b"", record.public_key.encode(),
                record.tags,
                self.ec2,
            )  # fmt: skip
        pair.create_time = record.create_time
        self.ec2.key_pairs[record.name] = pair

    def capture_group(self, group_id: str) -> SecurityGroupRecord:
        group = self.ec2.get_security_group_from_id(group_id)
        rules = [
            RuleRecord(
                id=rule.id, egress=rule.is_egress, ip_protocol=rule.ip_protocol, from_port=rule.from_port,
                to_port=rule.to_port, ip_range=_strings(rule.ip_range),
                source_group=_strings(rule.source_group),
                prefix_list_id=rule.prefix_list_id, tags=self.tags_of(rule.id),
            )
            for rule in [*group.ingress_rules, *group.egress_rules]
        ]  # fmt: skip
        return SecurityGroupRecord(
            id=group.id, vpc_id=group.vpc_id, name=group.name, description=group.description,
            is_default=group.is_default, rules=rules,
            tags=self.tags_of(group.id),
        )  # fmt: skip

    def show_group(self, record: SecurityGroupRecord) -> None:
        group = self.ec2.get_security_group_from_id(record.id)
        if group is None:
            with moto.fixed_ids(moto.security_groups, random_security_group_id=record.id):
                group = self.ec2.create_security_group(
                    record.name, record.description, vpc_id=record.vpc_id or None, force=True,
                    is_default=record.is_default,
                )  # fmt: skip
        group.ingress_rules, group.egress_rules = [], []
        for rule in record.rules:
            with moto.fixed_ids(moto.security_groups, random_security_group_rule_id=rule.id):
                moto_rule = GroupRule(
                    self.ec2, record.id, rule.ip_protocol, rule.from_port, rule.to_port,
                    ip_range=rule.ip_range, source_group=rule.source_group,
                    prefix_list_id=rule.prefix_list_id, egress=rule.egress, tags=rule.tags,
                )  # fmt: skip
            (group.egress_rules if rule.egress else group.ingress_rules).append(moto_rule)
        self._tag(record.id, record.tags)

    def hide_group(self, group_id: str) -> None:
        group = self.ec2.get_security_group_from_id(group_id)
        if group is not None:
            self.ec2.groups[group.vpc_id].pop(group_id, None)
        self.ec2.tags.pop(group_id, None)

    def capture_parameter(self, name: str) -> ParameterRecord:
        parameter = self.ssm._parameters[name][-1]
        return ParameterRecord(
            name=parameter.name, value=parameter.decrypt(parameter.value) or "",
            parameter_type=parameter.parameter_type,
            description=parameter.description, data_type=parameter.data_type, tier=parameter.tier,
            parameter_version=parameter.version, last_modified=parameter.last_modified_date,
            tags=dict(self.ssm._resource_tags["Parameter"][name]),
        )  # fmt: skip

    def parameters_with(self, value: str) -> list[str]:
        """Names of the SSM parameters that have this value now."""
        latest = {name: versions[-1] for name, versions in self.ssm._parameters.items() if versions}
        return [name for name, last in latest.items() if (last.decrypt(last.value) or "") == value]

    def show_parameter(self, record: ParameterRecord) -> None:
        parameter = moto.ssm_parameter(
            account_id=moto.ACCOUNT_ID, name=record.name, value=record.value,
            parameter_type=record.parameter_type, description=record.description, allowed_pattern=None,
            keyid=None, last_modified_date=record.last_modified.replace(tzinfo=None),
            version=record.parameter_version, data_type=record.data_type, tier=record.tier,
        )  # fmt: skip
        name = self.ssm._parameters.normalize_name(record.name)
        self.ssm._parameters[name] = [parameter]
        self.ssm._resource_tags["Parameter"][name] = dict(record.tags)

    def keep_only(
        self, groups: list[SecurityGroupRecord], pairs: list[KeyPairRecord], parameters: list[ParameterRecord]
    ) -> None:
        """Show exactly these, whatever moto has made meanwhile."""
        for group in self.ec2.describe_security_groups():
            if group.id not in {record.id for record in groups}:
                self.hide_group(group.id)
        for group_record in groups:
            self.show_group(group_record)
        for name, pair in list(self.ec2.key_pairs.items()):
            if pair.id not in {record.id for record in pairs}:
                del self.ec2.key_pairs[name]
                self.ec2.tags.pop(pair.id, None)
        for pair_record in pairs:
            self.show_key_pair(pair_record)
        names = {self.ssm._parameters.normalize_name(record.name) for record in parameters}
        for name in [name for name in self.ssm._parameters if name not in names]:
            self.ssm._parameters.pop(name, None)
        for parameter in parameters:
            self.show_parameter(parameter)

    def show_tags(self, record: TagsRecord) -> None:
        self._tag(record.resource_id, record.tags)

    def tags_of(self, resource_id: str) -> dict[str, str]:
        return dict(self.ec2.tags.get(resource_id, {}))


def _strings(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items() if value is not None}
