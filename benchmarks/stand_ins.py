"""Machines that boot nothing: SSH servers on loopback that open at instants we choose, and moto for the API.

Both run in processes of their own, so that the harness alone is in the process that is measured. Every
machine has an address of its own, 127.77.0.N, and all have one port. ``time.monotonic_ns()`` is one clock for
all processes of a host.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import boto3
from botocore.config import Config

from instant_env.cloud.session import Cloud
from instant_env.launch import guest
from instant_env.settings import CloudName, Settings

NETWORK = "127.77.0"
MOST = 250


@dataclass
class Truth:
    """What a stand-in knows of itself, ``time.monotonic_ns()``."""

    listening_ns: int = 0
    answered_ns: int = 0
    authenticated_ns: int = 0


@dataclass
class Machines:
    """The stand-ins' process. ``open_at`` lets one listen from an instant on."""

    process: subprocess.Popen[str]
    port: int
    truths: dict[str, Truth] = field(default_factory=dict)

    def open_at(self, address: str, at_ns: int) -> None:
        assert self.process.stdin is not None  # noqa: S101 - a pipe was asked for
        self.truths[address] = Truth()
        self.process.stdin.write(json.dumps([address, at_ns]) + "\n")
        self.process.stdin.flush()

    def read_on(self) -> None:
        """Take in what the stand-ins report, until they end; in a thread of its own."""
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in self.process.stdout:
            address, what, at_ns = json.loads(line)
            setattr(self.truths[address], what, at_ns)


@contextmanager
def machines() -> Iterator[Machines]:
    """Start the process; end it on the way out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, __file__, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    machines = Machines(process, port)
    reader = threading.Thread(target=machines.read_on, daemon=True)
    reader.start()
    try:
        yield machines
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class Placement:
    """Gives launched machines the addresses of stand-ins, in botocore's answers: moto's are of nobody."""

    stand_ins: Machines
    pending_s: float
    boot_s: list[float]
    """How long after its launch each machine listens; taken in turn."""
    addresses: dict[str, str] = field(default_factory=dict)
    launched_ns: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def register(self, client: Any) -> None:
        client.meta.events.register("after-call.ec2.RunInstances", self._launched)
        client.meta.events.register("after-call.ec2.DescribeInstances", self._described)
        client.meta.events.register("before-send.ec2", self._on_sent)

    def _on_sent(self, event_name: str, **_: Any) -> None:
        action = event_name.rpartition(".")[2]
        with self._lock:
            self.calls[action] = self.calls.get(action, 0) + 1

    def _launched(self, parsed: dict[str, Any], **_: Any) -> None:
        for instance in parsed.get("Instances", []):
            with self._lock:
                number = len(self.addresses)
                address = f"{NETWORK}.{number + 1}"
                self.addresses[instance["InstanceId"]] = address
                now = self.launched_ns[instance["InstanceId"]] = time.monotonic_ns()
            self.stand_ins.open_at(address, now + int(self.boot_s[number % len(self.boot_s)] * 1e9))

    def _described(self, parsed: dict[str, Any], **_: Any) -> None:
        for reservation in parsed.get("Reservations", []):
            for instance in reservation["Instances"]:
                if (address := self.addresses.get(instance["InstanceId"])) is None:
                    continue
                if instance["State"]["Name"] == "running":
                    instance["PublicIpAddress"] = address
                    since_s = (time.monotonic_ns() - self.launched_ns[instance["InstanceId"]]) / 1e9
                    if since_s < self.pending_s:
                        instance["State"] = {"Code": 0, "Name": "pending"}


_MOTO = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def cloud(directory: Path, port: int) -> Iterator[Cloud]:
    """A Cloud by moto, in a process of its own."""
    environ = {"MOTO_EC2_LOAD_DEFAULT_AMIS": "false", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environ,
    )  # fmt: skip
    try:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        session = boto3.Session("AKIATEST", "secret", region_name="us-east-1")
        config = Config(retries={"mode": "standard", "max_attempts": 1}, max_pool_connections=100)
        connect: Any = session.client("ec2-instance-connect", endpoint_url=endpoint, config=config)
        yield Cloud(
            name=CloudName.LOCAL,
            settings=Settings(state_dir=directory / "state", results_dir=directory / "results"),
            ec2=session.client("ec2", endpoint_url=endpoint, config=config),
            ssm=session.client("ssm", endpoint_url=endpoint, config=config),
            instance_connect=connect,
            region="us-east-1",
            ssh_port=port,
            caller_ip_url="http://127.0.0.1:9/",
            accelerator="stand-in",
        )
    finally:
        process.terminate()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# What follows runs in the stand-ins' own process.


def _report_soon(address: str, what: str, at_ns: int) -> None:
    """Tell an instant once what it belongs to is done: writing to the pipe may take a processor's turn."""
    line = json.dumps([address, what, at_ns])
    asyncio.get_running_loop().call_soon(lambda: print(line, flush=True))


class _Server(asyncssh.SSHServer):
    """Lets any key in, and tells when it knew that it would.

    That is before the client can know: ``auth_completed`` comes after the answer is out.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        del conn
        # The version line leaves right after this; what we tell must not hold it up.
        _report_soon(self._address, "answered_ns", time.monotonic_ns())

    def begin_auth(self, username: str) -> bool:
        return bool(username)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        # asked for the offer and again for the signature; the last one stays
        _report_soon(self._address, "authenticated_ns", time.monotonic_ns())
        return bool(username and key)


async def _answer(process: asyncssh.SSHServerProcess[str]) -> None:
    """What launch/guest.py asks: no root disk, a boot id, a kernel, the clock at each line; no timeline."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    process.stdout.write(f"\n{boot_id}stand-in\n")
    for _ in range(guest.CLOCK_READINGS):
        await process.stdin.readline()
        process.stdout.write(Path("/proc/uptime").read_text().split()[0] + "\n")
    process.stdout.write(f"{guest.END}\n")
    process.exit(0)


async def _open(address: str, port: int, at_ns: int, key: asyncssh.SSHKey) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    await asyncio.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))
    at_ns = time.monotonic_ns()
    sock.listen(128)  # from here on a connect succeeds
    _report_soon(address, "listening_ns", at_ns)
    await asyncssh.listen(
        sock=sock, server_host_keys=[key], server_factory=lambda: _Server(address), process_factory=_answer
    )


async def _serve(port: int) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    opening = set()
    while line := await reader.readline():
        address, at_ns = json.loads(line)
        opening.add(asyncio.create_task(_open(address, port, at_ns, key)))
    await asyncio.gather(*opening)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
