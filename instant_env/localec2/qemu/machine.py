"""One QEMU machine: the process, its monitor, its end.

The process is its own session leader and is not tied to any thread of ours (PDEATHSIG follows the *thread*
that forked, so a machine started from a request's thread would die with it). It outlives a killed server; the
next one finds it by its monitor's socket: :func:`end_lost`.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.localec2.qemu import command_line
from instant_env.localec2.qemu.backup import Backups, Copy
from instant_env.localec2.qemu.disks import COPY_TIMEOUT_S
from instant_env.localec2.qemu.lockup_watchdog import reset_when_locked_up
from instant_env.localec2.qemu.qmp import Qmp, QmpError
from instant_env.waiting import wait_until

log = logging.getLogger(__name__)

#: QEMU opens its monitor within 0.1 s on an idle machine; a busy one gets much longer.
START_TIMEOUT_S = 30.0
#: After `quit` QEMU flushes its disks and exits.
QUIT_TIMEOUT_S = 10.0
#: A guest that knows Ctrl-Alt-Del (arm64: the power button) obeys within this; then it is reset.
REBOOT_TIMEOUT_S = 60.0
#: How often the power button of a guest that does not shut down is pressed.
PRESS_AGAIN_S = 10.0
#: States of QEMU (RunState in qapi/run-state.json) that a machine does not come back from.
BROKEN = ("internal-error", "io-error", "guest-panicked")


class MachineError(InstantEnvError):
    """A machine did not start."""


class Machine:
    """A machine from start to end. ``on_exit`` is called once, in its own thread, when it is gone."""

    def __init__(
        self, spec: command_line.MachineSpec, log_file: Path, on_exit: Callable[[Machine], None]
    ) -> None:
        self.spec = spec
        self.ended = threading.Event()
        self.guest_shutdown = False  # the guest itself powered off
        self.standing_still = False  # its processors are stopped
        self._log_file = log_file
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: Qmp | None = None
        self._frozen: set[str] = set()  # by us, and why: `freeze`
        self._reset = threading.Event()
        self._suspended = threading.Event()
        self._rebooting = threading.Event()  # by way of the power button: off is not the end
        self._off = threading.Event()
        self._removed: dict[str, threading.Event] = {}
        self._occupied: dict[int, str] = {i: disk.volume_id for i, disk in enumerate(spec.disks) if i > 0}
        self._slots = threading.Lock()
        self._backups = Backups()

    def start(self) -> None:
        """Start it and return when QEMU says that the virtual machine runs.

        Raises MachineError with QEMU's last words; then nothing of it is left and ``on_exit`` is not called.
        """
        self.spec.qmp.unlink(missing_ok=True)
        with self._log_file.open("wb") as output:
            process = self._process = subprocess.Popen(
                command_line.command(self.spec), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=self._log_file.parent, start_new_session=True,
            )  # fmt: skip
        try:
            self._await_monitor(process, time.monotonic() + START_TIMEOUT_S)
        except QmpError as error:
            process.kill()
            process.wait()
            if self._qmp is not None:
                self._qmp.close()
            self.ended.set()
            raise MachineError(f"QEMU did not start: {self._last_words() or error.message}") from error
        threading.Thread(
            target=self._wait, args=(process,), name=f"wait {self.spec.instance_id}", daemon=True
        ).start()
        if self.spec.accelerator == "tcg":
            threading.Thread(
                target=reset_when_locked_up,
                args=(self.spec.instance_id, self.spec.console, self.ended, self._reset_at_once),
                name=f"boot {self.spec.instance_id}", daemon=True,
            ).start()  # fmt: skip

    def _await_monitor(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        self._qmp = Qmp(
            self.spec.qmp,
            on_event=self._event,
            timeout_s=deadline - time.monotonic(),
            has_ended=lambda: process.poll() is not None,
        )
        left_s = deadline - time.monotonic()
        if not wait_until(lambda: self.qmp.execute("query-status")["running"], left_s, 0.005):
            raise QmpError("the machine stays paused")

    @property
    def qmp(self) -> Qmp:
        if self._qmp is None:
            raise QmpError("the machine has not started")
        return self._qmp

    @property
    def started(self) -> bool:
        """Whether its monitor has answered; from then on it can be spoken to."""
        return self._qmp is not None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def _event(self, name: str, data: dict[str, Any]) -> None:
        log.info("%s: %s %s", self.spec.instance_id, name, data)
        self._backups.event(name, data)
        if name == "SHUTDOWN":
            if self._rebooting.is_set():
                self._off.set()
            else:
                # There may be two: a guest's, kept paused for its copies, and then ours.
                self.guest_shutdown |= bool(data.get("guest"))
        elif name == "STOP":
            self.standing_still = True
            # Unless it was `freeze`, QEMU cannot go on, and would stay there for ever.
            if not self._frozen and not self._rebooting.is_set():
                threading.Thread(target=self._stopped, name=f"stopped {self.spec.instance_id}").start()
        elif name == "RESUME":
            self.standing_still = False
        elif name == "SUSPEND":
            self._suspended.set()
        elif name == "RESET":
            self._reset.set()
        elif name == "DEVICE_DELETED" and (event := self._removed.get(str(data.get("device")))):
            event.set()

    def _stopped(self) -> None:
        with contextlib.suppress(QmpError):  # it is ending: then QEMU stops the processors too
            status = self.qmp.execute("query-status")["status"]
            if status in BROKEN:
                log.error("%s: QEMU cannot go on: %s", self.spec.instance_id, status)
                self.quit()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if code != 0:
            log.warning("%s: QEMU ended with %d: %s", self.spec.instance_id, code, self._last_words())
        self._backups.ended()
        self.qmp.close()
        self.spec.qmp.unlink(missing_ok=True)
        self.ended.set()
        for removed in list(self._removed.values()):  # whatever the guest had not let go of, it has now
            removed.set()
        self._on_exit(self)

    def _reset_at_once(self) -> None:
        with contextlib.suppress(QmpError):  # it has ended
            self.qmp.execute("system_reset")

    def press_power_button(self) -> None:
        """ACPI power button; what the guest does about it is its business."""
        with contextlib.suppress(QmpError):  # gone already: what was wanted
            self.qmp.execute("system_powerdown")

    def quit(self, copies_timeout_s: float = COPY_TIMEOUT_S) -> None:
        """End it at once, as if the plug were pulled; its disks are flushed.

        Copies of its disks that have begun are finished first, the guest standing still.
        """
        with contextlib.suppress(QmpError):
            if not self._backups.wait_idle(0):
                self.qmp.execute("stop")
                self._backups.wait_idle(copies_timeout_s)
            self.qmp.execute("quit")
        if not self.ended.wait(QUIT_TIMEOUT_S) and self._process is not None:
            log.warning("%s: QEMU does not quit, killing it", self.spec.instance_id)
            self._process.kill()
            self.ended.wait(QUIT_TIMEOUT_S)

    def stop(self, timeout_s: float, copies_timeout_s: float = COPY_TIMEOUT_S) -> None:
        """Power button, then the plug when the guest is not off after ``timeout_s``.

        A guest that has just booted may not watch its button yet: the press is lost, so it is repeated.
        """
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            self.press_power_button()
            if self.ended.wait(min(left_s, PRESS_AGAIN_S)):
                return
        if not self.ended.is_set():
            self.quit(copies_timeout_s)

    def copy_disks(self, copies: Sequence[Copy], begun: threading.Event) -> None:
        """Copy disks as they are at one instant, while the guest runs on. Raises BackupError."""
        self._backups.run(self.qmp, copies, begun)

    def hibernate(self, timeout_s: float) -> bool:
        """Press the sleep key; whether the guest was off within ``timeout_s``.

        False at once when it suspends to memory instead, as a stock systemd does; it is woken up then.
        """
        self._suspended.clear()
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(QmpError):  # no keyboard: it will not be off
            self.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": "sleep"}]})
            while time.monotonic() < deadline and not self.ended.wait(0.05):
                if self._suspended.is_set():
                    self.qmp.execute("system_wakeup")
                    return False
        return self.ended.is_set()

    def reboot(self) -> None:
        """Ctrl-Alt-Del, then a reset when the guest does not obey within a minute (returns when it has).

        arm64 has no keyboard controller: there the power button is pressed, and a guest that has powered off
        is started again from where a reset begins.
        """
        if self.spec.platform.arch is Arch.ARM64:
            self._power_cycle()
            return
        self._reset.clear()
        keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
        with contextlib.suppress(QmpError):
            self.qmp.execute("send-key", {"keys": keys})
            if self._reset.wait(REBOOT_TIMEOUT_S) or self.ended.is_set():
                return
        with contextlib.suppress(QmpError):
            self.qmp.execute("system_reset")

    def _power_cycle(self) -> None:
        self._off.clear()
        self._rebooting.set()
        try:
            # From now on QEMU pauses where a guest's power-off would end it.
            self.qmp.execute("set-action", {"shutdown": "pause"})
            self.qmp.execute("system_powerdown")
            self._off.wait(REBOOT_TIMEOUT_S)
            self.qmp.execute("system_reset")
            self.qmp.execute("set-action", {"shutdown": "poweroff"})
            self.qmp.execute("cont")
        except QmpError as error:  # it ended meanwhile, for another reason
            log.info("%s: not restarted: %s", self.spec.instance_id, error)
        finally:
            self._rebooting.clear()

    # Faults, for instances/fault_injector.py

    def kill(self) -> None:
        """End the process as a crash does: nothing is flushed, nobody is asked."""
        if self._process is not None:
            self._process.kill()

    def freeze(self, reason: str = "fault") -> None:
        """Stop the processors. Raises QmpError when the machine is gone."""
        self._frozen.add(reason)
        self.qmp.execute("stop")

    def thaw(self, reason: str = "fault") -> None:
        """Let the processors go on, unless there is another reason to stand still. Raises as `freeze`."""
        if reason in self._frozen:
            self._frozen.remove(reason)
            if not self._frozen:
                self.qmp.execute("cont")

    def throttle(self, bytes_per_second: int, operations_per_second: int) -> None:
        """Bound every volume's speed, reads and writes together; 0 is no bound. Raises QmpError."""
        with self._slots:
            volume_ids = [self.spec.disks[0].volume_id, *self._occupied.values()]
        for volume_id in volume_ids:
            self.qmp.execute(
                "block_set_io_throttle",
                {
                    "id": f"dev-{volume_id}", "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0,
                    "iops": operations_per_second, "iops_rd": 0, "iops_wr": 0,
                },
            )  # fmt: skip

    def root_reads(self) -> tuple[int, int]:
        """Requests and bytes read from the root volume since QEMU started, those of the firmware included.

        Raises QmpError when the machine is gone.
        """
        device = f"dev-{self.spec.disks[0].volume_id}"
        for entry in self.qmp.execute("query-blockstats"):
            if entry.get("qdev", "").split("/")[-1] == device:
                return int(entry["stats"]["rd_operations"]), int(entry["stats"]["rd_bytes"])
        raise QmpError(f"QEMU has no statistics of {device}")

    def holds(self, volume_id: str) -> bool:
        """Whether the volume is one of its disks beside the root."""
        with self._slots:
            return volume_id in self._occupied.values()

    def attach(self, disk: command_line.Disk) -> None:
        """Plug a volume into a free slot. Raises MachineError when there is none or QEMU refuses."""
        with self._slots:
            free = [index for index in range(1, command_line.VOLUME_SLOTS + 1) if index not in self._occupied]
            if not free:
                raise MachineError(
                    f"all {command_line.VOLUME_SLOTS} slots of {self.spec.instance_id} are taken"
                )
            self._occupied[free[0]] = disk.volume_id
        try:
            self.qmp.execute("blockdev-add", disk.block_device())
            try:
                self.qmp.execute("device_add", disk.device(command_line.slot(free[0])))
            except QmpError:
                self.qmp.execute("blockdev-del", {"node-name": disk.node})
                raise
        except QmpError as error:
            with self._slots:
                self._occupied.pop(free[0], None)
            raise MachineError(error.message) from error

    def grow(self, disk: command_line.Disk, size_gib: int) -> None:
        """Make the disk of this machine larger. Raises MachineError."""
        try:
            self.qmp.execute("block_resize", {"node-name": disk.node, "size": size_gib << 30}, timeout_s=60)
        except QmpError as error:
            raise MachineError(error.message) from error

    def attach_nic(self, nic: command_line.Nic, index: int) -> None:
        """Plug a network card into the slot of its device index. Raises MachineError when QEMU refuses."""
        try:
            self.qmp.execute("netdev_add", nic.netdev)
            try:
                self.qmp.execute("device_add", nic.device(command_line.nic_slot(index)))
            except QmpError:
                self.qmp.execute("netdev_del", {"id": nic.netdev["id"]})
                raise
        except QmpError as error:
            raise MachineError(error.message) from error

    def detach_nic(self, interface_id: str, timeout_s: float) -> None:
        """Unplug a network card; the guest has to let go of it, or end. Else MachineError is raised."""
        nic = command_line.Nic(interface_id, "", Path())
        device = nic.device("")["id"]
        event = self._removed.setdefault(device, threading.Event())
        event.clear()
        try:
            self.qmp.execute("device_del", {"id": device})
            if not event.wait(timeout_s):
                raise MachineError(f"{self.spec.instance_id} does not let go of {interface_id}")
            self.qmp.execute("netdev_del", {"id": nic.netdev["id"]})
        except QmpError as error:
            if not self.ended.is_set():
                raise MachineError(error.message) from error

    def detach(self, disk: command_line.Disk, timeout_s: float) -> None:
        """Unplug a volume; the guest has to let go of it, or end. Else MachineError is raised."""
        device = f"dev-{disk.node}"
        event = self._removed.setdefault(device, threading.Event())
        event.clear()
        try:
            self.qmp.execute("device_del", {"id": device})
            if not event.wait(timeout_s):
                raise MachineError(f"{self.spec.instance_id} does not let go of {disk.volume_id}")
            self.qmp.execute("blockdev-del", {"node-name": disk.node})
        except QmpError as error:
            if not self.ended.is_set():
                raise MachineError(error.message) from error
        with self._slots:
            self._occupied = {i: volume for i, volume in self._occupied.items() if volume != disk.volume_id}


def end_lost(socket: Path, timeout_s: float = QUIT_TIMEOUT_S) -> bool:
    """End a machine that a killed server left behind, by its monitor. False when there was none."""
    try:
        qmp = Qmp(socket, timeout_s=2.0 if socket.exists() else 0.0)
    except QmpError:
        socket.unlink(missing_ok=True)
        return False
    with contextlib.suppress(QmpError):
        qmp.execute("quit")

    def is_silent() -> bool:
        try:
            qmp.execute("query-status", timeout_s=1.0)
        except QmpError:
            return True  # the socket is closed: QEMU is gone or past the point of return
        return False

    wait_until(is_silent, timeout_s, 0.02)
    qmp.close()
    socket.unlink(missing_ok=True)
    return True
