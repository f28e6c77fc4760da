"""What EC2 says about an instance of a type."""

from __future__ import annotations

from typing import Any

from instant_env.localec2.state.moto_api import INSTANCE_TYPES


def cpu_options(instance_type: str) -> dict[str, Any]:
    """EC2's CpuOptions of a type, as it comes."""
    facts = INSTANCE_TYPES.get(instance_type, {}).get("VCpuInfo", {})
    threads = facts.get("DefaultThreadsPerCore", 1)
    return {
        "CoreCount": facts.get("DefaultCores", facts.get("DefaultVCpus", 1) // threads),
        "ThreadsPerCore": threads,
    }
