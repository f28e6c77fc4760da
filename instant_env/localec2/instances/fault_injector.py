"""Carrying out the faults that concern machines: killed, frozen, slow of disk, ill served by IMDS.

The table is :mod:`instant_env.localec2.state.faults`. QEMU is never spoken to with the state's lock held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.qemu import command_line
from instant_env.localec2.qemu.machine import Machine
from instant_env.localec2.qemu.qmp import QmpError
from instant_env.localec2.records.records import InstanceRecord
from instant_env.localec2.state.faults import (
    ALL,
    NEXT,
    Active,
    DiskFault,
    Fault,
    FreezeFault,
    ImdsFault,
    KillFault,
    NetworkFault,
    UnpluggedFault,
)
from instant_env.localec2.state.state import State

log = logging.getLogger(__name__)


class FaultError(InstantEnvError):
    """A fault cannot be made: there is no such machine, or no such fault."""


class FaultInjector:
    """Faults of one server. Public methods want the state's lock not held."""

    def __init__(
        self, state: State, lifecycle: Lifecycle, instance_changed: Callable[[InstanceRecord], None]
    ) -> None:
        """``instance_changed`` writes an instance's IMDS documents again; it wants the state's lock held."""
        self._state = state
        self._lifecycle = lifecycle
        self._instance_changed = instance_changed
        self._faults = state.faults
        lifecycle.on_starting = self._starting
        lifecycle.on_running = self._started
        lifecycle.on_ended = self._ended

    def inject(self, fault: Fault) -> dict[str, Any]:
        """Put a fault in the table and do what it does now. Raises FaultError."""
        instance = getattr(fault, "instance", ALL)
        if instance not in (ALL, NEXT):
            if isinstance(fault, UnpluggedFault):
                raise FaultError(f"{instance} has its network card; this fault is for `next`")
            self._require(instance, running=isinstance(fault, KillFault | FreezeFault))
        active = self._faults.add(fault)
        log.info("fault %s: %s", active.id, fault)
        if fault.seconds is not None:
            self._later(fault.seconds, self.clear, active.id)
        try:
            self._apply(active, self._running(active))
        except InstantEnvError:
            self._faults.remove(active.id)
            raise
        return active.as_dict(self._faults.clock())

    def clear(self, fault_id: str | None = None) -> list[str]:
        """Take one fault or all out of the table and undo what can be undone; returns their ids."""
        removed = self._faults.remove(fault_id)
        for active in removed:
            log.info("fault %s is over", active.id)
            for machine in self._running(active):
                try:
                    self._undo(active, machine)
                except InstantEnvError as error:  # the machine is gone, and its troubles with it
                    log.info("%s: %s", machine.spec.instance_id, error.message)
            self._rewrite_metadata(active)
        return [active.id for active in removed]

    def _require(self, instance_id: str, *, running: bool) -> None:
        with self._state.lock:
            instance = self._state.instances.get(instance_id)
            if instance is None or instance.state == "terminated":
                raise FaultError(f"there is no instance {instance_id}")
            if running and instance_id not in self._lifecycle.machines:
                raise FaultError(f"{instance_id} has no machine that runs ({instance.state})")

    def _running(self, active: Active) -> list[Machine]:
        """The machines that a fault concerns; one that is just starting gets it when it runs."""
        with self._state.lock:
            machines = self._lifecycle.machines.items()
            return [item for name, item in machines if active.instance in (ALL, name) and item.started]

    def _apply(self, active: Active, machines: list[Machine]) -> None:
        fault = active.fault
        if isinstance(fault, ImdsFault):
            self._rewrite_metadata(active)
            return
        for machine in machines:
            if isinstance(fault, KillFault | FreezeFault) and fault.after_ms:
                self._later(fault.after_ms / 1000, self._strike_late, active, machine)
            else:
                self._strike(active, machine)

    def _strike_late(self, active: Active, machine: Machine) -> None:
        if any(item is active for item in self._faults.of_machine(machine.spec.instance_id)):
            try:
                self._strike(active, machine)
            except QmpError as error:  # it ended by itself
                log.info("%s: %s", machine.spec.instance_id, error.message)

    def _strike(self, active: Active, machine: Machine) -> None:
        fault = active.fault
        active.struck += 1
        if isinstance(fault, KillFault):
            self._faults.remove(active.id)
            machine.kill()
        elif isinstance(fault, FreezeFault):
            machine.freeze()
        elif isinstance(fault, DiskFault):
            machine.throttle(fault.bytes_per_second, fault.operations_per_second)
        elif isinstance(fault, NetworkFault):
            self._disturb(machine.spec.instance_id)

    def _undo(self, active: Active, machine: Machine) -> None:
        if isinstance(active.fault, FreezeFault):
            machine.thaw()
        elif isinstance(active.fault, DiskFault):
            machine.throttle(0, 0)
        elif isinstance(active.fault, NetworkFault):
            self._disturb(machine.spec.instance_id)
        elif isinstance(active.fault, UnpluggedFault) and active.struck:
            machine.attach_nic(self._primary_nic(machine.spec.instance_id), 1)

    def _primary_nic(self, instance_id: str) -> command_line.Nic:
        machine_builder = self._lifecycle.machine_builder
        with self._state.lock:
            instance = self._state.instances[instance_id]
            return machine_builder.nic(machine_builder.interfaces(instance, Path())[0])

    def _disturb(self, instance_id: str) -> None:
        """Make an instance's interfaces as bad as the table says now. Raises NetworkError."""
        machine_builder = self._lifecycle.machine_builder
        with self._state.lock:
            instance = self._state.instances[instance_id]
            names = [interface.id for interface in machine_builder.interfaces(instance, Path())]
        fault = self._faults.network(instance_id)
        for name in names:
            if fault is None:
                machine_builder.network.fault(name)
            else:
                machine_builder.network.fault(
                    name, drop_dhcp=fault.drop_dhcp, drop_probability=fault.loss_percent / 100,
                    delay_ms=fault.delay_ms, silent_dns=fault.silent_dns,
                )  # fmt: skip

    def _starting(self, instance_id: str) -> None:
        """An instance's interfaces are there, its machine is not yet: the first packet counts."""
        if self._faults.network(instance_id) is not None:
            self._disturb(instance_id)
        for active in self._faults.of_machine(instance_id):
            active.struck += isinstance(active.fault, NetworkFault | UnpluggedFault)

    def _rewrite_metadata(self, active: Active) -> None:
        """IMDS reads the file again with every request."""
        if not isinstance(active.fault, ImdsFault):
            return
        with self._state.lock:
            for instance in self._state.instances.values():
                if active.instance in (ALL, instance.id):
                    self._instance_changed(instance)

    def _started(self, machine: Machine) -> None:
        """A machine runs: what was made for it before."""
        for active in self._faults.of_machine(machine.spec.instance_id):
            if isinstance(active.fault, NetworkFault | UnpluggedFault):
                continue  # done before it started
            try:
                self._apply(active, [machine])
            except QmpError as error:
                log.warning("%s: %s not done: %s", machine.spec.instance_id, active.id, error.message)

    def _ended(self, machine: Machine) -> None:
        """Nothing is left to thaw or to kill."""
        for active in self._faults.of_machine(machine.spec.instance_id):
            if isinstance(active.fault, KillFault | FreezeFault):
                self._faults.remove(active.id)

    @staticmethod
    def _later(seconds: float, function: Any, *arguments: Any) -> None:
        timer = threading.Timer(seconds, function, arguments)
        timer.daemon = True  # a fault that is not over does not keep the server
        timer.start()
