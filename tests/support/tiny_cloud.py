"""A localec2 of its own with the tiny image, and logins to its machines: see tests/contract/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fabric
import pytest

from instant_env.arch import Arch
from instant_env.cloud.keys import KeyPair
from instant_env.localec2 import starter
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.ssh.connection import LoginError, wait_for_login
from support.localec2_cloud import STRICT, LocalCloud, machines, switches_of

KEY_NAME = "tests"
#: From launch to login: ten seconds under emulation on a quiet machine; other guests may keep this one busy.
LOGIN_TIMEOUT_S = 120.0
INSTANCE_TYPES = {Arch.X86_64: "t3.micro", Arch.ARM64: "t4g.micro"}


@dataclass
class Guest:
    """A login to one machine, as root."""

    instance_id: str
    connection: fabric.Connection

    def run(self, command: str, timeout_s: float = 60) -> str:
        """What the command prints on stdout, without the last newline. Fails when it exits with an error."""
        result = self.connection.run(command, hide=True, timeout=timeout_s)
        return str(result.stdout).rstrip("\n")

    def status(self, command: str, timeout_s: float = 60) -> int:
        """The command's exit status."""
        return int(self.connection.run(command, hide=True, warn=True, timeout=timeout_s).return_code)

    def device(self, volume_id: str, timeout_s: int = 20) -> str:
        """Path of the block device of an attached volume; waits until it is there."""
        serial = volume_id.replace("-", "")
        return self.run(
            f"for n in $(seq {timeout_s * 5}); do "
            f"for d in $(grep -l {serial} /sys/block/nvme*/device/serial); do "
            "d=${d#/sys/block/}; echo /dev/${d%%/*}; exit; "
            "done; usleep 200000; done; exit 1"
        )


class TinyCloud(LocalCloud):
    """A server with the tiny image, a key pair, and a security group that lets this host in."""

    def __init__(self, state_dir: Path, arch: Arch, switches: LocalEc2Settings = STRICT) -> None:
        super().__init__(state_dir, switches)
        self.arch = arch
        self.key = KeyPair.generate()
        self.ec2.import_key_pair(KeyName=KEY_NAME, PublicKeyMaterial=self.key.public_openssh.encode())

    @cached_property
    def image_id(self) -> str:
        return starter.ensure_stock(self.settings, "tiny", self.arch)

    @cached_property
    def group_id(self) -> str:
        group = self.ec2.create_security_group(GroupName="tests", Description="SSH from this host")
        group_id = group["GroupId"]
        self.ec2.authorize_security_group_ingress(
            GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="127.0.0.1/32"
        )
        return group_id

    def launch_tiny(self, **more: Any) -> str:
        """RunInstances of the tiny image; ``more`` overrides its arguments. Returns the instance's id."""
        arguments: dict[str, Any] = {"KeyName": KEY_NAME, "SecurityGroupIds": [self.group_id]}
        return self.launch(self.image_id, **arguments | more)

    def launch(self, image_id: str, **more: Any) -> str:
        """RunInstances, of a type that has our architecture unless ``more`` names one."""
        return super().launch(image_id, **{"InstanceType": INSTANCE_TYPES[self.arch]} | more)

    def login(self, instance_id: str, timeout_s: float = LOGIN_TIMEOUT_S) -> Guest:
        """Waits until the machine runs and lets us in. A failure shows the machine's console."""
        address = self.wait(instance_id, "running")["PublicIpAddress"]
        try:
            connection = wait_for_login(
                address, self.endpoint.ssh_port, "root", self.key, timeout_s=timeout_s
            )
        except LoginError as error:
            output = self.ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
            error.add_note(f"console of {instance_id}:\n{output}")
            raise
        return Guest(instance_id, connection)


@pytest.fixture
def tiny_cloud(tmp_path: Path, guest_arch: Arch, request: pytest.FixtureRequest) -> Iterator[TinyCloud]:
    """A fresh server, ended with all its machines after the test."""
    yield from served(tmp_path, guest_arch, switches_of(request))


@pytest.fixture(scope="module")
def shared_tiny_cloud(
    tmp_path_factory: pytest.TempPathFactory, guest_arch: Arch, request: pytest.FixtureRequest
) -> Iterator[TinyCloud]:
    """One server for all tests of a module."""
    yield from served(tmp_path_factory.mktemp("shared"), guest_arch, switches_of(request))


def served(directory: Path, arch: Arch, switches: LocalEc2Settings = STRICT) -> Iterator[TinyCloud]:
    """What these fixtures yield, with its state somewhere below ``directory``."""
    cloud = TinyCloud(directory / "state", arch, switches)
    yield cloud
    end(cloud)
    assert machines(str(directory)) == [], "no machine is left"


def end(cloud: LocalCloud) -> None:
    """End all machines, without the patience that `down` has with them, and the server."""
    if (status := starter.status(cloud.settings)).endpoint is not None:
        alive = [item.id for item in status.instances if item.state != "terminated"]
        if alive:
            cloud.ec2.terminate_instances(InstanceIds=alive)
    starter.down(cloud.settings)
