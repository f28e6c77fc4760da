"""From records to a machine: its disks, its metadata, its place in the network, its command line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path

from instant_env.arch import Arch
from instant_env.files import replacing
from instant_env.localec2.instances import seed
from instant_env.localec2.instances.guest_size import memory_mib_of, vcpus_of
from instant_env.localec2.network import metadata
from instant_env.localec2.network.addresses import NetworkError
from instant_env.localec2.network.netd_client import ANSWER_TIMEOUT_S, Answer
from instant_env.localec2.network.network import Interface, Network, rules
from instant_env.localec2.qemu import command_line, disks
from instant_env.localec2.qemu.accelerator import Accelerator
from instant_env.localec2.qemu.machine import Machine
from instant_env.localec2.records.records import InstanceRecord, InterfaceRecord, VolumeRecord
from instant_env.localec2.state.profile_associations import iam_tree
from instant_env.localec2.state.state import State

log = logging.getLogger(__name__)


class MachineBuilder:
    """Puts machines together. Methods want the state's lock held unless they say otherwise."""

    def __init__(
        self,
        state: State,
        network: Network,
        accelerators: Callable[[command_line.Platform], Accelerator],
    ) -> None:
        self.state = state
        self.network = network
        self._accelerators = accelerators
        self._cables: dict[str, list[Future[Answer]]] = {}

    def make_disk(self, volume: VolumeRecord) -> None:
        """The volume's file, as large as its record says (lock not held: it may take a moment).

        No machine has the volume.
        """
        path = self.state.layout.volume(volume.id)
        if not path.exists():
            snapshot = volume.snapshot_id
            disks.create(path, volume.size_gib, self.state.layout.snapshot(snapshot) if snapshot else None)
        elif volume.modification is not None:  # a server may have ended before the file had grown
            disks.grow(path, volume.size_gib)

    def make_seed(self, instance: InstanceRecord) -> None:
        """The NoCloud disk of an instance that needs one (lock not held). Raises SeedError."""
        if instance.nocloud:
            seed.write(self._seed_path(instance), instance)

    def _seed_path(self, instance: InstanceRecord) -> Path:
        return self.state.layout.instance(instance.id) / "cidata.img"

    def machine(
        self, instance: InstanceRecord, volumes: list[VolumeRecord], on_exit: Callable[[Machine], None]
    ) -> Machine:
        """The machine of an instance, with an address of its own; it is not started yet."""
        layout = self.state.layout
        directory = layout.instance(instance.id)
        platform = command_line.find_platform(Arch(instance.architecture))
        variables = directory / "variables.fd"
        if not variables.exists():
            with replacing(variables) as temporary:
                disks.copy_sparse(platform.firmware_variables, temporary)
        layout.make_runtime()
        instance.qmp_socket = str(layout.qmp_socket(instance.id))
        nics = self.connect(instance)
        spec = command_line.MachineSpec(
            instance_id=instance.id, instance_type=instance.instance_type, platform=platform,
            accelerator=self._accelerators(platform),
            vcpus=vcpus_of(instance.instance_type), memory_mib=self.memory_mib(instance),
            disks=tuple(command_line.Disk(volume.id, layout.volume(volume.id)) for volume in volumes),
            nics=nics, variables=variables,
            console=directory / "console.log", qmp=layout.qmp_socket(instance.id),
            seed=self._seed_path(instance) if instance.nocloud else None,
        )  # fmt: skip
        return Machine(spec, directory / "qemu.log", on_exit)

    def memory_mib(self, instance: InstanceRecord) -> int:
        """The memory of this start. One that hibernates keeps the first, which its swap fits."""
        if not (instance.hibernation and instance.memory_mib):
            chosen_mib = self.state.strictness.switches.guest_memory_mib
            instance.memory_mib = memory_mib_of(instance.instance_type, chosen_mib)
        return instance.memory_mib

    def write_metadata(self, instance: InstanceRecord) -> Path:
        """Write what IMDS serves to this instance."""
        path = self.state.layout.instance(instance.id) / "metadata.json"
        state = self.state
        iam = iam_tree(instance, state.identities, state.issuer, datetime.now(UTC))
        content = metadata.metadata(
            instance, state.attached(instance.id), self.metadata_interfaces(instance), region=state.region,
            zone_id=state.subnet(instance.subnet_id).availability_zone_id,
            secret=state.server.secret_access_key,
            extras=state.connect.extras(instance.id, iam),
        )  # fmt: skip
        try:
            metadata.write(path, content | self.state.faults.imds(instance.id))
        except OSError as error:
            if not path.exists():
                raise
            # The disk is full. What was asked for is done, and its guest hears of it with the next change.
            log.error("%s: its metadata stays as it was: %s", instance.id, error)
        return path

    def metadata_interfaces(self, instance: InstanceRecord) -> list[metadata.Interface]:
        """An instance's network interfaces, as IMDS tells of them."""
        subnet = self.state.subnet(instance.subnet_id)
        return [
            metadata.Interface(
                0, instance.interface_id, instance.mac_address, (instance.private_ip,), instance.subnet_id,
                subnet.cidr_block, subnet.vpc_id, self._vpc_cidr(subnet.id),
                self.state.group_names(instance.security_group_ids),
                {instance.public_ip: instance.private_ip} if instance.public_ip else {},
            ),
            *map(self._secondary_interface, self._secondaries(instance)),
        ]  # fmt: skip

    def _secondary_interface(self, record: InterfaceRecord) -> metadata.Interface:
        subnet, public_ip = self.state.subnet(record.subnet_id), self.state.elastic_ip(record.id)
        return metadata.Interface(
            record.attachment.device_index if record.attachment else 0, record.id, record.mac_address,
            (record.private_ip,), record.subnet_id, subnet.cidr_block, subnet.vpc_id,
            self._vpc_cidr(subnet.id),
            self.state.group_names(record.security_group_ids),
            {public_ip: record.private_ip} if public_ip else {},
        )  # fmt: skip

    def connect(self, instance: InstanceRecord) -> tuple[command_line.Nic, ...]:
        """Give an instance's interfaces their place in the network, and a public address if it wants one.

        :meth:`await_network` waits until a machine can be started with what this returns.
        """
        if instance.public_ip is None:
            instance.public_ip = self.state.elastic_ip(instance.interface_id)
        if instance.wants_public_ip and instance.public_ip is None:
            instance.public_ip = self.network.addresses.allot()
        self.state.save(instance)
        self.refresh_groups()
        interfaces = self.interfaces(instance, self.write_metadata(instance))
        self._cables[instance.id] = [self.network.plug(interface) for interface in interfaces]
        # A fault keeps the primary card back; its cable waits for it.
        first = 1 if self.state.faults.unplugged(instance.id) else 0
        return tuple(self.nic(interface) for interface in interfaces[first:])

    @staticmethod
    def nic(interface: Interface) -> command_line.Nic:
        return command_line.Nic(interface.id, interface.mac, Path(interface.socket))

    def secondary(self, record: InterfaceRecord, metadata_file: Path) -> Interface:
        """The interface of a record."""
        return self._interface(record.id, record, self.state.elastic_ip(record.id), metadata_file)

    def _interface(
        self,
        interface_id: str,
        record: InterfaceRecord | InstanceRecord,
        public_ip: str | None,
        metadata_file: Path,
    ) -> Interface:
        """An interface as the network is to know it; an instance's record is that of its first one, too.

        In a subnet without a route to an internet gateway nobody reaches its public address.
        """
        networks, subnet = self.state.networks, self.state.networks.subnet(record.subnet_id)
        return Interface(
            id=interface_id, vpc=subnet.vpc_id, vpc_cidr=self._vpc_cidr(subnet.id),
            socket=str(self.state.layout.nic_socket(interface_id)), mac=record.mac_address,
            address=record.private_ip, subnet=subnet.cidr,
            public=(public_ip or "") if networks.is_public(subnet.id) else "",
            host_name=metadata.host_name(record.private_ip),
            metadata=str(metadata_file), groups=tuple(record.security_group_ids),
        )  # fmt: skip

    def _vpc_cidr(self, subnet_id: str) -> str:
        networks = self.state.networks
        return networks.vpc(networks.subnet(subnet_id).vpc_id).cidr

    def _secondaries(self, instance: InstanceRecord) -> list[InterfaceRecord]:
        attached = self.state.attached_interfaces(instance.id)
        return [record for record in attached if record.id != instance.interface_id]

    def interfaces(self, instance: InstanceRecord, metadata_file: Path) -> list[Interface]:
        """An instance's network interfaces, the primary one first."""
        return [
            self._interface(instance.interface_id, instance, instance.public_ip, metadata_file),
            *(self.secondary(record, metadata_file) for record in self._secondaries(instance)),
        ]

    def await_network(self, instance_id: str) -> None:
        """Return when QEMU can connect a new machine's interfaces (lock not held). Raises NetworkError."""
        for cable in self._cables.pop(instance_id, []):
            try:
                cable.result(ANSWER_TIMEOUT_S)
            except TimeoutError as error:
                raise NetworkError("the network does not answer") from error

    def refresh_groups(self) -> None:
        """Make the network admit what the security groups say now."""
        self.network.set_groups(rules(self.state.groups()))

    def refresh_interfaces(self, instance: InstanceRecord) -> None:
        """Tell the network of the present addresses and groups of a running machine."""
        file = self.state.layout.instance(instance.id) / "metadata.json"
        for interface in self.interfaces(instance, file):
            self.network.plug(interface)

    def unplugged(self, instance: InstanceRecord) -> None:
        """The machine is no more: its address is free."""
        self.state.connect.forget(instance.id)
        self._cables.pop(instance.id, None)
        for record in self._secondaries(instance):
            self.network.unplug(record.id)
        self.network.unplug(instance.interface_id)
        elastic_ip = self.state.elastic_ip(instance.interface_id)
        if instance.public_ip != elastic_ip:
            self.network.addresses.release(instance.public_ip)
        instance.public_ip = elastic_ip
