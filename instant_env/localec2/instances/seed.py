"""A NoCloud disk for guests whose cloud-init does not look for EC2: Amazon's KVM image of AL2023.

Its ``datasource_list`` is NoCloud, AltCloud, ConfigDrive, OVF, VMware and None. NoCloud takes what it is
given on a file system with the label ``cidata`` (cloud-init's documentation, "NoCloud"): there it finds the
instance's id, its key and its user data, as EC2's metadata service would tell them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from instant_env.errors import InstantEnvError, MissingToolError
from instant_env.files import replacing
from instant_env.localec2.network import metadata
from instant_env.localec2.records.records import InstanceRecord

#: The label, in the capitals that FAT has; cloud-init looks for either.
LABEL = "CIDATA"
#: User data has at most 16 KiB.
_SIZE_KIB = 1024
_TIMEOUT_S = 60.0
#: Where Debian has the programs of root.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_PACKAGES = {"mkfs.vfat": "dosfstools", "mcopy": "mtools"}


class SeedError(InstantEnvError):
    """The disk cannot be made."""


def contents(instance: InstanceRecord) -> dict[str, bytes]:
    """The files of an instance's disk."""
    known = {
        "instance-id": instance.id, "local-hostname": metadata.host_name(instance.private_ip),
        "public-keys": [instance.public_key] if instance.public_key else [],
    }  # fmt: skip
    user_data = base64.b64decode(instance.user_data_base64 or "")
    # JSON is YAML. NoCloud wants a file of user data, even if there is nothing in it to do.
    return {"meta-data": json.dumps(known).encode(), "user-data": user_data or b"#cloud-config\n"}


def write(path: Path, instance: InstanceRecord) -> None:
    """Make the disk, anew for each start: user data may have changed. Raises SeedError, MissingToolError."""
    with replacing(path) as part, tempfile.TemporaryDirectory(dir=path.parent) as directory:
        part.unlink(missing_ok=True)
        _run("mkfs.vfat", "-n", LABEL, "-C", str(part), str(_SIZE_KIB))
        for name, content in contents(instance).items():
            file = Path(directory) / name
            file.write_bytes(content)
            _run("mcopy", "-i", str(part), str(file), f"::{name}")


def _run(name: str, *arguments: str) -> None:
    program = shutil.which(name, path=_PATH)
    if program is None:
        raise MissingToolError(
            f"{name} is not installed: it makes the disk that AL2023's KVM image takes its key from",
            hint=f"sudo apt-get install {_PACKAGES[name]}",
        )
    result = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )
    if result.returncode != 0:
        words = (result.stderr or result.stdout).strip().splitlines()
        raise SeedError(f"{name}: {words[-1] if words else f'exit code {result.returncode}'}")
