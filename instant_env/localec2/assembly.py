"""From records to a machine: its disks, its metadata, its place in the network, its command line."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.localec2 import disks, metadata, qemu
from instant_env.localec2.accelerator import Accelerator
from instant_env.localec2.machine import Machine
from instant_env.localec2.moto_api import INSTANCE_TYPES
from instant_env.localec2.network import Link, UserNetwork
from instant_env.localec2.records import InstanceRecord, VolumeRecord
from instant_env.localec2.state import State

log = logging.getLogger(__name__)


class Assembly:
    """Puts machines together. Methods want the state's lock held unless they say otherwise."""

    def __init__(
        self,
        state: State,
        network: UserNetwork,
        imds_helper: Path,
        accelerators: Callable[[qemu.Platform], Accelerator],
    ) -> None:
        self.state = state
        self.network = network
        self._imds_helper = imds_helper
        self._accelerators = accelerators
        self._links: dict[str, Link] = {}

    def make_disk(self, volume: VolumeRecord) -> None:
        """The volume's file, when it is not there yet (lock not held: it may take a moment)."""
        path = self.state.layout.volume(volume.id)
        if not path.exists():
            snapshot = volume.snapshot_id
            disks.create(path, volume.size_gib, self.state.layout.snapshot(snapshot) if snapshot else None)

    def machine(
        self, instance: InstanceRecord, volumes: list[VolumeRecord], on_exit: Callable[[Machine], None]
    ) -> Machine:
        """The machine of an instance, with an address of its own; it is not started yet."""
        layout = self.state.layout
        directory = layout.instance(instance.id)
        platform = qemu.find_platform(Arch(instance.architecture))
        variables = directory / "variables.fd"
        if not variables.exists():
            part = variables.with_suffix(".part")  # a full disk must not leave half of it
            shutil.copyfile(platform.firmware_variables, part)
            part.replace(variables)
        if instance.wants_public_ip and instance.public_ip is None:
            instance.public_ip = self.network.allot()
        instance.qmp_socket = str(layout.qmp_socket(instance.id))
        self.state.save(instance)
        link = self.network.bound(
            Link(
                private_ip=instance.private_ip, public_ip=instance.public_ip,
                domain=metadata.internal_domain(self.state.region), imds_helper=self._imds_helper,
                metadata_file=self.write_metadata(instance), ports=self.state.ports(instance),
            )
        )  # fmt: skip
        self._links[instance.id] = link
        vcpus, memory_mib = machine_size(instance.instance_type)
        spec = qemu.MachineSpec(
            instance_id=instance.id, instance_type=instance.instance_type, platform=platform,
            accelerator=self._accelerators(platform), vcpus=vcpus, memory_mib=memory_mib,
            disks=tuple(qemu.Disk(volume.id, layout.volume(volume.id)) for volume in volumes),
            mac_address=instance.mac_address, network=tuple(self.network.arguments(link)),
            variables=variables,
            console=directory / "console.log", qmp=layout.qmp_socket(instance.id),
        )  # fmt: skip
        return Machine(spec, directory / "qemu.log", on_exit)

    def write_metadata(self, instance: InstanceRecord) -> Path:
        """Write what IMDS serves to this instance."""
        subnet = self.state.subnet(instance.subnet_id)
        path = self.state.layout.instance(instance.id) / "metadata.json"
        content = metadata.metadata(
            instance, self.state.attached(instance.id), region=self.state.region,
            zone_id=subnet.availability_zone_id, vpc_id=subnet.vpc_id, subnet_cidr=subnet.cidr_block,
            group_names=self.state.group_names(instance.security_group_ids),
            secret=self.state.server.secret_access_key,
        )  # fmt: skip
        metadata.write(path, content | self.state.faults.imds(instance.id))
        return path

    def refresh_ports(self, instance: InstanceRecord, machine: Machine) -> None:
        """Open and close ports of a running machine as its security groups say now."""
        link = self._links.get(instance.id)
        if link is None:
            return
        try:
            ports = self.network.change_ports(link, self.state.ports(instance), machine.qmp.monitor)
        except InstantEnvError as error:  # the machine is just ending: its exit tells the rest
            log.warning("%s: ports not changed: %s", instance.id, error)
        else:
            self._links[instance.id] = replace(link, ports=ports)

    def unplugged(self, instance: InstanceRecord) -> None:
        """The machine is no more: its address is free."""
        self._links.pop(instance.id, None)
        self.network.release(instance.public_ip)
        instance.public_ip = None


def machine_size(instance_type: str) -> tuple[int, int]:
    """(vCPUs, MiB) of a guest: its type's, but no more than localec2 gives."""
    facts = INSTANCE_TYPES[instance_type]
    vcpus, memory_mib = facts["VCpuInfo"]["DefaultVCpus"], facts["MemoryInfo"]["SizeInMiB"]
    return min(vcpus, qemu.MAX_VCPUS), min(memory_mib, qemu.MAX_MEMORY_MIB)
