"""The actions on network interfaces and Elastic IPs: parameters in, moto's view of our records out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from instant_env.localec2.state.client_tokens import request_digest
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response, EmptyResult

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class NetworkInterfaces(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    def _required(self, name: str) -> str:
        value = self._get_param(name)
        if not value:
            raise EC2ClientError("MissingParameter", f"The request must contain the parameter {name}")
        return str(value)

    def create_network_interface(self) -> ActionResult:
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        record = self.services.interfaces.create(
            self._required("SubnetId"), self._address(),
            list(self._get_param("Groups", [])), self._get_param("Description") or "",
            tags.get("network-interface", {}), self._get_param("ClientToken"),
            request_digest(self.querystring),
        )  # fmt: skip
        return ActionResult({"NetworkInterface": self.ec2_backend.enis[record.id]})

    def _address(self) -> str | None:
        """The one address that an interface is to have. Raises EC2ClientError."""
        address, listed = self._get_param("PrivateIpAddress"), self._get_param("PrivateIpAddresses") or []
        if len(listed) > 1 or (listed and address):
            raise EC2ClientError(
                "UnsupportedOperation", "localec2's network interfaces have one private address each."
            )
        if listed and not listed[0].get("Primary"):
            raise EC2ClientError(
                "InvalidParameterCombination", "One of the private IP addresses must be primary."
            )
        chosen: str | None = listed[0].get("PrivateIpAddress") if listed else address
        return chosen

    def delete_network_interface(self) -> ActionResult:
        self.error_on_dryrun()
        self.services.interfaces.delete(self._required("NetworkInterfaceId"))
        return EmptyResult()

    def attach_network_interface(self) -> ActionResult:
        self.error_on_dryrun()
        place = self.services.interfaces.attach(
            self._required("NetworkInterfaceId"), self._required("InstanceId"),
            int(self._required("DeviceIndex")),
        )  # fmt: skip
        return ActionResult({"AttachmentId": place.id, "NetworkCardIndex": 0})

    def detach_network_interface(self) -> ActionResult:
        self.error_on_dryrun()
        self.services.interfaces.detach(self._required("AttachmentId"))
        return EmptyResult()

    def modify_network_interface_attribute(self) -> ActionResult:
        """One attribute. `SourceDestCheck` is true and stays so: the allow-list has seen to it."""
        interface_id = self._required("NetworkInterfaceId")
        groups, attachment = self._get_param("Groups", []), self._get_param("Attachment")
        description = (self._get_param("Description") or {}).get("Value")
        checked = self._get_param("SourceDestCheck") is not None
        kinds = bool(groups) + (attachment is not None) + (description is not None) + checked
        if kinds != 1:
            raise EC2ClientError(
                "InvalidParameterCombination" if kinds else "MissingParameter",
                f"The request must contain one attribute to change, not {kinds}",
            )
        interfaces = self.services.interfaces
        interfaces.check(interface_id, groups)
        self.error_on_dryrun()
        if groups:
            interfaces.set_groups(interface_id, list(groups))
        elif attachment is not None:
            interfaces.set_termination(
                interface_id, attachment.get("AttachmentId"), bool(attachment.get("DeleteOnTermination"))
            )
        elif description is not None:
            interfaces.describe_as(interface_id, description)
        return EmptyResult()

    def allocate_address(self) -> ActionResult:
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        record = self.services.interfaces.allocate(tags.get("elastic-ip", {}))
        return ActionResult({"PublicIp": record.public_ip, "Domain": "vpc", "AllocationId": record.id})

    def release_address(self) -> ActionResult:
        self.error_on_dryrun()
        self.services.interfaces.release(self._required("AllocationId"))
        return EmptyResult()

    def associate_address(self) -> ActionResult:
        self.error_on_dryrun()
        record = self.services.interfaces.associate(
            self._required("AllocationId"), self._get_param("InstanceId"),
            self._get_param("NetworkInterfaceId"), move=self._get_bool_param("AllowReassociation", True),
        )  # fmt: skip
        return ActionResult({"AssociationId": record.association_id})

    def disassociate_address(self) -> ActionResult:
        self.error_on_dryrun()
        self.services.interfaces.disassociate(self._required("AssociationId"))
        return EmptyResult()
