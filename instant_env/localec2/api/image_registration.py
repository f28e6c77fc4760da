"""RegisterImage from snapshots, and what can be asked and changed of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instant_env.localec2.api.base import Action
from instant_env.localec2.instances.mappings import changed, device_of, registered
from instant_env.localec2.records.records import ImageMapping, ImageRecord
from instant_env.localec2.state.client_tokens import request_digest
from instant_env.localec2.state.moto_api import ACCOUNT_ID, ActionResult, EC2ClientError, EmptyResult, new_id
from instant_env.localec2.state.state import now
from instant_env.localec2.volumes.protection import protection_of

#: Attributes that no image here has -> the members of the answer that are empty then.
_MEMBERS = {"kernel": "KernelId", "ramdisk": "RamdiskId", "tpmSupport": "TpmSupport", "uefiData": "UefiData"}
ARCHITECTURES = ("x86_64", "arm64")


class ImageRegistration(Action):
    """Mixed into moto's response class, which has the parameters."""

    if TYPE_CHECKING:

        @staticmethod
        def _mapping(mapping: ImageMapping) -> dict[str, Any]: ...

    def register_image(self) -> ActionResult:
        """Only what boots here is taken, and said outright: EC2's defaults are paravirtual, i386 and BIOS."""
        state = self.services.state
        tags = self._parse_tag_specification()
        name, architecture = self._get_param("Name") or "", self._get_param("Architecture")
        self.services.images.check_name(name)
        if architecture not in ARCHITECTURES:
            raise EC2ClientError(
                "InvalidParameterValue", f"Architecture is one of {', '.join(ARCHITECTURES)} here."
            )
        if self._get_param("VirtualizationType") is None:
            raise EC2ClientError(
                "UnsupportedOperation", "localec2 has no paravirtual machines: VirtualizationType is hvm."
            )
        boot_mode = self._get_param("BootMode")
        if boot_mode is None and architecture == "x86_64":
            raise EC2ClientError(
                "UnsupportedOperation",
                "An x86_64 image without BootMode boots by BIOS on EC2; localec2 has UEFI: give BootMode.",
            )
        root_device = self._get_param("RootDeviceName")
        if not root_device:
            raise EC2ClientError("MissingParameter", "The request must contain the parameter rootDeviceName")
        support = self._get_param("ImdsSupport")
        if support not in (None, "v2.0"):
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{support}' for imdsSupport")
        mappings_by_device: dict[str, ImageMapping] = {}
        for mapping in self._get_param("BlockDeviceMappings") or []:
            device = device_of(mapping)
            if device in mappings_by_device:
                raise EC2ClientError("InvalidBlockDeviceMapping", f"The device '{device}' is used twice.")
            ebs = registered(state, mapping.get("Ebs") or {})
            mappings_by_device[device] = changed(None, device, ebs, state)
        for mapped in mappings_by_device.values():
            if mapped.snapshot_id:
                snapshot = state.snapshot(mapped.snapshot_id)
                if snapshot.state != "completed":
                    raise EC2ClientError(
                        "IncorrectState", f"Snapshot {snapshot.id} is in invalid state - {snapshot.state}"
                    )
        root = mappings_by_device.pop(root_device, None)
        if root is None or root.snapshot_id is None:
            raise EC2ClientError(
                "InvalidBlockDeviceMapping", f"No snapshot is mapped at the root device {root_device}"
            )
        self.error_on_dryrun()
        image = ImageRecord(
            id=new_id("ami"), tags=tags.get("image", {}), name=name,
            description=self._get_param("Description") or "", owner_id=ACCOUNT_ID, architecture=architecture,
            state="available", creation_date=now(), root_device_name=root_device,
            snapshot_id=root.snapshot_id, size_gib=root.size_gib,
            root_delete_on_termination=root.delete_on_termination,
            root_volume_type=root.volume_type, root_performance=root.performance,
            mappings=list(mappings_by_device.values()), boot_mode=boot_mode or "uefi",
            ena_support=bool(self._get_bool_param("EnaSupport", False)), imds_support=support,
        )  # fmt: skip
        state.save(image)
        return ActionResult({"ImageId": image.id})

    def copy_image(self) -> ActionResult:
        tags = self._parse_tag_specification()
        region = self.services.state.region
        if self._get_param("SourceRegion") != region:
            raise EC2ClientError("UnsupportedOperation", f"localec2 has one region, {region}.")
        source_id = self._get_param("SourceImageId") or ""
        if self._get_bool_param("CopyImageTags", False):
            copied = self.services.state.image(source_id).tags
            tags = tags | {"image": copied | tags.get("image", {})}
        self.error_on_dryrun()
        image = self.services.images.copy(
            source_id, self._get_param("Name") or "", self._get_param("Description") or "", tags,
            self._get_param("ClientToken"), request_digest(self.querystring),
        )  # fmt: skip
        return ActionResult({"ImageId": image.id})

    def modify_image_attribute(self) -> ActionResult:
        image = self.services.state.image(self._get_param("ImageId"))
        if image.owner_id != ACCOUNT_ID:
            raise EC2ClientError("AuthFailure", f"Not authorized for image:{image.id}")
        attribute, value = self._get_param("Attribute"), self._get_param("Value")
        description = self._get_param("Description.Value") or (value if attribute == "description" else None)
        support = self._get_param("ImdsSupport.Value") or (value if attribute == "imdsSupport" else None)
        if description is None and support is None:
            raise EC2ClientError("MissingParameter", "The request must contain an attribute to change")
        if support not in (None, "v2.0"):
            # EC2 does not let it be taken back either.
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{support}' for imdsSupport")
        self.error_on_dryrun()
        if description is not None:
            image.description = description
        if support is not None:
            image.imds_support = "v2.0"
        self.services.state.save(image)
        return EmptyResult()

    def describe_image_attribute(self) -> ActionResult:
        image, attribute = self.services.state.image(self._get_param("ImageId")), self._get_param("Attribute")
        self.error_on_dryrun()
        answer: dict[str, Any] = {"ImageId": image.id}
        match attribute:
            case "description":
                answer["Description"] = {"Value": image.description}
            case "bootMode":
                answer["BootMode"] = {"Value": image.boot_mode}
            case "imdsSupport":
                answer["ImdsSupport"] = {"Value": image.imds_support} if image.imds_support else {}
            case "lastLaunchedTime":
                at = image.last_launched
                answer["LastLaunchedTime"] = {"Value": at.strftime("%Y-%m-%dT%H:%M:%SZ")} if at else {}
            case "deregistrationProtection":
                answer["DeregistrationProtection"] = {"Value": protection_of(image)}
            case "launchPermission":
                answer["LaunchPermissions"] = [{"Group": "all"}] if image.public else []
            case "productCodes":
                answer["ProductCodes"] = []
            case "kernel" | "ramdisk" | "tpmSupport" | "uefiData":  # EC2 answers so where there is none
                answer[_MEMBERS[attribute]] = {}
            case "sriovNetSupport":
                answer["SriovNetSupport"] = {"Value": "simple"}
            case "blockDeviceMapping":
                root = self.services.state.snapshots.get(image.snapshot_id)
                mappings = image.all_mappings(root_encrypted=root is not None and root.encrypted)
                answer["BlockDeviceMappings"] = [self._mapping(item) for item in mappings]
            case _:
                raise EC2ClientError(
                    "UnsupportedOperation", f"localec2 does not know the attribute {attribute}."
                )
        return ActionResult(answer)
