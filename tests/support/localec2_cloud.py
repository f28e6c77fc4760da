"""A localec2 of its own for a test: private state directory, real server process, real QEMU."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from instant_env.localec2 import starter
from instant_env.localec2.qemu import disks
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.settings import AcceleratorChoice, Settings
from support.patience import Patience, until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

#: What EC2 may do to a client is done to these tests, in small: localec2's README explains the switches.
STRICT = LocalEc2Settings(
    late_ms=300, late_tags_ms=500, late_address_ms=300, hibernation_ready_ms=2000, snapshot_in_use_ms=700,
    posted_console=True,
)  # fmt: skip
#: Files whose tests nobody has run under STRICT so far: theirs are as for a user. Run one, and take it off.
NOT_RUN_YET = frozenset({
    "test_arm64_machine.py", "test_bench_killed.py", "test_boot_records.py", "test_hand_over_machine.py",
    "test_init_disks.py", "test_init_failures.py", "test_init_keys.py", "test_init_machine.py",
    "test_init_network.py", "test_init_power.py", "test_init_ttl.py", "test_localec2_disk_pressure.py",
    "test_localec2_guest.py", "test_localec2_guest_faults.py", "test_localec2_hibernation.py",
    "test_localec2_storage_guest.py", "test_seal_disks.py", "test_stock.py",
})  # fmt: skip
#: Of a test that may have to make stock Debian before it boots it: arm64's takes some 15 minutes on x86_64.
STOCK_TIMEOUT_S = 2400


def switches_of(request: pytest.FixtureRequest) -> LocalEc2Settings:
    """How strict the servers of a file's tests are."""
    return LocalEc2Settings() if request.path.name in NOT_RUN_YET else STRICT


def machines(word: str) -> list[int]:
    """Pids of QEMU processes with this word in their command line."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if b"qemu-system" in arguments[0] and any(word.encode() in part for part in arguments):
            pids.append(int(path.parent.name))
    return pids


class LocalCloud:
    """What the tests do with a server. It is as strict as EC2, unless it is told otherwise.

    ``ec2`` finds what it has made, as late as that is; clients that are made of ``settings`` have to do so
    themselves.
    """

    def __init__(self, state_dir: Path, switches: LocalEc2Settings = STRICT) -> None:
        self.settings = Settings(state_dir=state_dir, accelerator=AcceleratorChoice.TCG, localec2=switches)
        self.up()

    def up(self) -> None:
        self.endpoint = starter.up(self.settings)
        self.ec2: EC2Client = starter.client(self.endpoint, "ec2")
        Patience(self.ec2, pause_s=0.1)

    def strict(self, **switches: Any) -> None:
        """Set switches of the running server; without any, those that clients have to cope with."""
        starter.strictness(self.endpoint, **switches or STRICT.model_dump())

    def own_route(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.endpoint.url}/_localec2/{route}",
            data=json.dumps(body).encode() if body else None,
            headers={"X-Localec2-Token": self.endpoint.admin_token},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            result: dict[str, Any] = json.load(answer)
            return result

    def register_blank(self, fill_mib: int = 0) -> str:
        """An AMI whose disk holds nothing to boot: its machine runs, and its firmware waits for ever."""
        disk = self.settings.state_dir / "blank.qcow2"
        disks.create(disk, 1)
        if fill_mib:
            fill = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 16M {fill_mib}M", str(disk)]
            subprocess.run(fill, check=True, capture_output=True)
        body = {
            "base": "debian-12", "arch": "x86_64", "name": "blank", "owner_id": "136693071363",
            "ssm_parameter": "/aws/service/debian/release/12/latest/amd64", "root_device_name": "/dev/xvda",
            "disk": str(disk), "size_gib": 1, "boot_mode": "uefi", "digest": "blank-disk-1",
            "created": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        return str(self.own_route("stock-images", body)["image_id"])

    @staticmethod
    def machines(word: str) -> list[int]:
        """Pids of QEMU processes with this word in their command line."""
        return machines(word)

    def launch(self, image_id: str, **more: Any) -> str:
        arguments: dict[str, Any] = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
        return str(self.ec2.run_instances(ImageId=image_id, **arguments)["Instances"][0]["InstanceId"])

    def describe(self, instance_id: str) -> InstanceTypeDef:
        return self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]

    def wait(self, instance_id: str, state: str, timeout_s: float = 60) -> InstanceTypeDef:
        """Its description in this state; of one that runs, with the public address, if it has one."""
        deadline = time.monotonic() + timeout_s
        while (instance := self.describe(instance_id))["State"]["Name"] != state:
            assert time.monotonic() < deadline, f"{instance['State']} instead of {state}"
            time.sleep(0.05)
        if state == "running" and "PublicIpAddress" not in instance:
            time.sleep(self.settings.localec2.late_address_ms / 1000)  # from here on it would be there
            instance = self.describe(instance_id)
        return instance

    def hibernate(self, instance_id: str) -> None:
        """Put it to sleep, as soon as it is ready for that."""
        until(lambda: self._begins_to_hibernate(instance_id), pause_s=0.2)

    def _begins_to_hibernate(self, instance_id: str) -> bool:
        try:
            self.ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
        except ClientError as error:
            if "not ready to hibernate yet" not in error.response["Error"]["Message"]:
                raise
            return False
        return True


@pytest.fixture
def local_cloud(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path / "state", switches_of(request))
    yield cloud
    if (status := starter.status(cloud.settings)).endpoint is not None:
        alive = [item.id for item in status.instances if item.state != "terminated"]
        if alive:  # else `down` would wait for guests that have no system to power off
            cloud.ec2.terminate_instances(InstanceIds=alive)
    starter.down(cloud.settings)
    assert machines(str(tmp_path)) == [], "no machine is left"
