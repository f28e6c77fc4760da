"""A cloud in this process: moto for the API, real SSH servers on loopback for the machines.

What moto cannot know (that its machines answer on loopback, and when they turn `running`) is put into its
answers by botocore's own event hooks, so everything from boto3 upwards is the code under test.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import asyncssh
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.ec2.models import ec2_backends

from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud
from instant_env.launch.guest import TIMELINE_PATH
from instant_env.settings import CloudName, Settings
from support import ssh_server


class Machine(asyncssh.SSHServer):
    """sshd of a machine: knows a key, perhaps not at once, and runs commands with this host's own shell."""

    def __init__(self, host: SshHost) -> None:
        self._host = host

    def begin_auth(self, username: str) -> bool:
        self._host.usernames.append(username)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username in self._host.usernames and self._host.knows(key)


@dataclass
class SshHost:
    """A real SSH server in a thread of its own. Port 0 until started."""

    refusals: int = 0
    """How often it is yet to refuse a key that it takes afterwards."""
    public_key: str | None = None
    """The only key it takes, None for any."""
    timeline: Path = Path("/nonexistent")
    port: int = 0
    host_key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    usernames: list[str] = field(default_factory=list)

    refused_last_ns: int = 0

    def knows(self, key: asyncssh.SSHKey) -> bool:
        if self.refusals:
            self.refusals -= 1
            self.refused_last_ns = time.monotonic_ns()
            return False
        offered = key.export_public_key().decode().split()[1]
        return self.public_key is None or self.public_key.split()[1] == offered

    async def _command(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = (process.command or "").replace(TIMELINE_PATH, str(self.timeline))
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert shell.stdin is not None
        assert shell.stdout is not None
        answers = asyncio.create_task(self._copy_out(shell.stdout, process))
        while question := await process.stdin.readline():
            shell.stdin.write(question)
            await shell.stdin.drain()
        shell.stdin.close()
        await answers
        process.exit(await shell.wait())

    @staticmethod
    async def _copy_out(answers: asyncio.StreamReader, process: asyncssh.SSHServerProcess[bytes]) -> None:
        while answer := await answers.readline():
            process.stdout.write(answer)

    @property
    def console(self) -> str:
        """What the machine prints on its console: its public host key, among other words."""
        key = self.host_key.export_public_key().decode()
        return (
            "[  1.0] boot\r\n-----BEGIN SSH HOST KEY KEYS-----\r\n"
            f"{key}-----END SSH HOST KEY KEYS-----\r\nlogin: "
        )

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[SshHost]:
        machine = {"server_factory": lambda: Machine(self), "process_factory": self._command}
        keys = [self.host_key]
        with ssh_server.listening(port, host_keys=keys, **machine, encoding=None) as self.port:
            yield self


@dataclass
class Ec2Faults:
    """What EC2 is to do to us. Times are from the instance's launch as seen by the first description."""

    pending_s: float = 0.0
    address: str = "127.0.0.1"
    address_late_s: float = 0.0
    """How long after the end of ``pending_s`` the public address comes; until then there is a private one."""
    launch_errors: list[str] = field(default_factory=list)
    """Codes that the next RunInstances calls fail with, one each."""
    describe_errors: list[str] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    """StateReason of machines that ended by themselves; the id `*` stands for all."""
    launched_ns: dict[str, int] = field(default_factory=dict)
    console: str = ""
    """The output of every machine's console."""
    describes: int = 0
    run_bodies: list[dict[str, Any]] = field(default_factory=list)

    def register(self, cloud: Cloud) -> None:
        events = cloud.ec2.meta.events
        events.register("before-parameter-build.ec2.RunInstances", self._before_run)
        events.register("after-call.ec2.RunInstances", self._after_run)
        events.register("before-parameter-build.ec2.DescribeInstances", self._before_describe)
        events.register("after-call.ec2.DescribeInstances", self._after_describe)
        events.register("after-call.ec2.GetConsoleOutput", self._after_console)

    def _after_console(self, parsed: dict[str, Any], **_: Any) -> None:
        parsed["Output"] = self.console

    @staticmethod
    def _raise_next(codes: list[str], operation: str) -> None:
        if codes:
            raise ClientError({"Error": {"Code": codes.pop(0), "Message": "as the test wants it"}}, operation)

    def _before_run(self, params: dict[str, Any], **_: Any) -> None:
        self.run_bodies.append(dict(params))
        self._raise_next(self.launch_errors, "RunInstances")

    def _after_run(self, parsed: dict[str, Any], **_: Any) -> None:
        for instance in parsed.get("Instances", []):
            self.launched_ns[instance["InstanceId"]] = time.monotonic_ns()

    def _before_describe(self, **_: Any) -> None:
        self.describes += 1
        self._raise_next(self.describe_errors, "DescribeInstances")

    def _after_describe(self, parsed: dict[str, Any], **_: Any) -> None:
        for reservation in parsed.get("Reservations", []):
            for instance in reservation["Instances"]:
                self._change(instance)

    def _change(self, instance: dict[str, Any]) -> None:
        if instance["State"]["Name"] != "running":
            return
        since_s = (time.monotonic_ns() - self.launched_ns.get(instance["InstanceId"], 0)) / 1e9
        if since_s < self.pending_s + self.address_late_s:
            instance.pop("PublicIpAddress", None)
        else:
            instance["PublicIpAddress"] = self.address
        if since_s < self.pending_s:
            instance["State"] = {"Code": 0, "Name": "pending"}
        elif reason := self.ended.get(instance["InstanceId"], self.ended.get("*")):
            instance["State"] = {"Code": 32, "Name": "shutting-down"}
            instance["StateReason"] = {"Code": reason, "Message": "ended"}


class _CallerIp(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"127.0.0.1\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@functools.cache
def mock_session() -> boto3.Session:
    """One for all tests: it caches the service models, which take a second to load."""
    return boto3.Session("AKIATEST", "secret", region_name="us-east-1")


@contextmanager
def cloud_in_process(
    tmp_path: Path,
    ssh_port: int,
    faults: Ec2Faults,
    *,
    name: CloudName = CloudName.LOCAL,
) -> Iterator[Cloud]:
    """A Cloud whose machines are on loopback."""
    server = HTTPServer(("127.0.0.1", 0), _CallerIp)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with mock_aws(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # thousands, which nobody asks for here
        session = mock_session()
        config = Config(retries={"mode": "standard", "max_attempts": 1})
        cloud = Cloud(
            name=name,
            settings=Settings(
                state_dir=tmp_path / "state", cache_dir=tmp_path / "cache", results_dir=tmp_path / "results"
            ),
            ec2=session.client("ec2", config=config),
            ssm=session.client("ssm", config=config),
            instance_connect=session.client("ec2-instance-connect", config=config),
            region="us-east-1",
            ssh_port=ssh_port,
            caller_ip_url=f"http://127.0.0.1:{server.server_port}/",
            accelerator="tcg",
        )
        faults.register(cloud)
        try:
            yield cloud
        finally:
            server.shutdown()
            server.server_close()


def register_image(cloud: Cloud, name: str = "stock") -> str:
    """Register an AMI for x86_64."""
    image_id = cloud.ec2.register_image(Name=name, RootDeviceName="/dev/xvda")["ImageId"]
    # moto 5.2 drops RegisterImage's Architecture.
    ec2_backends[ACCOUNT][cloud.region].amis[image_id].architecture = "x86_64"
    return image_id


def free_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def states(cloud: Cloud) -> list[str]:
    """The states of all machines."""
    answer = cloud.ec2.describe_instances()
    return [i["State"]["Name"] for r in answer["Reservations"] for i in r["Instances"]]


def fresh_key() -> KeyPair:
    return KeyPair.generate()
