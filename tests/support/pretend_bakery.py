"""A whole bake in a second: localec2's own API over HTTP, and a guest that says yes to everything.

The machines only pretend to run (localec2_served); they answer SSH by a real server on loopback, which keeps
what is uploaded and runs nothing. What the cloud is asked, in which order, and what is left of it afterwards
are real. What a guest would have done is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asyncssh
import boto3
import pytest
import yaml
from botocore.config import Config

from instant_env.arch import Arch
from instant_env.bake import artefacts
from instant_env.bake.bake import BakeResult, bake
from instant_env.bake.request import Options, Request
from instant_env.bake.seal import SEALED
from instant_env.cloud.images import BakedImage, list_baked
from instant_env.cloud.session import Cloud
from instant_env.settings import CloudName, Settings
from support import ssh_server
from support.localec2_served import Served

#: Whose stock images are.
OWNER = "136693071363"
BASE_PARAMETER = "/pretend/base"
#: Of all machines' sshd. Another process that imports this has another one, and gets this one's public half.
HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")

_RECIPE = {"recipe": "pretend", "description": "two steps", "families": ["apt"], "steps": [
    {"name": "first", "phase": "check", "script": "first.sh.j2"},
    {"name": "imagetool", "phase": "install", "upload": "imagetool", "to": "/usr/bin/imagetool"},
]}  # fmt: skip
_BASE = {
    "base": "pretend", "description": "an empty disk", "family": "apt", "vendor": "debian",
    "architectures": ["x86_64"], "ssm_parameter": BASE_PARAMETER, "owners": [OWNER],
    "login_user": "admin", "login_groups": ["adm"],
    "root_filesystem": "ext4", "esp": "/boot/efi", "ssh_service": "ssh",
}  # fmt: skip


@dataclass
class Guest:
    """All machines' sshd. ``answers`` are (regular expression of a command, what it prints, exit status)."""

    root: Path
    sealed: Callable[[], None]
    volumes: Callable[[], list[str]]
    port: int = 0
    listed: int = 0
    commands: list[str] = field(default_factory=list)
    answers: list[tuple[str, str, int]] = field(default_factory=list)

    def answer(self, command: str) -> tuple[str, int]:
        self.commands.append(command)
        for pattern, text, status in self.answers:
            if re.search(pattern, command):
                return text, status
        if "instant-bake-seal" in command:
            self.sealed()
        if "dpkg-query" in command:
            self.listed += 1
            # The first time what a bake removes is there. Of tzdata there is only a file in /etc left.
            lines = ["base-files\t12.4+deb12u11\tamd64\t341\t1024\tinstalled"]
            lines += ["tzdata\t2025b-0+deb12u2\tall\t\t1024\tconfig-files"]
            lines += ["cloud-init\t22.4.2-1+deb12u3\tall\t2600\t1024\tinstalled"] * (self.listed % 2)
            return "".join(f"{line}\n" for line in lines), 0
        if command.endswith("id -un"):
            return "root\n", 0
        if "timeline.json" in command:
            return json.dumps({"marks": [], "pid1": False}), 0
        if "device/serial" in command:
            return "".join(
                f"/sys/class/block/nvme{n}n1/device/serial:{volume.replace('-', '')}\n"
                for n, volume in enumerate(self.volumes())
            ), 0
        if command.endswith("audit.json"):
            return json.dumps({"findings": [], "bytes_scanned": 1 << 20}), 0
        return "", 0

    async def _serve(self, process: asyncssh.SSHServerProcess[str]) -> None:
        text, status = self.answer(process.command or "")
        process.stdout.write(text)
        process.exit(status)

    @contextmanager
    def serving(self) -> Iterator[Guest]:
        with ssh_server.listening(
            server_factory=ssh_server.TakesAnyKey, process_factory=self._serve,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=bytes(self.root)),
            host_keys=[HOST_KEY],
        ) as self.port:  # fmt: skip
            yield self


