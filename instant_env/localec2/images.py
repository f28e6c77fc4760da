"""CreateImage, DeregisterImage, DeleteSnapshot, and the registration of stock images.

An image's snapshot is one self-contained qcow2. It is `pending` while the copy is made; a server that dies in
between finds the half-made image at its next start and calls it `failed`.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.localec2 import disks
from instant_env.localec2.lifecycle import Lifecycle
from instant_env.localec2.moto_api import ACCOUNT_ID, EC2ClientError, new_id
from instant_env.localec2.records import ImageRecord, ParameterRecord, SnapshotRecord
from instant_env.localec2.state import State, now

log = logging.getLogger(__name__)


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
    digest: str = Field(min_length=8)
    created: AwareDatetime


class Images:
    """Images and snapshots of one server. Public methods want the lock held unless they say otherwise."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self.state = state
        self.lifecycle = lifecycle
        self._registering = threading.Lock()

    def create(
        self, instance_id: str, name: str, description: str, no_reboot: bool, tags: dict[str, dict[str, str]]
    ) -> ImageRecord:
        """CreateImage: returns the pending image; the copy is made in a thread.

        A running instance is stopped for the copy and started again, as EC2 reboots it.
        """
        instance = self.state.instance(instance_id)
        if any(image.name == name and image.owner_id == ACCOUNT_ID for image in self.state.images.values()):
            raise EC2ClientError("InvalidAMIName.Duplicate", f"AMI name {name} is already in use.")
        if instance.state not in ("running", "stopped", "stopping"):
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{instance_id}' is not in a state from which it can be imaged "
                f"({instance.state}).",
            )
        if instance.state == "running" and no_reboot:
            raise EC2ClientError(
                "UnsupportedOperation", "localec2 does not copy the disk of a running machine (NoReboot)."
            )
        volumes = self.state.attached(instance_id)
        if len(volumes) != 1 or volumes[0].attachment is None:
            raise EC2ClientError(
                "UnsupportedOperation", "localec2 makes images of instances with exactly their root volume."
            )
        (volume,) = volumes
        parent = self.state.images.get(instance.image_id)
        image_id = new_id("ami")
        snapshot = SnapshotRecord(
            id=new_id("snap"), tags=tags.get("snapshot", {}), volume_id=volume.id, size_gib=volume.size_gib,
            description=f"Created by CreateImage({instance_id}) for {image_id}", owner_id=ACCOUNT_ID,
            start_time=now(), state="pending",
        )  # fmt: skip
        image = ImageRecord(
            id=image_id, tags=tags.get("image", {}), name=name, description=description, owner_id=ACCOUNT_ID,
            architecture=instance.architecture, state="pending", creation_date=now(),
            root_device_name=instance.root_device_name, snapshot_id=snapshot.id, size_gib=volume.size_gib,
            boot_mode=parent.boot_mode if parent else "uefi", source_instance_id=instance_id,
            source_image_id=instance.image_id,
        )  # fmt: skip
        self.state.save(snapshot)
        self.state.save(image)
        restart = instance.state == "running"
        if restart:
            self.lifecycle.stop(instance_id, for_image=True)
        # In turn: after the stop, before anything that is asked for later.
        self.lifecycle.work(
            instance_id, lambda _: self._copy(image, snapshot, volume.id, instance_id, restart)
        )
        return image

    def _copy(
        self, image: ImageRecord, snapshot: SnapshotRecord, volume_id: str, instance_id: str, restart: bool
    ) -> None:
        layout = self.state.layout
        problem = ""
        try:
            with self.lifecycle.disk_lock(volume_id):
                disks.flatten(layout.volume(volume_id), layout.snapshot(snapshot.id))
        except InstantEnvError as error:
            log.error("%s: %s", image.id, error)
            problem = error.message
        with self.state.lock:
            self._settle(image, snapshot, problem)
            if restart and self.state.instances[instance_id].state == "stopped":
                self.lifecycle.start(instance_id)

    def _settle(self, image: ImageRecord, snapshot: SnapshotRecord, problem: str) -> None:
        """The copy is done, or it failed; either may have been deleted meanwhile."""
        if snapshot.id in self.state.snapshots:
            snapshot.state, snapshot.state_message = ("error", problem) if problem else ("completed", "")
            self.state.save(snapshot)
        if image.id in self.state.images:
            image.state, image.state_reason = ("failed", problem) if problem else ("available", "")
            self.state.save(image)
        self.lifecycle.collect_snapshots()

    def settle_interrupted(self) -> None:
        """At start: copies that the last server did not finish."""
        for part in [*self.state.layout.snapshots.glob("*.part"), *self.state.layout.volumes.glob("*.part")]:
            part.unlink(missing_ok=True)
        for image in list(self.state.images.values()):
            if image.state == "pending":
                self._settle(
                    image, self.state.snapshots[image.snapshot_id], "localec2 ended while the copy was made"
                )

    def deregister(self, image_id: str, delete_snapshots: bool) -> list[str]:
        """DeregisterImage; returns the ids of snapshots deleted with it. Its machines live on."""
        image = self.state.image(image_id)
        self.state.forget(image)
        if image.ssm_parameter:
            self.state.mirror.ssm._parameters.pop(image.ssm_parameter, None)
            self.state.store.delete(ParameterRecord, ParameterRecord.key_of(image.ssm_parameter))
        if not delete_snapshots and image.stock_digest is None:
            return []
        # Nobody could delete a stock image's snapshot otherwise: it belongs to another account.
        self.delete_snapshot(image.snapshot_id, owner=image.owner_id)
        return [image.snapshot_id]

    def delete_snapshot(self, snapshot_id: str, owner: str = ACCOUNT_ID) -> None:
        """DeleteSnapshot. The bytes stay for as long as a volume builds on them."""
        snapshot = self.state.snapshot(snapshot_id)
        if users := [image.id for image in self.state.images.values() if image.snapshot_id == snapshot_id]:
            raise EC2ClientError(
                "InvalidSnapshot.InUse",
                f"The snapshot {snapshot_id} is currently in use by {', '.join(users)}",
            )
        if snapshot.owner_id != owner:
            raise EC2ClientError("AuthFailure", "Not authorized for snapshot " + snapshot_id)
        self.state.forget(snapshot)
        self.lifecycle.collect_snapshots()

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
                    return image
        disks.check_self_contained(stock.disk)
        snapshot = SnapshotRecord(
            id=new_id("snap"), volume_id="vol-ffffffff", size_gib=stock.size_gib, description=stock.name,
            owner_id=stock.owner_id, start_time=stock.created, state="completed",
        )  # fmt: skip
        with self.state.lock:
            self.lifecycle.arriving.add(snapshot.id)
        disks.copy(stock.disk, self.state.layout.snapshot(snapshot.id))
        image = ImageRecord(
            id=new_id("ami"), name=stock.name, description=stock.description, owner_id=stock.owner_id,
            owner_alias="amazon" if stock.base.startswith("al") else None, architecture=stock.arch.value,
            state="available", creation_date=stock.created, root_device_name=stock.root_device_name,
            snapshot_id=snapshot.id, size_gib=max(stock.size_gib, disks.virtual_size_gib(stock.disk)),
            boot_mode=stock.boot_mode, public=True, stock_digest=stock.digest,
            ssm_parameter=stock.ssm_parameter,
        )  # fmt: skip
        with self.state.lock:
            outdated = [
                other.id for other in self.state.images.values()
                if other.stock_digest and other.ssm_parameter == stock.ssm_parameter
            ]  # fmt: skip
            self.state.save(snapshot)
            self.lifecycle.arriving.discard(snapshot.id)
            self.state.save(image)
            for image_id in outdated:
                self.deregister(image_id, delete_snapshots=True)
            parameter = _parameter(image)
            self.state.store.save(parameter)
            self.state.mirror.show_parameter(parameter)
        return image


def _parameter(image: ImageRecord) -> ParameterRecord:
    """The public SSM parameter that names a stock image, as real AWS has it."""
    return ParameterRecord(
        name=image.ssm_parameter or "", value=image.id, parameter_type="String", description=None,
        data_type="text", tier="Standard", parameter_version=1, last_modified=now(),
    )  # fmt: skip
