"""The JSON beside the CSV: everything that a reader needs to judge the figures, or to run it again."""

from __future__ import annotations

import ipaddress
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env import files
from instant_env.cloud.network import caller_cidr
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import PREFIX, read_tags

_ROUND_TRIPS = 5

#: Libraries that take part in a measurement.
_LIBRARIES = ("asyncssh", "boto3", "botocore", "cryptography", "instant-env", "moto")


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    for line in text.splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor()


def host_state() -> dict[str, Any]:
    """The machine the harness runs on; in localec2 also the machine that runs the guests."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def images(cloud: Cloud, image_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of each AMI: snapshots, volumes, boot mode, and what its tags say of how it was made, the init's hash
    too."""
    # A listing by a filter leaves deprecated AMIs of other owners out (API reference, DescribeImages:
    # IncludeDeprecated); AL2023's are deprecated 90 days after their release.
    named: Any = [{"Name": "image-id", "Values": sorted(image_ids)}]
    amis = cloud.ec2.describe_images(Filters=named, IncludeDeprecated=True)["Images"]
    return {
        image["ImageId"]: {
            "name": image.get("Name", ""),
            "architecture": image.get("Architecture", ""),
            "boot_mode": image.get("BootMode"),
            "created": image.get("CreationDate"),
            "volumes": [
                {"device": volume.get("DeviceName"), **volume["Ebs"]}
                for volume in image.get("BlockDeviceMappings", [])
                if "Ebs" in volume
            ],
            "tags": {
                key: value for key, value in read_tags(image.get("Tags")).items() if key.startswith(PREFIX)
            },
        }
        for image in amis
    }


def encrypted_by_default(cloud: Cloud) -> bool | None:
    """Whether this account and region encrypt every new volume; None where that cannot be asked."""
    try:
        return bool(cloud.ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"])
    except (ClientError, BotoCoreError):
        return None


def root_volume(cloud: Cloud, instance_id: str, root_device: str) -> dict[str, Any]:
    """What a machine's root volume is like, as EC2 has it; empty where that cannot be asked."""
    attached: Any = [
        {"Name": "attachment.instance-id", "Values": [instance_id]},
        {"Name": "attachment.device", "Values": [root_device]},
    ]
    try:
        volumes = cloud.ec2.describe_volumes(Filters=attached)["Volumes"]
    except (ClientError, BotoCoreError):
        return {}
    return {
        name: value
        for volume in volumes
        for name, value in {
            "encrypted": volume.get("Encrypted", False),
            "type": volume.get("VolumeType"),
            "gib": volume.get("Size"),
            "iops": volume.get("Iops"),
            "throughput": volume.get("Throughput"),
        }.items()
    }


def client(cloud: Cloud) -> dict[str, Any]:
    """Where the harness is, as the cloud sees it, and how far away: the median of some small API calls.

    The address is cut to its network: results are published.
    """
    times_ms = []
    for _ in range(_ROUND_TRIPS):
        started = time.monotonic()
        cloud.ec2.describe_availability_zones()
        times_ms.append((time.monotonic() - started) * 1000)
    try:
        network = str(ipaddress.ip_network(caller_cidr(cloud).replace("/32", "/16"), strict=False))
    except CloudError:
        network = ""
    return {
        "network": network,
        "time_zone": time.strftime("%z"),
        "api_round_trip_ms": round(statistics.median(times_ms), 3),
    }


def load() -> list[float]:
    """The host's load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def library_versions() -> dict[str, str | None]:
    """Versions of the libraries in a measurement; null for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def command_line() -> list[str]:
    """How this process was started. No flag of ours carries a secret."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def write(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the file in one step, so that no reader ever sees half of it."""
    files.write_json(path, metadata)
