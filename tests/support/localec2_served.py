"""localec2's control plane without QEMU: a real server and boto3, machines that only pretend to run."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core.base_backend import BackendDict
from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends
from moto.ssm.models import ssm_backends

from instant_env.arch import Arch
from instant_env.cloud.session import Cloud, connect
from instant_env.localec2 import restore
from instant_env.localec2.api.server import LocalServer
from instant_env.localec2.api.services import Services
from instant_env.localec2.instances.lifecycle import Lifecycle
from instant_env.localec2.instances.machine_builder import MachineBuilder
from instant_env.localec2.network.addresses import AddressBlock
from instant_env.localec2.network.network import Interface, Network
from instant_env.localec2.qemu import disks
from instant_env.localec2.qemu.backup import Copy
from instant_env.localec2.qemu.command_line import Disk, MachineSpec, Nic, Platform
from instant_env.localec2.qemu.machine import Machine, MachineError
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.records import InstanceRecord, Record, VolumeRecord
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state.state import State
from instant_env.localec2.volumes.images import StockRegistration
from instant_env.settings import CloudName, Settings
from support.patience import until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ssm import SSMClient

REGION = "us-east-1"
ZONE = "us-east-1a"


class PretendMachine(Machine):
    """Runs from `start` until somebody ends it; a t3.nano never starts."""

    copying: threading.Event
    sleeps = True

    def start(self) -> None:
        self.copying = threading.Event()  # clear it to keep copies under way
        self.copying.set()
        if self.spec.instance_type == "t3.nano":
            raise MachineError("QEMU did not start: no such luck")

    def press_power_button(self) -> None:
        self.power_off(guest=True)

    def power_off(self, *, guest: bool) -> None:
        """What a guest's shutdown (or QEMU's crash) looks like."""
        if not self.ended.is_set():
            self.guest_shutdown = guest
            self.ended.set()
            threading.Thread(target=self._on_exit, args=(self,)).start()

    def hibernate(self, timeout_s: float) -> bool:  # noqa: ARG002 - nobody waits that long here
        """The guest obeys, unless it has been told not to."""
        if self.sleeps:
            self.power_off(guest=True)
        return self.ended.wait(0.2)

    def quit(self, copies_timeout_s: float = 0) -> None:  # noqa: ARG002 - nothing of its copies can end
        self.power_off(guest=False)

    started = True
    plugged: tuple[Nic, ...] = ()
    frozen = False
    limits = (0, 0)

    def kill(self) -> None:
        self.power_off(guest=False)

    def freeze(self, reason: str = "fault") -> None:
        self._frozen.add(reason)
        self.frozen = self.standing_still = True

    def thaw(self, reason: str = "fault") -> None:
        self._frozen.discard(reason)
        self.frozen = self.standing_still = bool(self._frozen)

    def throttle(self, bytes_per_second: int, operations_per_second: int) -> None:
        self.limits = (bytes_per_second, operations_per_second)

    def attach_nic(self, nic: Nic, index: int) -> None:  # noqa: ARG002 - there are no slots
        self.plugged = (*self.plugged, nic)

    def detach_nic(self, interface_id: str, timeout_s: float) -> None:
        pass

    def attach(self, disk: Disk) -> None:
        pass

    def grow(self, disk: Disk, size_gib: int) -> None:
        disks.grow(disk.path, size_gib)

    def detach(self, disk: Disk, timeout_s: float) -> None:
        pass

    def copy_disks(self, copies: Sequence[Copy], begun: threading.Event) -> None:
        """The disks are real files that nobody writes to: QEMU is not needed to copy them."""
        begun.set()
        self.copying.wait()
        for copy in copies:
            volume = next(disk.path for disk in self.spec.disks if disk.node == copy.node)
            backing = backing_of(copy.target)
            unfinished = copy.target.with_name("made")
            disks.copy_layer(volume, unfinished, backing) if backing else disks.flatten(volume, unfinished)
            unfinished.replace(copy.target)


class PretendNetwork(Network):
    """Has addresses, and keeps what it was told."""

    def __init__(self, addresses: AddressBlock) -> None:
        self.addresses = addresses
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.interfaces: dict[str, Interface] = {}
        self.faults: dict[str, dict[str, float]] = {}

    def fault(
        self, interface_id: str, *, drop_dhcp: int = 0, drop_probability: float = 0.0, delay_ms: int = 0,
        silent_dns: bool = False,
    ) -> None:  # fmt: skip
        self.faults[interface_id] = {
            "dhcp": drop_dhcp, "loss": drop_probability, "delay": delay_ms, "silent_dns": silent_dns
        }  # fmt: skip

    def set_groups(self, groups: dict[str, list[dict[str, Any]]]) -> None:
        self.groups = groups

    def plug(self, interface: Interface) -> Future[dict[str, Any]]:
        self.interfaces[interface.id] = interface
        done: Future[dict[str, Any]] = Future()
        done.set_result({})
        return done

    def unplug(self, interface_id: str) -> None:
        self.interfaces.pop(interface_id, None)

    def close(self) -> None:
        self.addresses.close()


class PretendAssembly(MachineBuilder):
    """Machines that pretend, with real disks; no ports are opened."""

    def machine(
        self, instance: InstanceRecord, volumes: list[VolumeRecord], on_exit: Callable[[Machine], None]
    ) -> Machine:
        nics = self.connect(instance)
        layout = self.state.layout
        spec = MachineSpec(
            instance.id, instance.instance_type, Platform(Arch.X86_64, "", Path(), Path()), "tcg", 2,
            self.memory_mib(instance), tuple(Disk(volume.id, layout.volume(volume.id)) for volume in volumes),
            nics, Path(), Path(), Path(),
        )  # fmt: skip
        return PretendMachine(spec, Path(), on_exit)


def _killed(record: Record) -> None:
    """What a killed server writes and shows."""


class Served:
    """One server in this process; `restart` makes a new one of the same state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.start()

    def start(self, lost: set[str] | None = None) -> None:
        layout = Layout.create(self.directory)
        store = RecordStore(layout.records)
        record = restore.identity(store, REGION)
        # moto's backends are global to the process; a server must not find there what another one made, or a
        # test of something else: ids that are drawn from a seed would be others after a restart.
        # moto's list of those in use lacks some after a reset in which one service made another's anew.
        for backends in (*BackendDict._instances, ec2_backends, iam_backends, ssm_backends):
            backends.clear()
        self.network = PretendNetwork(AddressBlock(record.address_block))
        self.state = State(layout, store, record, REGION)
        assembly = PretendAssembly(self.state, self.network, lambda _: "tcg")
        self.services = Services(self.state, Lifecycle(self.state, assembly, stop_timeout_s=5.0))
        with self.state.lock:
            self.state.load()
            restore.settle(self.state, self.services.lifecycle, self.services.images, lost or set())
            self.services.interfaces.settle()
            self.services.uploads.resume()
            self.services.modifications.resume()
        self.server = LocalServer(self.services, 0)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.ec2: EC2Client = self.client("ec2")
        self.ssm: SSMClient = self.client("ssm")

    def client(self, service: str, **overrides: Any) -> Any:
        arguments = {
            "endpoint_url": self.server.url, "region_name": REGION,
            "aws_access_key_id": self.state.server.access_key_id,
            "aws_secret_access_key": self.state.server.secret_access_key,
            "config": Config(retries={"max_attempts": 0}),
        }  # fmt: skip
        return boto3.client(service, **(arguments | overrides))  # type: ignore[call-overload]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.network.close()
        with self.state.lock:  # a thread of a killed server, such as one that copies, has no effect any more
            self.state.save = self.state.forget = _killed  # type: ignore[method-assign]

    def restart(self) -> None:
        """As after a kill: nothing was said to the machines."""
        self.stop()
        self.start()

    def register(
        self, name: str = "debian-12-test", digest: str = "0123456789abcdef",
        parameter: str = "/aws/service/debian/release/12/latest/amd64",
    ) -> str:  # fmt: skip
        """A stock image with an empty disk; returns its AMI id. It replaces the one of its parameter."""
        stock = StockRegistration(
            base="debian-12", arch=Arch.X86_64, name=name, description="a test", owner_id="136693071363",
            ssm_parameter=parameter, root_device_name="/dev/xvda",
            disk=self.disk(name),
            size_gib=2, boot_mode="uefi", digest=digest, created=datetime.now(UTC),
        )  # fmt: skip
        return self.services.images.register_stock(stock).id

    def disk(self, name: str) -> Path:
        """The empty disk of a stock image."""
        path = self.directory / f"{name}.qcow2"
        if not path.exists():
            disks.create(path, 2)
        return path

    def machine(self, instance_id: str) -> PretendMachine:
        machine = self.services.lifecycle.machines[instance_id]
        assert isinstance(machine, PretendMachine)
        return machine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path / "state")
    yield server
    server.stop()


