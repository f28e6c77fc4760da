"""One server's parts, put together: what the API's classes reach into."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from datetime import datetime

from instant_env.localec2.instances.fault_injector import FaultInjector
from instant_env.localec2.instances.free_space import DiskGuard
from instant_env.localec2.instances.interfaces import Interfaces
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.spot import Spot
from instant_env.localec2.records.journal import StorageError
from instant_env.localec2.records.records import (
    InstanceRecord,
    KeyPairRecord,
    ParameterRecord,
    SecurityGroupRecord,
    TagsRecord,
)
from instant_env.localec2.state.credentials import issue_time
from instant_env.localec2.state.state import State, now
from instant_env.localec2.volumes.blocks import Blocks
from instant_env.localec2.volumes.images import Images
from instant_env.localec2.volumes.modifications import Modifications
from instant_env.localec2.volumes.snapshots import Snapshots
from instant_env.localec2.volumes.uploads import Uploads
from instant_env.localec2.volumes.volumes import Volumes

#: API_GetConsoleOutput: "the most recent 64 KB".
CONSOLE_BYTES = 64 * 1024


@dataclass
class Services:
    """State and what acts on it. Methods want the lock held."""

    state: State
    lifecycle: Lifecycle
    snapshots: Snapshots = field(init=False)
    uploads: Uploads = field(init=False)
    blocks: Blocks = field(init=False)
    images: Images = field(init=False)
    volumes: Volumes = field(init=False)
    modifications: Modifications = field(init=False)
    spot: Spot = field(init=False)
    interfaces: Interfaces = field(init=False)
    fault_injector: FaultInjector = field(init=False)
    disk_guard: DiskGuard = field(init=False)
    refreshed_at: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        self.snapshots = Snapshots(self.state, self.lifecycle)
        self.uploads = Uploads(self.state, self.snapshots)
        self.blocks = Blocks(self.state)
        self.images = Images(self.state, self.lifecycle, self.snapshots)
        self.volumes = Volumes(self.state, self.lifecycle)
        self.modifications = Modifications(self.state, self.lifecycle)
        self.interfaces = Interfaces(self.state, self.lifecycle)
        self.spot = Spot(self.state, self.lifecycle)
        self.fault_injector = FaultInjector(self.state, self.lifecycle, self.instance_changed)
        self.disk_guard = DiskGuard(self.lifecycle, self.state.layout.state_dir)

    def purge(self) -> None:
        """Forget what ended an hour ago, and give up what nobody goes on with."""
        self.lifecycle.purge()
        self.spot.purge()
        self.uploads.expire(now())
        self.blocks.close_idle()

    def instance_changed(self, instance: InstanceRecord) -> None:
        """Let the machine's IMDS tell what changed."""
        if instance.id in self.lifecycle.machines:
            self.lifecycle.machine_builder.write_metadata(instance)

    def identities_changed(self) -> None:
        """Record IAM's roles and profiles, and let the machines that have one know. Raises StorageError."""
        try:
            self.state.identities.capture(self.state.write)
        except StorageError:
            self.state.identities.load()  # as before the call, which moto has done already
            raise
        for instance_id in list(self.lifecycle.machines):
            if (instance := self.state.instances[instance_id]).profile is not None:
                self.instance_changed(instance)

    def refresh_credentials(self, at: datetime) -> None:
        """Give new credentials to the machines that got theirs an hour ago."""
        for instance_id in list(self.lifecycle.machines):
            instance = self.state.instances[instance_id]
            if instance.profile is not None:
                since = instance.profile.since
                if issue_time(since, at) > issue_time(since, self.refreshed_at):
                    self.instance_changed(instance)
        self.refreshed_at = at

    def console_output(self, instance_id: str, *, latest: bool) -> str:
        """The end of the serial console, base64; empty when the machine never ran.

        API_GetConsoleOutput: what was posted at the last change of state, unless the ``latest`` is asked for.
        """
        posted = None
        if self.state.strictness.switches.posted_console and not latest:
            posted = self.lifecycle.posted_console(instance_id)
        path = self.state.layout.instances / instance_id / "console.log"
        try:
            with path.open("rb") as stream:
                end = stream.seek(0, os.SEEK_END) if posted is None else posted
                start = stream.seek(max(0, end - CONSOLE_BYTES))
                return base64.b64encode(stream.read(end - start)).decode()
        except FileNotFoundError:
            return ""

    # Records of what moto changes itself

    def capture_key_pair(self, name: str) -> None:
        self.state.write(self.state.mirror.capture_key_pair(name))

    def forget_key_pair(self, key_pair_id: str) -> None:
        self.state.store.delete(KeyPairRecord, key_pair_id)

    def capture_group(self, group_id: str) -> None:
        self.state.write(self.state.mirror.capture_group(group_id))

    def forget_group(self, group_id: str) -> None:
        self.state.store.delete(SecurityGroupRecord, group_id)

    def capture_parameter(self, name: str) -> None:
        """Record an SSM parameter as it is now, or that it is gone."""
        name = self.state.mirror.ssm._parameters.normalize_name(name)  # "/x" and "x" are the same
        if self.state.mirror.ssm._parameters.get(name):
            self.state.write(self.state.mirror.capture_parameter(name))
        else:
            self.state.store.delete(ParameterRecord, ParameterRecord.key_of(name))

    def capture_tags(self, resource_ids: list[str]) -> None:
        """Record the tags of these resources as moto has them now."""
        state, tags_of = self.state, self.state.mirror.tags_of
        for resource_id in resource_ids:
            records = (
                state.instances, state.volumes, state.snapshots, state.images, state.spot_requests,
                state.interfaces, state.addresses, state.launch_templates.records,
            )  # fmt: skip
            record = next((kind[resource_id] for kind in records if resource_id in kind), None)
            if record is not None:
                record.tags = tags_of(resource_id)
                state.write(record)
                if isinstance(record, InstanceRecord):
                    self.instance_changed(record)
            elif (network := state.networks.own(resource_id)) is not None:
                network.tags = tags_of(resource_id)
                state.write(network)
            elif resource_id.startswith("sg-"):
                self.capture_group(resource_id)
            elif resource_id.startswith("key-"):
                name = next(n for n, pair in state.mirror.ec2.key_pairs.items() if pair.id == resource_id)
                self.capture_key_pair(name)
            else:
                self.save_tags(resource_id, tags_of(resource_id))

    def save_tags(self, resource_id: str, tags: dict[str, str]) -> None:
        """Record tags of something that has no record of its own."""
        record = TagsRecord(resource_id=resource_id, tags=tags)
        if tags:
            self.state.write(record)
        else:
            self.state.forget(record)
