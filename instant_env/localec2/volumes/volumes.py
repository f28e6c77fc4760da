"""EBS volumes: CreateVolume, AttachVolume, DetachVolume, DeleteVolume, with real bytes behind them.

A volume is a qcow2, an overlay of its snapshot's. Attached to a running instance it is plugged into the
machine as an NVMe device whose serial number is the volume's id.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.mappings import usable_snapshot
from instant_env.localec2.instances.volume_types import check_volume_type, described, ordered, origin
from instant_env.localec2.qemu import command_line
from instant_env.localec2.records.records import Attachment, InstanceRecord, VolumeRecord
from instant_env.localec2.state.client_tokens import records_of_token
from instant_env.localec2.state.moto_api import ACCOUNT_ID, EC2ClientError, new_id
from instant_env.localec2.state.state import State, now

log = logging.getLogger(__name__)

#: API_CreateVolume: 1 to 16,384 GiB for gp2 (64 TiB for gp3; nobody needs that here).
MAX_SIZE_GIB = 16384
#: A guest's kernel lets go of an NVMe device within seconds; mounted file systems hold it.
DETACH_TIMEOUT_S = 60.0
_DEVICE = re.compile(r"(/dev/)?(sd|xvd)[a-z]{1,2}\d{0,2}")


class Volumes:
    """Volumes of one server. Public methods want the lock held."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self.state = state
        self.lifecycle = lifecycle
        self.attaching: set[str] = set()
        self.detaching: set[str] = set()

    def create(
        self, *, size_gib: int | None, snapshot_id: str | None, zone: str, volume_type: str,
        order: Mapping[str, Any], token: str | None, digest: str, encrypted: bool,
        tags: dict[str, str],
    ) -> VolumeRecord:  # fmt: skip
        """CreateVolume; the same client token gives the same volume.

        ``order``: its Iops, Throughput, Encrypted, KmsKeyId and VolumeInitializationRate.
        """
        if earlier := records_of_token(self.state.volumes.values(), token, digest):
            return earlier[0]
        if self.state.mirror.ec2.get_zone_by_name(zone) is None:
            raise EC2ClientError("InvalidZone.NotFound", f"The zone '{zone}' does not exist.")
        check_volume_type(volume_type)
        least, snapshot = 1, None
        if snapshot_id:
            snapshot = usable_snapshot(self.state, snapshot_id)
            if snapshot.state != "completed":
                raise EC2ClientError("IncorrectState", f"Snapshot is in invalid state - {snapshot.state}")
            least = snapshot.size_gib
        elif size_gib is None:
            raise EC2ClientError("MissingParameter", "The request must contain the parameter size/snapshot")
        size = least if size_gib is None else size_gib
        if not least <= size <= MAX_SIZE_GIB:
            raise EC2ClientError(
                "InvalidParameterValue", f"Volume of {size}GiB is not within {least} to {MAX_SIZE_GIB}GiB."
            )
        volume = VolumeRecord(
            id=new_id("vol"), tags=tags, size_gib=size, zone=zone, volume_type=volume_type,
            performance=ordered(order, volume_type, size),
            snapshot_id=snapshot_id, layers=snapshot.layers if snapshot else [],
            encrypted=encrypted or (snapshot is not None and snapshot.encrypted),
            create_time=now(), client_token=token, request_digest=digest,
            **origin(order, from_snapshot=snapshot is not None),
        )  # fmt: skip
        self.state.save(volume)  # its file is made when somebody wants to write to it
        return volume

    def attach(self, volume_id: str, instance_id: str, device: str) -> VolumeRecord:
        """AttachVolume, to a stopped or a running instance."""
        volume, instance = self.state.volume(volume_id), self.state.instance(instance_id)
        if volume.attachment is not None:
            raise EC2ClientError("VolumeInUse", f"{volume_id} is already attached to an instance")
        if instance.state not in ("running", "stopped"):
            raise EC2ClientError("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
        if volume.zone != instance.zone:
            raise EC2ClientError(
                "InvalidVolume.ZoneMismatch",
                f"The volume '{volume_id}' is not in the same availability zone as instance '{instance_id}'",
            )
        if not _DEVICE.fullmatch(device):
            raise EC2ClientError(
                "InvalidParameterValue", f"Value ({device}) for parameter device is invalid."
            )
        attached = self.state.attached(instance_id)
        if any(item.attachment and item.attachment.device == device for item in attached):
            raise EC2ClientError(
                "InvalidParameterValue",
                f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use",
            )
        if len(attached) > command_line.VOLUME_SLOTS:
            raise EC2ClientError(
                "AttachmentLimitExceeded",
                f"localec2 attaches at most {command_line.VOLUME_SLOTS} volumes beside the root.",
            )
        volume.attachment = Attachment(
            instance_id=instance_id, device=device, delete_on_termination=False, attach_time=now()
        )
        self.state.save(volume)
        self.lifecycle.machine_builder.write_metadata(instance)
        if instance.state == "running":
            self.attaching.add(volume_id)
            # A queue of its own: nobody waits for it but a detachment.
            self.lifecycle.work(volume_id, lambda _: self._plug(volume, instance))
        return volume

    def _plug(self, volume: VolumeRecord, instance: InstanceRecord) -> None:
        """Plug the volume in (lock not held); when that fails it is `available` again, as on EC2."""
        problem = ""
        try:
            with self.lifecycle.storage.lock(volume.id):
                self.lifecycle.machine_builder.make_disk(volume)
                with self.state.lock:
                    machine = self.lifecycle.machines.get(instance.id)
                if machine is not None and not machine.holds(volume.id):  # else a new start found it
                    machine.attach(self._disk(volume))
        except InstantEnvError as error:
            problem = error.message
        with self.state.lock:
            self.attaching.discard(volume.id)
            has_ended = instance.state not in ("running", "pending")
            if problem and volume.attachment is not None and not has_ended:
                log.error("%s was not attached to %s: %s", volume.id, instance.id, problem)
                self._detached(volume, instance)

    def _disk(self, volume: VolumeRecord) -> command_line.Disk:
        return command_line.Disk(volume.id, self.state.layout.volume(volume.id))

    def detach(self, volume_id: str, instance_id: str | None, device: str | None) -> VolumeRecord:
        """DetachVolume; from a running machine it is done when the guest has let go."""
        volume = self.state.volume(volume_id)
        attachment = volume.attachment
        if attachment is None or (instance_id and attachment.instance_id != instance_id):
            raise EC2ClientError("IncorrectState", f"Volume '{volume_id}' is in the 'available' state.")
        if device and attachment.device != device:
            raise EC2ClientError(
                "InvalidAttachment.NotFound",
                f"The volume '{volume_id}' is not attached as device '{device}'.",
            )
        instance = self.state.instance(attachment.instance_id)
        if attachment.device == instance.root_device_name:
            raise EC2ClientError(
                "OperationNotPermitted", f"localec2 does not detach root volumes ('{volume_id}')"
            )
        machine = self.lifecycle.machines.get(instance.id)
        if machine is None:
            self._detached(volume, instance)
        elif volume_id not in self.detaching:
            self.detaching.add(volume_id)

            def unplug(_: str) -> None:
                problem = None
                try:
                    with self.lifecycle.storage.lock(volume_id):  # a snapshot may be under way
                        machine.detach(self._disk(volume), DETACH_TIMEOUT_S)
                except InstantEnvError as error:
                    problem = error
                    log.warning("%s stays attached: %s", volume_id, error)
                with self.state.lock:
                    self.detaching.discard(volume_id)
                    if problem is None and volume.attachment is not None:
                        self._detached(volume, instance)

            self.lifecycle.work(volume_id, unplug)  # a queue of its own: a termination need not wait for it
        return volume

    def _detached(self, volume: VolumeRecord, instance: InstanceRecord) -> None:
        volume.attachment = None
        self.state.save(volume)
        if instance.state != "terminated":
            self.lifecycle.machine_builder.write_metadata(instance)

    def delete(self, volume_id: str) -> None:
        """DeleteVolume."""
        volume = self.state.volume(volume_id)
        if volume.attachment is not None:
            raise EC2ClientError(
                "VolumeInUse", f"Volume {volume_id} is currently attached to {volume.attachment.instance_id}"
            )
        self.lifecycle.storage.delete_volume(volume)

    def _attachment_state(self, volume_id: str) -> str:
        if volume_id in self.detaching:
            return "detaching"
        return "attaching" if volume_id in self.attaching else "attached"

    def describe(self, volume: VolumeRecord, tags: list[dict[str, str]]) -> dict[str, Any]:
        """The answer of DescribeVolumes for one: moto knows neither DeleteOnTermination nor `detaching`."""
        attachment = volume.attachment
        answer: dict[str, Any] = {
            "VolumeId": volume.id, "Size": volume.size_gib, "SnapshotId": volume.snapshot_id or "",
            "AvailabilityZone": volume.zone, "State": "in-use" if attachment else "available",
            "CreateTime": volume.create_time.replace(tzinfo=None), "VolumeType": volume.volume_type,
            "Encrypted": volume.encrypted, "MultiAttachEnabled": False, "Tags": tags, "Attachments": [],
        }  # fmt: skip
        answer |= described(volume.volume_type, volume.performance)
        if volume.kms_key is not None:
            answer["KmsKeyId"] = _key_arn(self.state.region, volume.kms_key)
        if volume.initialization_mib_s is not None:
            answer["VolumeInitializationRate"] = volume.initialization_mib_s
        if attachment:
            answer["Attachments"] = [
                {
                    "VolumeId": volume.id, "InstanceId": attachment.instance_id, "Device": attachment.device,
                    "State": self._attachment_state(volume.id),
                    "AttachTime": attachment.attach_time.replace(tzinfo=None),
                    "DeleteOnTermination": attachment.delete_on_termination,
                }
            ]  # fmt: skip
        return answer


def _key_arn(region: str, key: str) -> str:
    """A key's ARN, by what a request calls it (API_CreateVolume, KmsKeyId); aliases are not looked up."""
    if key.startswith("arn:"):
        return key
    resource = key if key.startswith("alias/") else f"key/{key}"
    return f"arn:aws:kms:{region}:{ACCOUNT_ID}:{resource}"
