"""Describe actions whose truth is in our records: moto selects, these say what is selected."""

from __future__ import annotations

from typing import Any

from instant_env.localec2.api.base import Action
from instant_env.localec2.api.pages import page
from instant_env.localec2.instances.filters import FILTERS
from instant_env.localec2.instances.volume_types import described
from instant_env.localec2.records.records import ImageMapping, ImageRecord, VolumeRecord
from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import (
    ACCOUNT_ID,
    INSTANCE_FILTERS,
    ActionResult,
    EC2ClientError,
    generic_filter,
)
from instant_env.localec2.state.state import now
from instant_env.localec2.state.strictness.visibility import hides
from instant_env.localec2.volumes.protection import protection_of

#: Filters of DescribeVolumesModifications -> members of its answer.
_MODIFICATION_FILTERS = {
    "modification-state": "ModificationState", "original-iops": "OriginalIops",
    "original-size": "OriginalSize", "original-volume-type": "OriginalVolumeType",
    "target-iops": "TargetIops", "target-size": "TargetSize", "target-volume-type": "TargetVolumeType",
    "volume-id": "VolumeId",
}  # fmt: skip


def _is_left_out(image: ImageRecord) -> bool:
    """Of a listing without IncludeDeprecated: API_DescribeImages, which leaves in those of the caller's own.

    By its id a deprecated image is described all the same (EC2 User Guide, "Deprecate an Amazon EC2 AMI").
    """
    at = image.deprecation_time
    return image.owner_id != ACCOUNT_ID and at is not None and at <= now()


