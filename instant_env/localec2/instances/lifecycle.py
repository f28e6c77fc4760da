"""The life of instances: booting, stopping, ending machines, and what becomes of the records meanwhile.

A request changes the state and returns; a worker does the rest. Workers of one instance run one after the
other. The machine's process is the judge of the truth: an instance is `running` when QEMU says so, and
`stopped` or `terminated` when the process is gone, whoever ended it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.hibernation import SLEEP_TIMEOUT_S
from instant_env.localec2.instances.job_queue import Job, Work
from instant_env.localec2.instances.machine_builder import MachineBuilder
from instant_env.localec2.instances.state_reasons import GUEST, USER, Cause
from instant_env.localec2.instances.storage import Storage
from instant_env.localec2.qemu.machine import Machine
from instant_env.localec2.records.records import InstanceRecord, InstanceState, TagsRecord
from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.state import State, now
from instant_env.waiting import wait_until

log = logging.getLogger(__name__)

#: How long EC2 shows a terminated instance, roughly.
TERMINATED_VISIBLE = timedelta(hours=1)
#: A machine that is terminated while volumes outlive it may flush them this long.
FLUSH_TIMEOUT_S = 20.0
#: From the end of a machine's process to its record on a slow disk.
RECORD_TIMEOUT_S = 10.0


class Lifecycle:
    """Instances of one server. Public methods want the state's lock held unless they say otherwise."""

    def __init__(self, state: State, machine_builder: MachineBuilder, stop_timeout_s: float) -> None:
        self.state = state
        self.machine_builder = machine_builder
        self.stop_timeout_s = stop_timeout_s
        self.machines: dict[str, Machine] = {}
        self.hears_guests = False  # whether the network calls `guest_spoke`
        self.heard: set[str] = set()  # instances whose guest has spoken
        self._posted: dict[str, int] = {}  # bytes of running machines' consoles at their last change of state
        # Told of a machine that runs and of one that ended, without the lock.
        self.on_starting: Callable[[str], None] = lambda _: None
        self.on_terminated: Callable[[InstanceRecord], None] = lambda _: None  # with the lock
        self.on_running: Callable[[Machine], None] = lambda _: None
        self.on_ended: Callable[[Machine], None] = lambda _: None
        self.storage = Storage(state)
        self._work = Work()
        self.closing = False

    def work(self, name: str, job: Job) -> None:
        """Run a job of this instance (or volume) in a thread, after those that were asked for before."""
        self._work.add(name, job)

    # Requests

    def boot(self, instance: InstanceRecord) -> None:
        """Start the machine of a `pending` instance."""
        self.state.strictness.started(instance.id)
        self.work(instance.id, self._boot)

    def start(self, instance_id: str) -> str:
        """StartInstances for one; returns the state before."""
        instance = self.state.instance(instance_id)
        before = instance.state
        if before in ("pending", "running"):
            return before
        if before != "stopped":
            raise self._wrong_state(instance, "started")
        instance.launch_time, instance.interruption = now(), None
        self.state.set_instance_state(instance, "pending")
        self.boot(instance)
        return before

    def stop(
        self, instance_id: str, *, force: bool = False, hibernate: bool = False, cause: Cause = USER
    ) -> str:
        """StopInstances for one; returns the state before."""
        instance = self.state.instance(instance_id)
        before = instance.state
        if before in ("stopped", "stopping") and not force:
            return before
        if before not in ("pending", "running", "stopping"):
            if before == "stopped":
                return before
            raise self._wrong_state(instance, "stopped")
        self._ending(instance, "stopping", cause)
        if force and (machine := self.machines.get(instance_id)) is not None:
            # Not in turn: a stop that waits for the guest is what this is to cut short.
            threading.Thread(target=machine.quit, name=f"force {instance_id}").start()
        else:
            job = self._force_stop if force else self._hibernate if hibernate else self._stop
            self.work(instance_id, job)
        return before

    def terminate(self, instance_id: str, *, graceful: bool | None = None, cause: Cause = USER) -> str:
        """TerminateInstances for one; returns the state before.

        ``graceful``: press the power button first; None does so for volumes that survive, to flush them.
        """
        instance = self.state.instance(instance_id)
        before = instance.state
        if before in ("shutting-down", "terminated"):
            return before
        self._ending(instance, "shutting-down", cause)
        machine = self.machines.get(instance_id)
        if before == "stopping" and machine is not None:
            threading.Thread(target=machine.quit, name=f"terminate {instance_id}").start()
        self.work(instance_id, partial(self._terminate, graceful))
        return before

    def _ending(self, instance: InstanceRecord, state: InstanceState, cause: Cause) -> None:
        self._post_console(instance.id)
        reason = f"{cause.reason} ({now():%Y-%m-%d %H:%M:%S} GMT)"
        self.state.set_instance_state(instance, state, reason=reason, code=cause.code, message=cause.message)

    def reboot(self, instance_id: str) -> None:
        """RebootInstances for one."""
        instance = self.state.instance(instance_id)
        machine = self.machines.get(instance_id)
        if instance.state != "running" or machine is None:
            raise self._wrong_state(instance, "rebooted")
        self._post_console(instance_id)
        threading.Thread(target=machine.reboot, name=f"reboot {instance_id}", daemon=True).start()

    def _post_console(self, instance_id: str) -> None:
        """Remember how much a machine had printed when its instance changed its state."""
        path = self.state.layout.instances / instance_id / "console.log"
        self._posted[instance_id] = path.stat().st_size if path.exists() else 0

    def posted_console(self, instance_id: str) -> int | None:
        """Bytes of the console that were there at the last change of state; None for all of them."""
        return self._posted.get(instance_id, 0) if instance_id in self.machines else None

    def interface_spoke(self, interface_id: str) -> None:
        """A guest has used the address of this interface (lock not held)."""
        with self.state.lock:
            for instance_id in list(self.machines):
                if self.state.instances[instance_id].interface_id == interface_id:
                    self.guest_spoke(instance_id)

    def guest_spoke(self, instance_id: str) -> None:
        """The network saw this instance's guest use its address; its status checks pass from now on."""
        if instance_id in self.machines:
            self.heard.add(instance_id)

    def refresh_network(self) -> None:
        """Security groups, or who is in them, have changed: the network admits what they say now."""
        self.machine_builder.refresh_groups()
        for instance_id in self.machines:
            self.machine_builder.refresh_interfaces(self.state.instances[instance_id])

    def network_lost(self) -> None:
        """The network's process died (lock not held): machines cannot be connected again, so they end."""
        with self.state.lock:
            machines = dict(self.machines)
        for instance_id, machine in machines.items():
            log.error("%s has lost its network: ending it", instance_id)
            threading.Thread(target=machine.quit, name=f"lost {instance_id}").start()

    def purge(self) -> None:
        """Forget instances that were terminated an hour ago."""
        for instance in list(self.state.instances.values()):
            if instance.terminated_at and now() - instance.terminated_at > TERMINATED_VISIBLE:
                self.state.forget(instance)
                self.state.faults.forget(instance.id)
                shutil.rmtree(self.state.layout.instances / instance.id, ignore_errors=True)

    # Workers: these take the lock themselves, and never while they wait

    def _boot(self, instance_id: str) -> None:
        machine = None
        try:
            with self.state.lock:
                instance = self.state.instances[instance_id]
                if instance.state != "pending" or self.closing:
                    return
                volumes = self.state.attached(instance_id)
            for volume in volumes:
                with self.storage.lock(volume.id):  # a copy for an image may still be under way
                    self.machine_builder.make_disk(volume)
            self.machine_builder.make_seed(instance)
            self.state.faults.bind(instance_id)
            with self.state.lock:
                machine = self.machine_builder.machine(instance, volumes, self._exited)
                if instance.state != "pending" or self.closing:
                    return
                self.machines[instance_id] = machine
            self.machine_builder.await_network(instance_id)
            self.on_starting(instance_id)
            machine.start()
        except InstantEnvError as error:
            log.error("%s did not start: %s", instance_id, error)
            self._failed(instance_id, error.message)
            return
        except Exception as error:
            log.exception("%s did not start", instance_id)
            self._failed(instance_id, f"{type(error).__name__}: {error}")
            return
        with self.state.lock:
            if instance.state == "pending" and not machine.ended.is_set():
                self._post_console(instance_id)
                self.state.set_instance_state(instance, "running")
                self.refresh_network()  # its groups may have changed since the command line was made
            closing = self.closing
        self.on_running(machine)
        if closing:
            machine.quit()

    def _failed(self, instance_id: str, problem: str) -> None:
        """A machine that cannot start: EC2 terminates such an instance and says that it was its own fault."""
        with self.state.lock:
            self._unplugged(instance_id)
            instance = self.state.instances[instance_id]
            if instance.state == "stopping":
                self.state.set_instance_state(instance, "stopped", reason=instance.transition_reason)
                return
        self.finish_termination(instance_id, code="Server.InternalError", message=problem)

    def _stop(self, instance_id: str) -> None:
        self._stop_machine(instance_id, self.stop_timeout_s)

    def _force_stop(self, instance_id: str) -> None:
        self._stop_machine(instance_id, 0)

    def _hibernate(self, instance_id: str) -> None:
        """The sleep key; a guest that does not hibernate is stopped, and the reason says so."""
        with self.state.lock:
            machine = self.machines.get(instance_id)
        if machine is None or machine.hibernate(SLEEP_TIMEOUT_S):
            self._stop_machine(instance_id, 0)
            return
        with self.state.lock:
            instance = self.state.instances[instance_id]
            log.warning("%s did not hibernate", instance_id)
            # API_StateReason: the code says that a hibernation was begun, not that there was one.
            kept = self.state.strictness.switches.hibernation_reason_kept
            if instance.state == "stopping" and not kept:
                self.state.set_instance_state(
                    instance, "stopping", reason=instance.transition_reason, code=USER.code,
                    message=f"The guest did not hibernate (within {SLEEP_TIMEOUT_S:g} s) and was shut down",
                )  # fmt: skip
        self._stop_machine(instance_id, self.stop_timeout_s)

    def _stop_machine(self, instance_id: str, timeout_s: float) -> None:
        with self.state.lock:
            machine = self.machines.get(instance_id)
            instance = self.state.instances[instance_id]
            if machine is None and instance.state == "stopping":
                instance.state = "stopped"  # it was stopped before its machine was made
                self.state.save(instance)
        if machine is not None:
            machine.stop(timeout_s)
            self._await_record(machine)

    def _terminate(self, graceful: bool | None, instance_id: str) -> None:
        with self.state.lock:
            machine = self.machines.get(instance_id)
            attachments = [volume.attachment for volume in self.state.attached(instance_id)]
        if machine is not None:
            if graceful is None:
                graceful = any(item and not item.delete_on_termination for item in attachments)
            machine.stop(FLUSH_TIMEOUT_S if graceful else 0)
        else:
            self.finish_termination(instance_id)

    def _exited(self, machine: Machine) -> None:
        """The machine's process is gone."""
        instance_id = machine.spec.instance_id
        self.on_ended(machine)
        with self.state.lock:
            self._unplugged(instance_id)
            instance = self.state.instances[instance_id]
            state = instance.state
            if state == "stopping":
                instance.state = "stopped"  # the reason stays the one that the request gave
                self.state.save(instance)
            elif state in ("pending", "running"):
                if not machine.guest_shutdown:
                    self.state.set_instance_state(
                        instance, "stopped", code="Server.InternalError",
                        message="The machine ended unexpectedly",
                        reason="Server.InternalError",
                    )  # fmt: skip
                elif instance.shutdown_behavior == "stop" and instance.stoppable:
                    self._ending(instance, "stopped", GUEST)
                else:
                    state = "shutting-down"
                    self._ending(instance, state, GUEST)
            if state == "shutting-down":
                self.work(instance_id, self.finish_termination)

    def _await_record(self, machine: Machine) -> None:
        """Wait until a machine's end is recorded; it leaves the table then."""

        def is_recorded() -> bool:
            with self.state.lock:
                return self.machines.get(machine.spec.instance_id) is not machine

        wait_until(is_recorded, RECORD_TIMEOUT_S, 0.01)

    def _unplugged(self, instance_id: str) -> None:
        """The machine is no more."""
        self.machines.pop(instance_id, None)
        self._posted.pop(instance_id, None)
        self.heard.discard(instance_id)
        self.machine_builder.unplugged(self.state.instances[instance_id])

    def finish_termination(self, instance_id: str, code: str = "", message: str = "") -> None:
        with self.state.lock:
            volumes = self.state.attached(instance_id)
        for volume in volumes:
            keep = volume.attachment is None or not volume.attachment.delete_on_termination
            with self.storage.lock(volume.id) if not keep else contextlib.nullcontext(), self.state.lock:
                volume.attachment = None
                if keep:
                    self.state.save(volume)
                else:
                    self.storage.delete_volume(volume)
        with self.state.lock:
            instance = self.state.instances[instance_id]
            if code:
                self.state.set_instance_state(instance, "terminated", code=code, message=message, reason=code)
            else:
                instance.state, instance.terminated_at = "terminated", now()
                self.state.save(instance)
            self.state.forget(TagsRecord(resource_id=instance.interface_id, tags={}))
            self.on_terminated(instance)
            directory = self.state.layout.instance(instance_id)
            for name in ("variables.fd", "metadata.json", "cidata.img"):
                (directory / name).unlink(missing_ok=True)

    def close(self, timeout_s: float) -> None:
        """The server ends (lock not held): power buttons, then plugs; instances end `stopped` and say why."""
        with self.state.lock:
            self.closing = True
            machines = dict(self.machines)
            for instance_id in machines:
                instance = self.state.instances[instance_id]
                if instance.state in ("pending", "running"):
                    self.state.set_instance_state(
                        instance, "stopping", code="Server.ScheduledStop", reason="Server.ScheduledStop",
                        message="localec2 was taken down",
                    )  # fmt: skip
        enders = [
            threading.Thread(target=machine.stop, args=(timeout_s, timeout_s), name=f"close {instance_id}")
            for instance_id, machine in machines.items()
        ]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        for machine in machines.values():
            self._await_record(machine)

    @staticmethod
    def _wrong_state(instance: InstanceRecord, verb: str) -> EC2ClientError:
        return EC2ClientError(
            "IncorrectInstanceState",
            f"The instance '{instance.id}' is not in a state from which it can be {verb} ({instance.state}).",
        )