def _short_sleeps() -> None:
    """Polls and retries ask again at once."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.005))


def answer_here(cloud: Cloud, host_key: str = HOST_KEY.export_public_key().decode()) -> None:
    """Machines of this cloud answer on 127.0.0.1, where the guest listens, and print its host key."""

    def print_key(parsed: dict[str, Any], **_: Any) -> None:
        block = f"-----BEGIN SSH HOST KEY KEYS-----\n{host_key}-----END SSH HOST KEY KEYS-----\n"
        parsed["Output"] = block + parsed.get("Output", "")

    def change(parsed: dict[str, Any], **_: Any) -> None:
        for reservation in parsed.get("Reservations", []):
            for instance in reservation["Instances"]:
                if "PublicIpAddress" in instance:
                    instance["PublicIpAddress"] = "127.0.0.1"

    cloud.ec2.meta.events.register("after-call.ec2.DescribeInstances", change)
    cloud.ec2.meta.events.register("after-call.ec2.GetConsoleOutput", print_key)


@dataclass
class Bakery:
    """A cloud with one base, a recipe for it, and what a bake of them needs."""

    served: Served
    cloud: Cloud
    settings: Settings
    guest: Guest

    def request(self, **options: Any) -> Request:
        return Request("pretend", Arch.X86_64, Options(base="pretend", **options))

    def bake(self, progress: Callable[[str], None] = lambda _: None, **options: Any) -> BakeResult:
        return bake(self.cloud, self.settings, self.request(**options), progress=progress)

    def aws(self) -> Cloud:
        """The same cloud, when it says that it is AWS."""
        return dataclasses.replace(self.cloud, name=CloudName.AWS)

    def in_subnet(self, subnet: str) -> Cloud:
        settings = self.settings.model_copy(update={"subnet": subnet})
        return dataclasses.replace(self.cloud, settings=settings)

    def elsewhere(self) -> Elsewhere:
        state = self.served.state.server
        return Elsewhere(
            self.served.server.url, state.access_key_id, state.secret_access_key, self.guest.port,
            self.settings, self.settings.recipes_dir.parent / "imagetool",
        )  # fmt: skip

    def new_base(self, name: str) -> str:
        """Another AMI for the base's parameter to name."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        image_id = self.served.register(name, digest, f"/aws/service/{name}")
        self.served.ssm.put_parameter(Name=BASE_PARAMETER, Value=image_id, Type="String", Overwrite=True)
        return image_id

    def leftovers(self) -> dict[str, list[str]]:
        """What there is of ours that a bake should not leave."""
        ec2 = self.served.ec2
        machines = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
        groups = [g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"]]
        return {
            "instances": [i["InstanceId"] for i in machines if i["State"]["Name"] != "terminated"],
            "volumes": [volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]],
            "key pairs": [key["KeyName"] for key in ec2.describe_key_pairs()["KeyPairs"]],
            "groups": [name for name in groups if name != "default"],
        }

    def images(self) -> list[str]:
        """AMIs of ours."""
        filters: Any = [{"Name": "tag:Project", "Values": ["instant-env"]}]
        return [image["ImageId"] for image in self.served.ec2.describe_images(Filters=filters)["Images"]]

    def baked(self) -> list[BakedImage]:
        return list_baked(self.cloud)

    def snapshots(self) -> list[str]:
        filters: Any = [{"Name": "tag:Project", "Values": ["instant-env"]}]
        snapshots = self.served.ec2.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]
        return [snapshot["SnapshotId"] for snapshot in snapshots]


NOTHING: dict[str, list[str]] = {"instances": [], "volumes": [], "key pairs": [], "groups": []}


def make_cloud(served: Served, settings: Settings, port: int) -> Cloud:
    """A connection to the server as `connect` makes it, with a caller's address that needs no URL."""
    config = Config(retries={"mode": "standard", "max_attempts": 2})
    cloud = Cloud(
        name=CloudName.LOCAL,
        settings=settings,
        ec2=served.client("ec2", config=config),
        ssm=served.client("ssm", config=config),
        instance_connect=served.client("ec2-instance-connect", config=config),
        region="us-east-1",
        ssh_port=port,
        caller_ip_url=f"{served.server.url}/_localec2/caller-ip",
        accelerator="ec2",
        session=boto3.Session(
            served.state.server.access_key_id, served.state.server.secret_access_key, region_name="us-east-1"
        ),
        endpoint_url=served.server.url,
    )
    answer_here(cloud)
    return cloud


