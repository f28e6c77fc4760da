"""CreateImage, DeregisterImage, and the registration of stock images.

An image is `pending` while its snapshots are copied; a server that dies in between finds the half-made image
at its next start and calls it `failed`.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from instant_env.arch import Arch
from instant_env.localec2.instances.hibernation import check_copy
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.mappings import mappings_of
from instant_env.localec2.qemu import disks
from instant_env.localec2.records.records import ImageRecord, ParameterRecord, SnapshotRecord
from instant_env.localec2.state.client_tokens import records_of_token
from instant_env.localec2.state.moto_api import ACCOUNT_ID, EC2ClientError, new_id
from instant_env.localec2.state.state import State, now
from instant_env.localec2.volumes.protection import protection_of
from instant_env.localec2.volumes.snapshots import BEGIN_TIMEOUT_S, Pairs, Snapshots

log = logging.getLogger(__name__)

#: API_CreateImage, parameter Name.
_NAME = re.compile(r"[A-Za-z0-9()\[\] ./'@_-]{3,128}")


class StockRegistration(BaseModel):
    """Body of ``POST /_localec2/stock-images``: a stock image whose disk lies on this computer."""

    model_config = ConfigDict(extra="forbid")

    base: str
    arch: Arch
    name: str = Field(min_length=3, max_length=128)
    description: str = ""
    owner_id: str = Field(pattern=r"^\d{12}$")
    ssm_parameter: str = Field(pattern=r"^/aws/service/")
    root_device_name: str = Field(pattern=r"^/dev/")
    disk: Path
    size_gib: int = Field(ge=1)
    boot_mode: Literal["uefi", "uefi-preferred"]
    nocloud: bool = False
    digest: str = Field(min_length=8)
    created: AwareDatetime


class Images:
    """Images and snapshots of one server. Public methods want the lock held unless they say otherwise."""

    def __init__(self, state: State, lifecycle: Lifecycle, snapshots: Snapshots) -> None:
        self.state = state
        self.lifecycle = lifecycle
        self._registering = threading.Lock()
        self.snapshots = snapshots

    def create(
        self, instance_id: str, name: str, description: str, no_reboot: bool,
        changes: list[dict[str, Any]], tags: dict[str, dict[str, str]],
    ) -> ImageRecord:  # fmt: skip
        """CreateImage: returns the pending image; the copies are made in a thread, of every attached volume.

        A running instance is stopped for them and started again, as EC2 reboots it; with ``no_reboot`` it
        runs on, and the copies show all its volumes at one instant. ``changes``: BlockDeviceMappings.
        """
        instance = self.state.instance(instance_id)
        self.check_name(name)
        if instance.state not in ("running", "stopped", "stopping"):
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{instance_id}' is not in a state from which it can be imaged "
                f"({instance.state}).",
            )
        check_copy(instance)
        image_id = new_id("ami")
        text = f"Created by CreateImage({instance_id}) for {image_id}"
        by_device = {v.attachment.device: v for v in self.state.attached(instance_id) if v.attachment}
        mappings = mappings_of(by_device, changes, instance.root_device_name, self.state)
        pairs = []
        for mapping in mappings:
            if mapping.device in by_device and mapping.snapshot_id is None:
                volume = by_device[mapping.device]
                snapshot = self.snapshots.record(volume, text, tags.get("snapshot", {}))
                mapping.snapshot_id = snapshot.id
                pairs.append((volume, snapshot))
        root, *others = mappings
        parent = self.state.images.get(instance.image_id)
        image = ImageRecord(
            id=image_id, tags=tags.get("image", {}), name=name, description=description, owner_id=ACCOUNT_ID,
            architecture=instance.architecture, state="pending", creation_date=now(),
            root_device_name=root.device, snapshot_id=root.snapshot_id or "", size_gib=root.size_gib,
            root_delete_on_termination=root.delete_on_termination,
            root_volume_type=root.volume_type, root_performance=root.performance,
            mappings=others, boot_mode=parent.boot_mode if parent else "uefi",
            imds_support=parent.imds_support if parent else None, source_instance_id=instance_id,
            source_image_id=instance.image_id,
        )  # fmt: skip
        for _, snapshot in pairs:
            self.state.save(snapshot)
        self.state.save(image)
        begun = threading.Event()
        if instance.state == "running" and no_reboot:
            threading.Thread(target=self._copy, args=(image, pairs, begun), name=f"copy {image_id}").start()
            self.state.answer_after(begun, BEGIN_TIMEOUT_S)
            return image
        restart = instance.state == "running"
        if restart:
            self.lifecycle.stop(instance_id)

        def copy(_: str) -> None:
            self._copy(image, pairs, begun)
            with self.state.lock:
                if restart and self.state.instances[instance_id].state == "stopped":
                    self.lifecycle.start(instance_id)

        self.lifecycle.work(instance_id, copy)  # in turn: after the stop, before what is asked for later
        return image

    def copy(
        self, source_id: str, name: str, description: str, tags: dict[str, dict[str, str]],
        token: str | None, digest: str,
    ) -> ImageRecord:  # fmt: skip
        """CopyImage: an image of this account's own with snapshots of its own, layers over the source's."""
        if earlier := records_of_token(self.state.images.values(), token, digest):
            return earlier[0]
        source = self.state.image(source_id)
        self.check_name(name)
        if source.state != "available":
            raise EC2ClientError(
                "InvalidAMIID.Unavailable", f"The image ID '{source_id}' is not available ({source.state})"
            )
        image_id = new_id("ami")
        copies: dict[str, SnapshotRecord] = {}
        for snapshot_id in dict.fromkeys(source.snapshot_ids):
            copies[snapshot_id] = self.snapshots.copy_record(
                self.state.snapshot(snapshot_id),
                f"Copied for DestinationAmi {image_id} from SourceAmi {source_id} for SourceSnapshot "
                f"{snapshot_id}.",
                tags.get("snapshot", {}),
            )
        image = source.model_copy(
            update={
                "id": image_id, "tags": tags.get("image", {}), "name": name, "description": description,
                "owner_id": ACCOUNT_ID, "owner_alias": None, "public": False, "state": "pending",
                "creation_date": now(), "snapshot_id": copies[source.snapshot_id].id,
                "mappings": [
                    item.model_copy(update={"snapshot_id": copies[item.snapshot_id].id})
                    if item.snapshot_id else item
                    for item in source.mappings
                ],
                "source_instance_id": None, "source_image_id": source_id, "stock_digest": None,
                "ssm_parameter": None, "deprecation_time": None, "protection": "disabled",
                "protected_until": None, "last_launched": None,
                "client_token": token, "request_digest": digest,
            },
        )  # fmt: skip
        for snapshot in copies.values():
            self.state.save(snapshot)
        self.state.save(image)

        def copy() -> None:
            problem = self.snapshots.layered(list(copies.values()))
            with self.state.lock:
                for snapshot in copies.values():
                    self.snapshots.settle(snapshot, problem)
                self._settle(image, problem)

        threading.Thread(target=copy, name=f"copy {image_id}").start()
        return image

    def check_name(self, name: str) -> None:
        """Refuse the name of an image that this account has already, and names that EC2 does not take."""
        if not _NAME.fullmatch(name):
            raise EC2ClientError(
                "InvalidAMIName.Malformed",
                "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, "
                "'(', ')', '[', ']', ' ', '.', '/', '-', ''', '@' and '_'",
            )
        for image in self.state.images.values():
            if image.name == name and image.owner_id == ACCOUNT_ID:
                raise EC2ClientError(
                    "InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {image.id}"
                )

    def _copy(self, image: ImageRecord, pairs: Pairs, begun: threading.Event) -> None:
        problem = self.snapshots.copied(pairs, begun)
        with self.state.lock:
            for _, snapshot in pairs:
                self.snapshots.settle(snapshot, problem)
            self._settle(image, problem)

    def _settle(self, image: ImageRecord, problem: str) -> None:
        """The copies are done, or failed; the image may have been deregistered meanwhile."""
        if image.id in self.state.images:
            image.state, image.state_reason = ("failed", problem) if problem else ("available", "")
            self.state.save(image)

    def settle_interrupted(self) -> None:
        """At start: copies that the last server did not finish, or finished without saying so.

        A snapshot's file is at its place only when it is whole.
        """
        for image in list(self.state.images.values()):
            if image.state == "pending":
                whole = all(self.state.layout.snapshot(name).exists() for name in image.snapshot_ids)
                self._settle(image, "" if whole else "localec2 ended while the copy was made")
        self.snapshots.settle_interrupted()

    def deregister(self, image_id: str, delete_snapshots: bool) -> list[str]:
        """DeregisterImage; returns the ids of snapshots deleted with it. Its machines live on."""
        image = self.state.image(image_id)
        if protection_of(image) != "disabled":
            raise EC2ClientError(
                "OperationNotPermitted", f"The image {image_id} is protected from deregistration"
            )
        self.state.forget(image)
        if image.ssm_parameter:
            self.state.mirror.ssm._parameters.pop(image.ssm_parameter, None)
            self.state.store.delete(ParameterRecord, ParameterRecord.key_of(image.ssm_parameter))
        if not delete_snapshots and image.stock_digest is None:
            self.state.strictness.deregistered(image.snapshot_ids)
            return []
        deleted = []
        for snapshot_id in dict.fromkeys(image.snapshot_ids):
            shared = any(snapshot_id in other.snapshot_ids for other in self.state.images.values())
            if snapshot_id in self.state.snapshots and not shared:
                # Nobody could delete a stock image's snapshot otherwise: it belongs to another account.
                self.snapshots.delete(snapshot_id, owner=image.owner_id)
                deleted.append(snapshot_id)
        return deleted

    # Stock images

    def register_stock(self, stock: StockRegistration) -> ImageRecord:
        """Register a stock image, or find it by its digest (lock not held). The older one of its base goes.

        Two programs that start at once ask for the same image: the second finds what the first registered,
        and does not take it for an older one.

        Raises DiskError when the disk is not a self-contained qcow2.
        """
        with self._registering:
            return self._register_stock(stock)

    def _register_stock(self, stock: StockRegistration) -> ImageRecord:
        with self.state.lock:
            for image in self.state.images.values():
                if image.stock_digest == stock.digest and image.state == "available":
                    if image.nocloud != stock.nocloud:  # registered by an older server
                        image.nocloud = stock.nocloud
                        self.state.save(image)
                    return image
        disks.check_self_contained(stock.disk)
        snapshot = SnapshotRecord(
            id=new_id("snap"), volume_id="vol-ffffffff", size_gib=stock.size_gib, description=stock.name,
            owner_id=stock.owner_id, start_time=stock.created, state="completed",
        )  # fmt: skip
        with self.state.lock:
            self.lifecycle.storage.arriving.add(snapshot.id)
        disks.copy(stock.disk, self.state.layout.snapshot(snapshot.id))
        image = ImageRecord(
            id=new_id("ami"), name=stock.name, description=stock.description, owner_id=stock.owner_id,
            owner_alias="amazon" if stock.base.startswith("al") else None, architecture=stock.arch.value,
            state="available", creation_date=stock.created, root_device_name=stock.root_device_name,
            snapshot_id=snapshot.id, size_gib=max(stock.size_gib, disks.virtual_size_gib(stock.disk)),
            boot_mode=stock.boot_mode, public=True, stock_digest=stock.digest,
            ssm_parameter=stock.ssm_parameter, nocloud=stock.nocloud,
        )  # fmt: skip
        with self.state.lock, self.state.request():
            outdated = [
                other.id for other in self.state.images.values()
                if other.stock_digest and other.ssm_parameter == stock.ssm_parameter
            ]  # fmt: skip
            self.state.save(snapshot)
            self.lifecycle.storage.arriving.discard(snapshot.id)
            self.state.save(image)
            for image_id in outdated:
                self.deregister(image_id, delete_snapshots=True)
            parameter = _parameter(image)
            self.state.write(parameter)
            self.state.mirror.show_parameter(parameter)
        return image


def _parameter(image: ImageRecord) -> ParameterRecord:
    """The public SSM parameter that names a stock image, as real AWS has it."""
    return ParameterRecord(
        name=image.ssm_parameter or "", value=image.id, parameter_type="String", description=None,
        data_type="text", tier="Standard", parameter_version=1, last_modified=now(),
    )  # fmt: skip
