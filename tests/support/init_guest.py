"""What the boot tests of init/ ask of a tiny machine besides a login: its console, and a state to come."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

from instant_env.debian.command import search_path

if TYPE_CHECKING:
    from pathlib import Path

    from support.tiny_cloud import Guest, TinyCloud

#: Why a test that puts machines to sleep needs x86_64.
HIBERNATION = "localec2 hibernates x86_64 machines only (docs/arm64.md)"

#: Emulated machines are slow, and others may keep this one busy: a bound for what takes seconds.
PATIENCE_S = 90.0
#: In pieces of this size an empty file system is copied.
BLOCK_KIB = 64


def console(cloud: TinyCloud, instance_id: str) -> str:
    """What the machine has printed since its latest start."""
    return str(cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", ""))


def wait_for_line(
    cloud: TinyCloud, instance_id: str, pattern: str, timeout_s: float = PATIENCE_S
) -> re.Match[str]:
    """The first match on the console, once there is one."""
    deadline = time.monotonic() + timeout_s
    while True:
        text = console(cloud, instance_id)
        if match := re.search(pattern, text):
            return match
        assert time.monotonic() < deadline, f"no {pattern!r} on the console:\n{text}"
        time.sleep(0.2)


def wait_until(guest: Guest, command: str, timeout_s: int = int(PATIENCE_S)) -> None:
    """Return when the command succeeds in the guest."""
    loop = f"for i in $(seq {timeout_s * 5}); do if {command}; then exit 0; fi; usleep 200000; done; exit 1"
    assert guest.status(loop, timeout_s=timeout_s * 3) == 0, f"in vain: {command}"


def write_file(guest: Guest, path: str, text: str, mode: str = "0644") -> None:
    """Make a file in the guest."""
    guest.run(
        f"mkdir -p $(dirname {path}); cat >{path} <<'END OF FILE'\n{text}\nEND OF FILE\nchmod {mode} {path}"
    )


def put_file_system(guest: Guest, kind: str, size_mib: int, device: str, directory: Path) -> None:
    """Put an empty xfs or ext4 onto the device, made on this host, as busybox makes neither: what is not zero
    of it."""
    image, packed = directory / kind, directory / f"{kind}.packed"
    with image.open("wb") as file:
        file.truncate(size_mib * 2**20)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, env=os.environ | {"PATH": search_path()})
    places = []
    with image.open("rb") as whole, packed.open("wb") as out:
        for place in range(size_mib * 1024 // BLOCK_KIB):
            if any(block := whole.read(BLOCK_KIB * 1024)):
                places.append(str(place))
                out.write(block)
    guest.connection.put(str(packed), "/run/packed")
    copy = f"dd if=/run/packed of={device} bs={BLOCK_KIB}k count=1 skip=$n seek=$place 2>/dev/null"
    guest.run(f"n=0; for place in {' '.join(places)}; do {copy}; n=$((n + 1)); done; sync; rm /run/packed")


def stop(cloud: TinyCloud, instance_id: str) -> str:
    """Stop the machine by its power button; returns its console."""
    cloud.ec2.stop_instances(InstanceIds=[instance_id])
    cloud.wait(instance_id, "stopped", timeout_s=PATIENCE_S)
    return console(cloud, instance_id)


def start(cloud: TinyCloud, instance_id: str) -> Guest:
    """Start a stopped machine and log in."""
    cloud.ec2.start_instances(InstanceIds=[instance_id])
    return cloud.login(instance_id)