@dataclass(frozen=True)
class Elsewhere:
    """What another process needs to bake in the same cloud."""

    url: str
    access_key_id: str
    secret_access_key: str
    port: int
    settings: Settings
    binary: Path
    host_key: str = HOST_KEY.export_public_key().decode()

    def bake(self, stop_at: int, lines: Connection) -> None:
        """Bake; say each line, and with line ``stop_at`` (0: the first) wait to be killed."""
        count = itertools.count()

        def progress(text: str) -> None:
            lines.send(text)
            if next(count) == stop_at:
                signal.pause()

        _short_sleeps()
        artefacts.build = lambda names, *_: dict.fromkeys(names, self.binary)
        session = boto3.Session(self.access_key_id, self.secret_access_key, region_name="us-east-1")
        cloud = Cloud(
            name=CloudName.LOCAL,
            settings=self.settings,
            ec2=session.client("ec2", endpoint_url=self.url),
            ssm=session.client("ssm", endpoint_url=self.url),
            instance_connect=session.client("ec2-instance-connect", endpoint_url=self.url),
            region="us-east-1",
            ssh_port=self.port,
            caller_ip_url=f"{self.url}/_localec2/caller-ip",
            accelerator="ec2",
        )
        answer_here(cloud, self.host_key)
        request = Request("pretend", Arch.X86_64, Options(base="pretend", force=True))
        bake(cloud, self.settings, request, progress=progress)
        lines.send("done")


def write_recipes(directory: Path) -> Path:
    (directory / "bases").mkdir(parents=True)
    (directory / "pretend").mkdir()
    (directory / "bases" / "pretend.yml").write_text(yaml.safe_dump(_BASE))
    (directory / "pretend" / "recipe.yml").write_text(yaml.safe_dump(_RECIPE))
    (directory / "pretend" / "first.sh.j2").write_text("true\n")
    return directory


@pytest.fixture
def bakery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bakery]:
    """Polls are cut short, and what a recipe uploads is not compiled."""
    monkeypatch.setattr(time, "sleep", time.sleep)  # put back afterwards
    _short_sleeps()
    binary = tmp_path / "imagetool"
    binary.write_bytes(b"not really")
    monkeypatch.setattr(artefacts, "build", lambda names, *_: dict.fromkeys(names, binary))
    (tmp_path / "guest" / "run" / "instant-bake").mkdir(parents=True)
    served = Served(tmp_path / "server")
    settings = Settings(state_dir=tmp_path / "state", recipes_dir=write_recipes(tmp_path / "recipes"))

    def sealed() -> None:
        for instance_id, machine in list(served.services.lifecycle.machines.items()):
            directory = served.state.layout.instances / instance_id
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "console.log").write_text(f"{SEALED}\n")
            machine.press_power_button()

    def volumes() -> list[str]:
        return [volume["VolumeId"] for volume in served.ec2.describe_volumes()["Volumes"]]

    with Guest(tmp_path / "guest", sealed, volumes).serving() as guest:
        bakery = Bakery(served, make_cloud(served, settings, guest.port), settings, guest)
        bakery.new_base("first-base")
        try:
            yield bakery
        finally:
            served.stop()


class Calls:
    """What a cloud is asked, in order: ``(RunInstances, its parameters)``."""

    def __init__(self, cloud: Cloud) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        for client in (cloud.ec2, cloud.ssm):
            client.meta.events.register("before-parameter-build", self._note)

    def _note(self, params: dict[str, Any], event_name: str, **_: Any) -> None:
        self.requests.append((event_name.rpartition(".")[2], dict(params)))

    @property
    def changing(self) -> list[str]:
        """Actions that change something."""
        return [action for action, _ in self.requests if not action.startswith(("Describe", "Get", "List"))]