def aws_settings(served: Served, directory: Path, **more: Any) -> Settings:
    """Settings of a client for which this server is AWS."""
    values: dict[str, Any] = {"cloud": CloudName.AWS, "region": REGION, "endpoint_url": served.server.url}
    return Settings(**values | {"state_dir": directory} | more)


@pytest.fixture
def as_aws(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    """A connection with the clients, and the repeats, that AWS gets."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", served.state.server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", served.state.server.secret_access_key)
    return connect(aws_settings(served, tmp_path / "client"))


def inject_fault(served: Served, **body: Any) -> None:
    """Ask for a fault, see instant_env/localec2/state/faults.py."""
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{served.server.url}/_localec2/faults", method="POST", data=json.dumps(body).encode(),
        headers={"X-Localec2-Token": served.state.server.admin_token},
    )  # fmt: skip
    urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 - loopback


def backing_of(path: Path) -> Path | None:
    """The file that this disk is an overlay of. Raises DiskError."""
    command = ["qemu-img", "info", "--output=json", "-U", str(path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise disks.DiskError(result.stderr)
    name = json.loads(result.stdout).get("full-backing-filename")
    return Path(name) if name else None


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


def launch(served: Served, **more: Any) -> str:
    arguments: dict[str, Any] = {"InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1} | more
    instance_id = served.ec2.run_instances(ImageId=served.register(), **arguments)["Instances"][0][
        "InstanceId"
    ]
    until(lambda: state_of(served, instance_id) == "running")
    return str(instance_id)


def state_of(served: Served, instance_id: str) -> str:
    answer = served.ec2.describe_instances(InstanceIds=[instance_id])
    return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])


def image(served: Served, image_id: str) -> Any:
    return served.ec2.describe_images(ImageIds=[image_id])["Images"][0]


def write(path: Path, letter: str, offset: str = "0") -> None:
    """64 KiB of one letter, as a guest would write them."""
    subprocess.run(["qemu-io", "-c", f"write -P {ord(letter)} {offset} 64k", str(path)], check=True)


def holds(path: Path, letter: str, offset: str = "0") -> bool:
    """Whether these 64 KiB are there. (qemu-io always ends with 0.)"""
    command = ["qemu-io", "-r", "-U", "-c", f"read -P {ord(letter)} {offset} 64k", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "read 65536/65536" in output
    return "failed" not in output


def completed(served: Served, snapshot_id: str) -> Any:
    def done() -> Any:
        (snapshot,) = served.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        assert snapshot["State"] != "error", snapshot["StateMessage"]
        return snapshot if snapshot["State"] == "completed" else None

    return until(done)


def volume_of(served: Served, instance_id: str, device: str = "/dev/xvda") -> str:
    filters: Any = [
        {"Name": "attachment.instance-id", "Values": [instance_id]},
        {"Name": "attachment.device", "Values": [device]},
    ]
    (volume,) = served.ec2.describe_volumes(Filters=filters)["Volumes"]
    return volume["VolumeId"]
