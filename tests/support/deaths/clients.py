"""Processes that run a verb and are killed by SIGKILL after the n-th call that changes something.

The cloud has done the call; the client has its answer, and has done nothing with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import botocore.session

from harness.plan import prices
from harness.plan.experiment import Cell, Experiment, Options
from harness.plan.planning import Plan
from harness.run.runner import Run
from instant_env.arch import Arch
from instant_env.bake import artefacts
from instant_env.bake import request as bake_request
from instant_env.bake.bake import bake
from instant_env.cloud.session import Cloud
from instant_env.launch import pool
from instant_env.launch.login_check import PrivateKeyLogin
from instant_env.launch.techniques import Prepared
from instant_env.publish import publish
from instant_env.settings import CloudName, Settings
from instant_env.stopping import StopSignals

#: A call's name, and the how manieth of that name it is.
After = tuple[str, int]
_READING = ("Describe", "Get", "List")
#: Keeps what it has read: EC2's model takes most of a second.
_LOADER = botocore.loaders.create_loader()
#: For a client that is to come to its end.
NEVER = ("", 0)


@dataclass(frozen=True)
class Endpoint:
    """Where a cloud is, and by which keys; ``port`` of the SSH server that all its machines share."""

    url: str
    access_key_id: str
    secret_access_key: str
    settings: Settings
    port: int = 22
    name: CloudName = CloudName.LOCAL

    def session(self) -> boto3.Session:
        core = botocore.session.Session()
        core.register_component("data_loader", _LOADER)
        return boto3.Session(
            self.access_key_id, self.secret_access_key, region_name="us-east-1", botocore_session=core
        )

    def connect(self, session: boto3.Session | None = None) -> Cloud:
        session = session or self.session()
        cloud = Cloud(
            name=self.name,
            settings=self.settings,
            ec2=session.client("ec2", endpoint_url=self.url),
            ssm=session.client("ssm", endpoint_url=self.url),
            instance_connect=session.client("ec2-instance-connect", endpoint_url=self.url),
            region="us-east-1",
            ssh_port=self.port,
            caller_ip_url=f"{self.url}/_localec2/caller-ip",
            accelerator="ec2",
            session=session,
            endpoint_url=self.url,
        )
        cloud.ec2.meta.events.register("after-call.ec2.DescribeInstances", _answer_here)
        cloud.ec2.meta.events.register("after-call.ec2.AllocateAddress", _address_here)
        return cloud


def _answer_here(parsed: dict[str, Any], **_: Any) -> None:
    """Machines answer on 127.0.0.1, where the guest listens."""
    for reservation in parsed.get("Reservations", []):
        for instance in reservation["Instances"]:
            if "PublicIpAddress" in instance:
                instance["PublicIpAddress"] = "127.0.0.1"


def _address_here(parsed: dict[str, Any], **_: Any) -> None:
    parsed["PublicIp"] = "127.0.0.1"


class Death:
    """Says each changing call to the parent, and ends this process after one of them."""

    def __init__(self, after: After, lines: Connection) -> None:
        self._call, self._left = after
        self._lines = lines

    def session(self, endpoint: Endpoint) -> boto3.Session:
        """One whose clients are watched."""
        session = endpoint.session()
        session.events.register("after-call", self._after_call)
        return session

    def _after_call(self, model: Any, **_: Any) -> None:
        if model.name.startswith(_READING):
            return
        self._lines.send(model.name)
        self._left -= model.name == self._call
        if model.name == self._call and not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def _short_sleeps() -> None:
    """Polls and retries ask again at once."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.005))


def run_bake(after: After, lines: Connection, endpoint: Endpoint, binary: Path) -> None:
    _short_sleeps()
    artefacts.build = lambda names, *_: dict.fromkeys(names, binary)
    # The guest that all machines share prints nothing on their consoles.
    options = bake_request.Options(base="pretend", force=True, check_host_key=False)
    cloud = endpoint.connect(Death(after, lines).session(endpoint))
    request = bake_request.Request("pretend", Arch.X86_64, options)
    bake(cloud, endpoint.settings, request, progress=lambda _: None)
    lines.send("")


async def _is_ready(login: PrivateKeyLogin) -> None:
    """The guest is, for it only pretends to sleep."""


def run_bench(
    after: After, lines: Connection, endpoint: Endpoint, image_id: str, technique: str, directory: Path
) -> None:
    """One attempt of one technique. The guest's SSH server is this host's, so it is no image that sleeps."""
    _short_sleeps()
    pool._get_ready = _is_ready
    cloud = endpoint.connect(Death(after, lines).session(endpoint))
    cell = Cell(technique, Arch.X86_64, "m7i.large", None, Options())
    experiment = Experiment((cell,), iterations=1, seed=1, timeout_s=60.0, parallel=1)
    prepared = Prepared(image_id, "root", root_device="/dev/xvda", root_gib=2)
    plan = Plan("deaths", experiment, {cell: prepared}, prices.find(cloud, (cell,)))
    result = Run(cloud, plan, StopSignals(), lambda _: None).execute(directory / f"{os.getpid()}.csv")
    assert [row.outcome for row in result.rows] == ["ok"], [row.error for row in result.rows]
    lines.send("")


def run_publish(after: After, lines: Connection, endpoint: Endpoint, away: Endpoint, ami: str) -> None:
    source_cloud = endpoint.connect()
    source = publish.find_source(source_cloud, ami, "", Arch.X86_64)
    target = away.connect(Death(after, lines).session(away))
    # One worker: the order of its calls is the order of the blocks.
    publish.publish(source_cloud, target, source, workers=1, progress=lambda _: None)
    lines.send("")


class Nursery:
    """A process with everything imported and loaded, which forks one client after the other. It has one
    thread, so a fork of it is a whole program."""

    def __init__(self) -> None:
        self._orders, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_fork_clients, args=(theirs,))
        self._process.start()
        theirs.close()

    def killed_after(self, after: After, target: Callable[..., None], *arguments: Any) -> list[str]:
        """Run it in a process of its own, which dies after this call. Returns the calls, the last one empty
        when it came to its end."""
        self._orders.send((after, target, arguments))
        calls: list[str] = []
        while isinstance(line := self._orders.recv(), str):
            calls.append(line)
        died = line == -signal.SIGKILL
        assert died or (line == 0 and calls[-1] == ""), f"{calls}, exit {line}"
        return calls

    def close(self) -> None:
        self._orders.close()
        self._process.join()


def _fork_clients(orders: Connection) -> None:
    while True:
        try:
            after, target, arguments = orders.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                target(after, orders, *arguments)
                status = 0
            except BaseException:  # noqa: BLE001 - the whole program
                traceback.print_exc()
            finally:
                os._exit(status)
        orders.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def as_aws(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, name=CloudName.AWS)
