"""Network interfaces that are made by themselves, and Elastic IPs: what becomes of them."""

from __future__ import annotations

import logging

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.launches import mac_address, private_ip
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.network.addresses import NetworkError
from instant_env.localec2.network.netd_client import ANSWER_TIMEOUT_S
from instant_env.localec2.qemu import command_line
from instant_env.localec2.records.records import (
    AddressRecord,
    InstanceRecord,
    InterfaceAttachment,
    InterfaceRecord,
    Tags,
)
from instant_env.localec2.state.client_tokens import records_of_token
from instant_env.localec2.state.moto_api import EC2ClientError, new_id
from instant_env.localec2.state.state import State, now

log = logging.getLogger(__name__)

#: A guest lets go of a network card as quickly as of a disk.
DETACH_TIMEOUT_S = 30.0
#: Elastic IPs per region, unless more were granted (EC2 User Guide, "Elastic IP addresses").
ADDRESS_QUOTA = 5


class Interfaces:
    """Interfaces and addresses of one server. Methods want the lock held unless they say otherwise."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self.state = state
        self.lifecycle = lifecycle
        self.address_quota = ADDRESS_QUOTA
        lifecycle.on_terminated = self.instance_ended

    # Interfaces

    def create(
        self,
        subnet_id: str,
        address: str | None,
        group_ids: list[str],
        description: str,
        tags: Tags,
        token: str | None,
        digest: str,
    ) -> InterfaceRecord:
        """CreateNetworkInterface; the same client token gives the same interface."""
        if earlier := records_of_token(self.state.interfaces.values(), token, digest):
            return earlier[0]
        subnet, ec2 = self.state.subnet(subnet_id), self.state.mirror.ec2
        self.state.networks.check_groups(group_ids, subnet.vpc_id)
        record = InterfaceRecord(
            id=new_id("eni"), tags=tags, description=description, subnet_id=subnet.id,
            zone=subnet.availability_zone, private_ip=private_ip(self.state, subnet, address),
            mac_address=mac_address(), client_token=token,
            request_digest=digest,
            security_group_ids=group_ids or [ec2.get_default_security_group(subnet.vpc_id).id],
        )  # fmt: skip
        self.state.save(record)
        return record

    def delete(self, interface_id: str) -> None:
        """DeleteNetworkInterface."""
        record = self.state.interface(interface_id)
        if record.attachment is not None:
            raise EC2ClientError(
                "InvalidParameterValue", f"Network interface '{interface_id}' is currently in use."
            )
        self._dissociate(interface_id)
        self.state.forget(record)

    def attach(self, interface_id: str, instance_id: str, index: int) -> InterfaceAttachment:
        """AttachNetworkInterface, to a stopped or a running instance."""
        record, instance = self.state.interface(interface_id), self.state.instance(instance_id)
        if record.attachment is not None:
            raise EC2ClientError(
                "InvalidParameterValue", f"Network interface '{interface_id}' is currently in use."
            )
        if instance.state not in ("running", "stopped"):
            raise EC2ClientError("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
        if record.zone != instance.zone:
            raise EC2ClientError(
                "InvalidParameterCombination",
                "You may not attach a network interface to an instance if they are not in the same "
                "availability zone",
            )
        attachments = [item.attachment for item in self._beside(instance_id)]
        indexes = {0} | {attachment.device_index for attachment in attachments if attachment}
        if index in indexes:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"Instance '{instance_id}' already has an interface attached at device index '{index}'.",
            )
        if not 1 <= index <= command_line.NIC_SLOTS:
            raise EC2ClientError(
                "AttachmentLimitExceeded",
                f"localec2 attaches interfaces at device indexes up to {command_line.NIC_SLOTS}.",
            )
        record.attachment = InterfaceAttachment(
            id=new_id("eni-attach"), instance_id=instance_id, device_index=index,
            delete_on_termination=False, attach_time=now(),
        )  # fmt: skip
        self._saved(record)
        self.lifecycle.machine_builder.write_metadata(instance)
        if instance.state == "running":
            self.lifecycle.work(interface_id, lambda _: self._plug(record, instance))
        return record.attachment

    # Attributes

    def check(self, interface_id: str, group_ids: list[str]) -> None:
        """Refuse an interface or groups that do not exist."""
        ec2 = self.state.mirror.ec2
        if interface_id not in ec2.enis:
            self.state.interface(interface_id)  # refuses
        if group_ids:
            self.state.networks.check_groups(group_ids, ec2.enis[interface_id].subnet.vpc_id)

    def set_groups(self, interface_id: str, group_ids: list[str]) -> None:
        """The security groups of an interface; those of an instance's first one are the instance's."""
        if (record := self.state.interfaces.get(interface_id)) is not None:
            record.security_group_ids = group_ids
            self._saved(record)
        owner = self._owner(interface_id)
        if owner is not None and owner.interface_id == interface_id:
            owner.security_group_ids = group_ids
            self.state.save(owner)
        if owner is not None and owner.id in self.lifecycle.machines:
            self.lifecycle.machine_builder.write_metadata(owner)
            self.lifecycle.machine_builder.refresh_interfaces(owner)
        self.lifecycle.refresh_network()

    def describe_as(self, interface_id: str, description: str) -> None:
        """The description of an interface that was made by itself."""
        record = self._own_interface(interface_id, "Description")
        record.description = description
        self._saved(record)

    def set_termination(self, interface_id: str, attachment_id: str | None, delete: bool) -> None:
        """Whether an attached interface ends with its instance."""
        record = self._own_interface(interface_id, "Attachment.DeleteOnTermination")
        if record.attachment is None or record.attachment.id != attachment_id:
            raise EC2ClientError(
                "InvalidAttachmentID.NotFound", f"The attachment ID '{attachment_id}' does not exist"
            )
        record.attachment = record.attachment.model_copy(update={"delete_on_termination": delete})
        self._saved(record)

    def _own_interface(self, interface_id: str, what: str) -> InterfaceRecord:
        if interface_id not in self.state.interfaces:
            raise EC2ClientError(
                "UnsupportedOperation",
                f"localec2 does not support {what} of an interface that a launch has made: {interface_id}.",
            )
        return self.state.interfaces[interface_id]

    def _owner(self, interface_id: str) -> InstanceRecord | None:
        """The instance that an interface is attached to."""
        record = self.state.interfaces.get(interface_id)
        if record is not None and record.attachment is not None:
            return self.state.instances.get(record.attachment.instance_id)
        live = (item for item in self.state.instances.values() if item.state != "terminated")
        return next((item for item in live if item.interface_id == interface_id), None)

    def _beside(self, instance_id: str) -> list[InterfaceRecord]:
        return self.state.attached_interfaces(instance_id)

    def _plug(self, record: InterfaceRecord, instance: InstanceRecord) -> None:
        """Plug the card in (lock not held); when that fails the interface is `available` again."""
        machine_builder = self.lifecycle.machine_builder
        try:
            with self.state.lock:
                machine, place = self.lifecycle.machines.get(instance.id), record.attachment
                if machine is None or place is None:
                    return
                interface = machine_builder.secondary(record, machine_builder.write_metadata(instance))
                cable = machine_builder.network.plug(interface)
            cable.result(ANSWER_TIMEOUT_S)
            machine.attach_nic(machine_builder.nic(interface), place.device_index)
        except (InstantEnvError, TimeoutError) as error:
            log.error("%s was not attached to %s: %s", record.id, instance.id, error)
            with self.state.lock:
                self._detached(record, instance)

    def detach(self, attachment_id: str) -> None:
        """DetachNetworkInterface; from a running machine it is done when the guest has let go."""
        records = (
            r for r in self.state.interfaces.values() if r.attachment and r.attachment.id == attachment_id
        )
        record = next(records, None)
        primary = any(item.interface_attachment_id == attachment_id for item in self.state.instances.values())
        if primary or (record and record.attachment and record.attachment.device_index == 0):
            raise EC2ClientError(
                "OperationNotPermitted", "The network interface at device index 0 cannot be detached."
            )
        if record is None or record.attachment is None:
            raise EC2ClientError(
                "InvalidAttachmentID.NotFound", f"The attachment ID '{attachment_id}' does not exist"
            )
        attachment, instance = record.attachment, self.state.instance(record.attachment.instance_id)
        machine = self.lifecycle.machines.get(instance.id)
        if machine is None:
            self._detached(record, instance)
            return

        def unplug(_: str) -> None:
            try:
                machine.detach_nic(record.id, DETACH_TIMEOUT_S)
            except InstantEnvError as error:
                log.warning("%s stays attached: %s", record.id, error)
                return
            with self.state.lock:  # a machine that ended may have taken it along, or given it back itself
                if record.id in self.state.interfaces and record.attachment is attachment:
                    self._detached(record, instance)

        self.lifecycle.work(record.id, unplug)

    def _detached(self, record: InterfaceRecord, instance: InstanceRecord) -> None:
        self.lifecycle.machine_builder.network.unplug(record.id)
        record.attachment = None
        self._saved(record)
        if instance.state != "terminated":
            self.lifecycle.machine_builder.write_metadata(instance)

    def _saved(self, record: InterfaceRecord) -> None:
        """Save it, and show its Elastic IP where it is now."""
        self.state.save(record)
        for address in self.state.addresses.values():
            if address.interface_id == record.id:
                self.state.mirror.show_address(address)

    # Elastic IPs

    def allocate(self, tags: dict[str, str]) -> AddressRecord:
        """AllocateAddress."""
        if len(self.state.addresses) >= self.address_quota:
            raise EC2ClientError("AddressLimitExceeded", "The maximum number of addresses has been reached.")
        try:
            public_ip = self.lifecycle.machine_builder.network.addresses.allot()
        except NetworkError as error:
            raise EC2ClientError("AddressLimitExceeded", error.message) from error
        record = AddressRecord(id=new_id("eipalloc"), tags=tags, public_ip=public_ip)
        self.state.save(record)
        return record

    def release(self, allocation_id: str) -> None:
        """ReleaseAddress."""
        record = self.state.address(allocation_id)
        if record.interface_id is not None:
            raise EC2ClientError("InvalidIPAddress.InUse", f"Address {record.public_ip} is in use.")
        self.state.forget(record)
        self.lifecycle.machine_builder.network.addresses.release(record.public_ip)

    def associate(
        self, allocation_id: str, instance_id: str | None, interface_id: str | None, *, move: bool
    ) -> AddressRecord:
        """AssociateAddress: with an interface, or the first one of an instance."""
        record = self.state.address(allocation_id)
        if instance_id is not None:
            instance = self.state.instance(instance_id)
            if instance.state in ("shutting-down", "terminated"):
                raise EC2ClientError(
                    "IncorrectInstanceState", f"The instance '{instance_id}' is {instance.state}."
                )
            interface_id = instance.interface_id
        elif interface_id is None:
            raise EC2ClientError(
                "MissingParameter", "Either instance ID or network interface id must be given"
            )
        elif interface_id not in self.state.mirror.ec2.enis:
            self.state.interface(interface_id)  # refuses
        vpc_id = self.state.mirror.ec2.enis[interface_id].subnet.vpc_id
        if self.state.networks.gateway_of(vpc_id) is None:
            raise EC2ClientError(
                "Gateway.NotAttached", f"Network {vpc_id} is not attached to any internet gateway"
            )
        if record.interface_id not in (None, interface_id) and not move:
            raise EC2ClientError(
                "Resource.AlreadyAssociated",
                f"resource {allocation_id} is already associated with associate-id {record.association_id}",
            )
        if record.interface_id != interface_id:
            if record.interface_id is not None:
                self._dissociate(record.interface_id)
            self._dissociate(interface_id, replaced=True)
            record.interface_id, record.association_id = interface_id, new_id("eipassoc")
            self.state.save(record)
            self._public_ip_changed(interface_id)
        return record

    def disassociate(self, association_id: str) -> None:
        """DisassociateAddress."""
        for record in self.state.addresses.values():
            if record.association_id == association_id and record.interface_id is not None:
                self._dissociate(record.interface_id)
                return
        raise EC2ClientError(
            "InvalidAssociationID.NotFound", f"The association ID '{association_id}' does not exist"
        )

    def _dissociate(self, interface_id: str, *, replaced: bool = False) -> None:
        """Take the Elastic IP from an interface, if it has one."""
        for record in self.state.addresses.values():
            if record.interface_id == interface_id:
                record.interface_id = record.association_id = None
                self.state.save(record)
                if not replaced:
                    self._public_ip_changed(interface_id)

    def _public_ip_changed(self, interface_id: str) -> None:
        """Make the machine of an interface reachable at its Elastic IP, or at one of its own again."""
        addresses = self.lifecycle.machine_builder.network.addresses
        for instance in self.state.instances.values():
            if instance.state == "terminated":
                continue
            elastic = {item.public_ip for item in self.state.addresses.values()}
            running = instance.id in self.lifecycle.machines
            if instance.interface_id == interface_id:
                if instance.public_ip not in elastic:
                    addresses.release(instance.public_ip)
                instance.public_ip = self.state.elastic_ip(interface_id)
                if instance.public_ip is None and running and instance.wants_public_ip:
                    instance.public_ip = addresses.allot()
                self.state.save(instance)
            elif interface_id not in {item.id for item in self._beside(instance.id)}:
                continue
            if running:
                self.lifecycle.machine_builder.write_metadata(instance)
                self.lifecycle.machine_builder.refresh_interfaces(instance)

    # What happens to instances

    def instance_ended(self, instance: InstanceRecord) -> None:
        """A terminated instance gives back its interfaces, or takes them with it, and its addresses."""
        records = self._beside(instance.id)
        for record in records:
            if record.attachment and record.attachment.delete_on_termination:
                self._dissociate(record.id)
                self.state.forget(record)
            else:
                self._detached(record, instance)
        if instance.interface_id not in {record.id for record in records}:
            self._dissociate(instance.interface_id)

    def settle(self) -> None:
        """At start: claim the addresses again, on a new block where the old one is another server's now."""
        for address in self.state.addresses.values():
            address.public_ip = self.lifecycle.machine_builder.network.addresses.reclaim(address.public_ip)
            self.state.save(address)
        for instance in self.state.instances.values():
            if instance.state != "terminated" and (public_ip := self.state.elastic_ip(instance.interface_id)):
                instance.public_ip = public_ip
                self.state.save(instance)
        for record in list(self.state.interfaces.values()):
            place = record.attachment
            owner = self.state.instances.get(place.instance_id) if place else None
            if place and (owner is None or owner.state == "terminated"):
                record.attachment = None
                self._saved(record)
