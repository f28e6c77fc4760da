"""What a machine tells of its own start, and what its PID 1 keeps of the memory."""

from __future__ import annotations

import json

import pytest
from tiny_cloud import TinyCloud

from instant_env.localec2 import starter

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot]

#: The project's figure, KiB; x86_64 took 8 MiB when this was written.
MOST_RESIDENT_KIB = 12 * 1024


def test_timeline_reads_and_memory(tiny_cloud: TinyCloud) -> None:
    instance_id = tiny_cloud.launch_tiny()
    guest = tiny_cloud.login(instance_id)
    guest.run(
        "for n in $(seq 50); do instant-init timeline | grep -q first_login && exit; usleep 100000; done"
    )
    timeline = json.loads(guest.run("instant-init timeline"))

    marks = {mark["name"]: mark["boottime_ms"] for mark in timeline["marks"]}
    assert 0 < marks["kernel_handoff"] < marks["init_start"] < marks["sshd_started"] < marks["sshd_listening"]
    assert marks["key_written"] < marks["sshd_listening"] < marks["first_login"]
    stages = {stage["name"]: stage for stage in timeline["stages"]}
    assert {"mounts", "network", "host keys", "key"} <= set(stages)
    assert all(stage["start_ms"] <= stage["end_ms"] <= marks["first_login"] for stage in stages.values())

    reads = {read["mark"]: read for read in timeline["root_reads"]}
    requests, size = (
        int(text) for text in guest.run("awk '{print $1, $3 * 512}' /sys/block/nvme0n1/stat").split()
    )
    assert 0 < reads["sshd_listening"]["bytes"] <= reads["first_login"]["bytes"] <= size
    assert 0 < reads["sshd_listening"]["requests"] <= reads["first_login"]["requests"] <= requests
    # From outside the firmware's reads count as well: the EFI binary alone is larger than the init.
    all_requests, all_bytes = starter.root_reads(tiny_cloud.endpoint, instance_id)
    assert all_requests > requests
    assert all_bytes > size + 5_000_000

    resident_kib = int(guest.run("awk '/^VmRSS/ {print $2}' /proc/1/status"))
    assert resident_kib <= MOST_RESIDENT_KIB

    # No file is left half-written, and sshd found both host keys.
    names = guest.run("ls -a /etc/ssh").split()
    assert {"ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "ssh_host_ecdsa_key"} <= set(names)
    assert not [name for name in names if name.startswith(".ssh_host")]
