"""What a guest gets of the host: its type's processors and memory, up to a share that spares the host."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from instant_env.localec2.state.moto_api import INSTANCE_TYPES

#: Two cores are all that many laptops can spare.
MAX_VCPUS = 2
#: Of the host's memory, for one guest, where the settings do not say. QEMU takes it as the guest touches it,
#: but a guest's page cache fills all of it in the end, and several run at once. 8 GiB are at the floor.
_SHARE = 8
_FLOOR_MIB = 1024
_MIB = 1024 * 1024
#: The limit of a container that this runs in (cgroup v2: Linux, admin-guide/cgroup-v2.rst, "memory.max").
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def host_memory_mib(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """What this process could have at most: the machine's memory, or its container's where that is less."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        size = min(size, int(cgroup_limit.read_text()))
    return size // _MIB


def most_memory_mib(chosen_mib: int, host_mib: int) -> int:
    """The most that a guest gets: what the settings say, or by the host's memory when they say 0."""
    return chosen_mib or max(_FLOOR_MIB, host_mib // _SHARE)


def vcpus_of(instance_type: str) -> int:
    """The processors of a guest."""
    return min(int(INSTANCE_TYPES[instance_type]["VCpuInfo"]["DefaultVCpus"]), MAX_VCPUS)


def memory_mib_of(instance_type: str, chosen_mib: int) -> int:
    """The memory of a guest; ``chosen_mib`` is guest_memory_mib of the settings."""
    own = int(INSTANCE_TYPES[instance_type]["MemoryInfo"]["SizeInMiB"])
    return min(own, most_memory_mib(chosen_mib, host_memory_mib()))