class Descriptions(Action):
    """Mixed into moto's response class, which has the parameters and the backend."""

    def describe_instances(self) -> ActionResult:
        filters = self._filters_from_querystring()
        ours = {name: filters.pop(name) for name in list(filters) if name in FILTERS}
        for name in filters:  # moto would only notice when there is an instance to look at
            if name not in INSTANCE_FILTERS and not name.startswith(("tag:", "tag-key", "tag-value")):
                raise EC2ClientError(
                    "UnsupportedOperation",
                    f"localec2 does not support the filter {name} of DescribeInstances.",
                )
        self.error_on_dryrun()
        ids, most = self._get_param("InstanceIds", []), self._get_param("MaxResults")
        if ids and most:
            raise EC2ClientError(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        for instance_id in ids:
            self.services.state.instance(instance_id)
        backend = self.ec2_backend
        reservations = (
            backend.get_reservations_by_instance_ids(list(dict.fromkeys(ids)), filters=filters)
            if ids
            else backend.describe_instances(filters=filters)
        )
        state = self.services.state
        for reservation in reservations if ours else []:
            reservation.instances = [
                item
                for item in reservation.instances
                if all(
                    matches(values, FILTERS[name](state, state.instances[item.id]))
                    for name, values in ours.items()
                )
            ]
        reservations = [reservation for reservation in reservations if reservation.instances]
        reservations = self._visible(reservations)
        items, token = page(reservations, self._get_param("NextToken"), most, lambda item: item.id)
        return ActionResult({"Reservations": items, "NextToken": token})

    def _visible(self, reservations: list[Any]) -> list[Any]:
        """Reservations without what is hidden."""
        state = self.services.state
        young, hidden = state.faults.hidden(), hides(state, self.hidden_ids, self.call.fields)
        for reservation in reservations:
            reservation.instances = [
                item for item in reservation.instances if item.id not in young and not hidden(item.id)
            ]
        return [reservation for reservation in reservations if reservation.instances]

    def describe_images(self) -> ActionResult:
        self.error_on_dryrun()
        ids = self._get_param("ImageIds", [])
        for image_id in ids:
            self.services.state.image(image_id)
        images = self.ec2_backend.describe_images(
            ami_ids=ids, filters={}, exec_users=self._get_param("ExecutableUsers", []),
            owners=self._get_param("Owners", []),
        )  # fmt: skip
        # moto ignores filters when ids or owners are given; EC2 applies both.
        filters = self._filters_from_querystring()
        images = generic_filter(filters, images)
        # Where moto was imported before our settings reached it, it knows AMIs of its own. They do not exist.
        own = self.services.state.images
        if not self._get_bool_param("IncludeDisabled", False):
            images = [image for image in images if image.id in own and own[image.id].state != "disabled"]
        if not ids and not self._get_bool_param("IncludeDeprecated", False):
            images = [image for image in images if image.id in own and not _is_left_out(own[image.id])]
        return ActionResult(
            {"Images": [self._image(own[image.id], image.tag_set) for image in images if image.id in own]}
        )

    def _image(self, image: ImageRecord, tags: list[dict[str, str]]) -> dict[str, Any]:
        root = self.services.state.snapshots.get(image.snapshot_id)
        encrypted = root is not None and root.encrypted
        answer: dict[str, Any] = {
            "ImageId": image.id, "Name": image.name, "Description": image.description,
            "OwnerId": image.owner_id,
            "ImageLocation": f"{image.owner_id}/{image.name}", "Public": image.public, "State": image.state,
            "Architecture": image.architecture, "ImageType": "machine", "PlatformDetails": "Linux/UNIX",
            "UsageOperation": "RunInstances", "VirtualizationType": "hvm", "Hypervisor": "xen",
            "EnaSupport": image.ena_support, "SriovNetSupport": "simple", "BootMode": image.boot_mode,
            "CreationDate": image.creation_date.replace(tzinfo=None), "RootDeviceType": "ebs",
            "RootDeviceName": image.root_device_name, "Tags": tags,
            "BlockDeviceMappings": [self._mapping(item) for item in image.all_mappings(encrypted)],
        }  # fmt: skip
        if image.owner_alias:
            answer["ImageOwnerAlias"] = image.owner_alias
        if image.imds_support:
            answer["ImdsSupport"] = image.imds_support
        answer["DeregistrationProtection"] = protection_of(image)
        times = {"DeprecationTime": image.deprecation_time, "LastLaunchedTime": image.last_launched}
        answer |= {
            name: at.strftime("%Y-%m-%dT%H:%M:%S.000Z") for name, at in times.items() if at is not None
        }
        if image.source_instance_id:
            answer["SourceInstanceId"] = image.source_instance_id
        if image.source_image_id:
            answer["SourceImageId"] = image.source_image_id
        if image.state_reason:
            answer["StateReason"] = {"Code": "Server.InternalError", "Message": image.state_reason}
        return answer

    @staticmethod
    def _mapping(mapping: ImageMapping) -> dict[str, Any]:
        ebs = {
            "SnapshotId": mapping.snapshot_id, "VolumeSize": mapping.size_gib,
            "VolumeType": mapping.volume_type, "DeleteOnTermination": mapping.delete_on_termination,
            "Encrypted": mapping.encrypted,
        } | described(mapping.volume_type, mapping.performance)  # fmt: skip
        return {"DeviceName": mapping.device, "Ebs": {k: v for k, v in ebs.items() if v is not None}}

    def describe_snapshots(self) -> ActionResult:
        self.error_on_dryrun()
        ids = self._get_param("SnapshotIds", [])
        for snapshot_id in ids:
            self.services.state.snapshot(snapshot_id)
        filters = self._filters_from_querystring()
        snapshots = self.ec2_backend.describe_snapshots(snapshot_ids=ids, filters=filters)
        if owners := self._get_param("OwnerIds", []):  # moto ignores it
            owner_ids = {self.ec2_backend.account_id if owner == "self" else owner for owner in owners}
            snapshots = [snapshot for snapshot in snapshots if snapshot.owner_id in owner_ids]
        return ActionResult({"Snapshots": [self._snapshot(item.id, item.tag_set) for item in snapshots]})

    def _snapshot(self, snapshot_id: str, tags: list[dict[str, str]]) -> dict[str, Any]:
        record = self.services.state.snapshots[snapshot_id]
        return {
            "SnapshotId": record.id, "VolumeId": record.volume_id, "VolumeSize": record.size_gib,
            "Description": record.description, "OwnerId": record.owner_id, "State": record.state,
            "StateMessage": record.state_message or None, "Encrypted": record.encrypted,
            "StorageTier": "standard",
            "StartTime": record.start_time.replace(tzinfo=None), "Tags": tags,
            "Progress": "100%" if record.state == "completed" else "0%",
        }  # fmt: skip

    def describe_volumes(self) -> ActionResult:
        self.error_on_dryrun()
        ids = self._get_param("VolumeIds", [])
        for volume_id in ids:
            self.services.state.volume(volume_id)
        volumes = self.ec2_backend.describe_volumes(volume_ids=ids, filters=self._filters_from_querystring())
        return ActionResult({"Volumes": [self._volume(self.services.state.volumes[v.id]) for v in volumes]})

    def describe_volumes_modifications(self) -> ActionResult:
        self.error_on_dryrun()
        modifications = self.services.modifications
        volumes = modifications.select(self._get_param("VolumeIds", []))
        descriptions = [modifications.describe(volume) for volume in volumes]
        for name, values in self._filters_from_querystring().items():
            pick = _MODIFICATION_FILTERS.get(name)
            if pick is None:
                raise EC2ClientError(
                    "UnsupportedOperation",
                    f"localec2 does not support the filter {name} of DescribeVolumesModifications.",
                )
            descriptions = [item for item in descriptions if matches(values, item.get(pick))]
        return ActionResult({"VolumesModifications": descriptions})

    def _volume(self, volume: VolumeRecord) -> dict[str, Any]:
        tags = [{"Key": key, "Value": value} for key, value in volume.tags.items()]
        return self.services.volumes.describe(volume, tags)
