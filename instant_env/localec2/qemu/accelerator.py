"""KVM or emulation: ``auto`` believes in KVM only when a guest really ran under it.

Where virtualisation is nested, /dev/kvm can open and create machines that do not run: some hang at the boot
ROM, others execute simple code and stop at an instruction that only hardware could do ("KVM internal error").
So the probe boots what instances boot, the UEFI firmware, which uses all of the processor, up to its first
words on the serial console. The answer is remembered beside the kernel and QEMU it was found with: a probe
that hangs costs its whole time.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from instant_env.errors import InstantEnvError
from instant_env.files import write_atomically
from instant_env.localec2.qemu.command_line import Platform, machine_type
from instant_env.settings import AcceleratorChoice
from instant_env.waiting import wait_until

Accelerator = Literal["kvm", "tcg"]

#: The firmware speaks after 1 s under KVM and 3 s under emulation; a loaded computer gets more.
PROBE_TIMEOUT_S = 8.0
#: Of the probe: an answer that another kind of probe found is not believed.
PROBE_VERSION = 2


class AcceleratorError(InstantEnvError):
    """KVM was asked for and cannot be had."""


class _Remembered(BaseModel):
    probe: int
    kernel: str
    qemu: str
    accelerator: Accelerator


def choose(choice: AcceleratorChoice, machine: Platform, memory: Path) -> Accelerator:
    """What machines of this platform run under. Raises AcceleratorError when KVM was demanded in vain."""
    if choice is AcceleratorChoice.TCG:
        return "tcg"
    native = platform.machine() == machine.arch.machine
    if choice is AcceleratorChoice.KVM:
        if not native or not _kvm_opens():
            raise AcceleratorError(
                f"no KVM for {machine.arch} machines here", hint="set the accelerator to auto or tcg"
            )
        return "kvm"
    if not native or not _kvm_opens():
        return "tcg"
    kernel, qemu = platform.release(), f"{machine.system} {Path(machine.system).stat().st_mtime_ns}"
    try:
        remembered = _Remembered.model_validate_json(memory.read_bytes())
        if (remembered.probe, remembered.kernel, remembered.qemu) == (PROBE_VERSION, kernel, qemu):
            return remembered.accelerator
    except (OSError, ValidationError):
        pass  # nothing remembered, or nothing that can be read: find out
    accelerator: Accelerator = "kvm" if probe(machine, "kvm") else "tcg"
    answer = _Remembered(probe=PROBE_VERSION, kernel=kernel, qemu=qemu, accelerator=accelerator)
    write_atomically(memory, answer.model_dump_json().encode())
    return accelerator


def _kvm_opens() -> bool:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def probe(machine: Platform, accelerator: str, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether a guest's firmware gets as far as its console within the time."""
    with tempfile.TemporaryDirectory(prefix="instant-env-probe-") as directory:
        console, variables = Path(directory) / "console", Path(directory) / "variables"
        shutil.copyfile(machine.firmware_variables, variables)
        command = [
            machine.system, "-nodefaults", "-no-user-config", "-display", "none", "-m", "128M",
            "-machine", machine_type(machine.arch), "-cpu", "max", "-smp", "2", "-accel", accelerator,
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={machine.firmware_code}",
            "-drive", f"if=pflash,unit=1,format=raw,file={variables}", "-serial", f"file:{console}",
        ]  # fmt: skip
        complaints = Path(directory) / "stderr"
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )

        def boots() -> bool:
            return console.exists() and b"BdsDxe" in console.read_bytes()

        def has_failed() -> bool:
            # After an internal error QEMU stays, paused.
            return process.poll() is not None or b"internal error" in complaints.read_bytes()

        try:
            wait_until(lambda: boots() or has_failed(), timeout_s, 0.05)
            return boots()
        finally:
            process.kill()
            process.wait()
