"""Starting, stopping and asking localec2 from other programs: the only door to this package.

Everything past this door goes over HTTP, most of it through plain boto3.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, ValidationError

from instant_env import toolchain
from instant_env.arch import Arch
from instant_env.errors import InstantEnvError
from instant_env.localec2 import hung, stock
from instant_env.localec2.qemu import command_line
from instant_env.localec2.records.layout import Layout
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.progress import Progress, quiet
from instant_env.settings import DEFAULT_REGION, Settings
from instant_env.waiting import wait_until

#: Importing moto and reading the records; more on a busy machine.
START_TIMEOUT_S = 60.0
#: The server gives machines 20 s to power off and then ends them.
DOWN_TIMEOUT_S = 60.0
#: Stock images that localec2 can make.
BASES = stock.BASES
#: Copying a stock image of a few hundred MB.
REGISTER_TIMEOUT_S = 300.0
#: A machine is asked for at most one thing per volume, and QEMU answers within 10 s or not at all.
FAULT_TIMEOUT_S = 60.0
#: Of a server that only says that it is there, on a machine that has other things to do.
HEALTH_TIMEOUT_S = 10.0
#: A process that was killed is gone, with its locks, within this.
ENDING_S = 5.0


class LocalEc2Error(InstantEnvError):
    """localec2 does not start, stop or answer."""


class Endpoint(BaseModel):
    """Where localec2 is and with which credentials (``endpoint.json``, mode 0600)."""

    model_config = ConfigDict(frozen=True)

    url: str
    region: str
    access_key_id: str
    secret_access_key: str
    ssh_port: int
    pid: int
    state_dir: Path
    accelerator: str
    admin_token: str
    caller_ip_url: str


class InstanceSummary(BaseModel):
    """One instance in a status."""

    id: str
    state: str
    type: str
    address: str | None


class Status(BaseModel):
    """What is up. Without an endpoint, nothing is."""

    endpoint: Endpoint | None = None
    instances: list[InstanceSummary] = []
    images: int = 0
    accelerator: str | None = None
    faults: list[dict[str, Any]] = []
    low_disk_space: bool = False  # machines are paused until there is space on the disk


def up(settings: Settings, progress: Progress = quiet) -> Endpoint:
    """The endpoint of a running server; starts one when there is none.

    Two programs may call this at once. Raises MissingToolError before anything is started, LocalEc2Error when
    the server does not come up.
    """
    if (endpoint := _running(settings)) is not None:
        return _of_region(endpoint, settings)
    native = Arch.parse(platform.machine())
    command_line.find_platform(native)
    layout = Layout.create(settings.local_dir)
    with _start_lock(layout.start_lock):
        if (endpoint := _running(settings)) is not None:
            return _of_region(endpoint, settings)
        progress("starting the embedded EC2")
        _start(settings, layout, _netd(native))
        endpoint = _running(settings)
    if endpoint is None:
        raise LocalEc2Error("localec2 started but does not answer", hint=f"see {layout.log}")
    progress(f"embedded EC2 at {endpoint.url} ({endpoint.accelerator})")
    return endpoint


@functools.cache
def _netd(native: Arch) -> Path:
    """Once in a process: even when nothing has changed, asking Go takes a second of processor time."""
    return toolchain.go_build("cmd/netd", native)


def running(settings: Settings) -> Endpoint:
    """The endpoint of the server that runs. Raises LocalEc2Error when none does."""
    endpoint = _running(settings)
    if endpoint is None:
        raise LocalEc2Error("localec2 is not running", hint="start it: invoke local.up")
    return _of_region(endpoint, settings)


def _of_region(endpoint: Endpoint, settings: Settings) -> Endpoint:
    """The endpoint, if it is in the region that the settings name: no other one answers in its place.

    Where they name none, the server that runs is the one that was meant.
    """
    if settings.region not in (None, endpoint.region):
        raise LocalEc2Error(
            f"the region {settings.region} was asked for, but localec2 at {endpoint.url} runs in "
            f"{endpoint.region}",
            hint=f"set the region to {endpoint.region} (INSTANT_ENV_REGION), or stop it: invoke local.down",
        )
    return endpoint


def down(settings: Settings, *, force: bool = False) -> bool:
    """Stop the server and its machines; False when it was not up.

    Raises LocalEc2Error when it does not answer, or does not end; with ``force`` it is killed then.
    """
    try:
        endpoint = _running(settings)
        if endpoint is None:
            _remove_leftovers(_layout(settings))
            return False
        _end(endpoint)
    except LocalEc2Error:
        layout = _layout(settings)
        if not force or (pid := hung.server_of(layout)) is None:
            raise
        hung.kill(layout, pid)
    return True


def _remove_leftovers(layout: Layout) -> None:
    """Remove what a server left outside of its state directory when it was killed."""
    if not layout.runtime.exists():
        return
    # A server that starts meanwhile is about to use it.
    starting = _start_lock(layout.start_lock) if layout.state_dir.is_dir() else contextlib.nullcontext()
    with starting:
        if not hung.has_server(layout):
            layout.remove_empty_runtime()


def _end(endpoint: Endpoint) -> None:
    """Ask the server to end, and wait for it."""
    # The pid is only believed because the server has just answered with our token from this state directory.
    os.kill(endpoint.pid, signal.SIGTERM)
    layout = Layout(endpoint.state_dir)
    if not wait_until(lambda: not hung.has_server(layout), DOWN_TIMEOUT_S, 0.05):
        with contextlib.suppress(ProcessLookupError):
            os.kill(endpoint.pid, signal.SIGQUIT)  # it writes where its threads are into its log
        raise LocalEc2Error(
            f"localec2 (pid {endpoint.pid}) does not end",
            hint=f"{layout.log} says why; end it: invoke local.down --force",
        )


def status(settings: Settings) -> Status:
    """What is up, without starting anything."""
    endpoint = _running(settings)
    if endpoint is None:
        return Status()
    ec2 = client(endpoint, "ec2")
    try:
        pages = ec2.get_paginator("describe_instances").paginate()
        instances = [
            InstanceSummary(
                id=item["InstanceId"], state=item["State"]["Name"], type=item["InstanceType"],
                address=item.get("PublicIpAddress"),
            )
            for page in pages for reservation in page["Reservations"] for item in reservation["Instances"]
        ]  # fmt: skip
        images = len(ec2.describe_images(Owners=["self"])["Images"])
    except (BotoCoreError, ClientError) as error:
        raise LocalEc2Error(f"localec2 does not answer: {error}") from error
    return Status(
        endpoint=endpoint, instances=instances, images=images, accelerator=endpoint.accelerator,
        faults=faults(endpoint),
        low_disk_space=_own_route(endpoint, "health", None, FAULT_TIMEOUT_S)["low_disk_space"],
    )  # fmt: skip


def inject(endpoint: Endpoint, **fault: Any) -> dict[str, Any]:
    """Make something go wrong (faults.py names the kinds and their fields); returns the fault with its id.

    Raises LocalEc2Error for invalid fault parameters and for an unknown machine.
    """
    answer = _own_route(endpoint, "faults", json.dumps(fault).encode(), FAULT_TIMEOUT_S)
    injected: dict[str, Any] = answer["fault"]
    return injected


def faults(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The faults that are active."""
    active: list[dict[str, Any]] = _own_route(endpoint, "faults", None, FAULT_TIMEOUT_S)["faults"]
    return active


def clear_faults(endpoint: Endpoint, fault_id: str = "") -> list[str]:
    """End one fault, or all; returns the ids of those that were active."""
    route = f"faults/{fault_id}" if fault_id else "faults"
    cleared: list[str] = _own_route(endpoint, route, None, FAULT_TIMEOUT_S, method="DELETE")["cleared"]
    return cleared


def strictness(endpoint: Endpoint, **switches: Any) -> LocalEc2Settings:
    """How strict the server is, after a change of these switches (LocalEc2Settings has their names).

    Raises LocalEc2Error for an unknown switch and for a wrong value.
    """
    body = json.dumps(switches).encode() if switches else None
    answer = _own_route(endpoint, "strictness", body, FAULT_TIMEOUT_S)
    return LocalEc2Settings.model_validate(answer["strictness"])


def root_reads(endpoint: Endpoint, instance_id: str) -> tuple[int, int]:
    """Requests and bytes that a running machine has read from its root volume, its firmware included.

    Raises LocalEc2Error when it does not run.
    """
    answer = _own_route(endpoint, f"root-reads/{instance_id}", None, FAULT_TIMEOUT_S)
    return int(answer["requests"]), int(answer["bytes"])


def ensure_stock(settings: Settings, base: str, arch: Arch, progress: Progress = quiet) -> str:
    """AMI id of a stock image: built when it is not cached, registered when it is not yet.

    The same bytes are registered once: localec2 knows them by their digest.
    """
    endpoint = up(settings, progress)
    return register(endpoint, stock.build(base, arch, settings.cache_dir, progress))


def register(endpoint: Endpoint, image: stock.StockImage) -> str:
    """AMI id of a stock image whose disk is here. Raises LocalEc2Error when its disk is no good."""
    answer = _own_route(endpoint, "stock-images", image.model_dump_json().encode(), REGISTER_TIMEOUT_S)
    return str(answer["image_id"])


def client(endpoint: Endpoint, service: str) -> Any:
    """A boto3 client of localec2."""
    config = Config(retries={"max_attempts": 0}, proxies={})
    return session(endpoint).client(service, endpoint_url=endpoint.url, config=config)  # type: ignore[call-overload]


def session(endpoint: Endpoint) -> boto3.Session:
    """A session whose clients know of localec2 only what the endpoint says.

    The caller's profile, AWS configuration files and variables are for the world outside: one that is missing
    or broken there must not matter here. Proxies are each client's (``Config(proxies={})``).
    """
    variables = {**BOTOCORE_DEFAUT_SESSION_VARIABLES, **botocore.session.Session.SESSION_VARIABLES}
    ours = {
        name: (None, None, os.devnull if name in ("config_file", "credentials_file") else default, convert)
        for name, (_, environment, default, convert) in variables.items()
        if environment
    }
    return boto3.Session(
        aws_access_key_id=endpoint.access_key_id, aws_secret_access_key=endpoint.secret_access_key,
        region_name=endpoint.region, botocore_session=botocore.session.Session(session_vars=ours),
    )  # fmt: skip


def _lives(layout: Layout) -> bool:
    """Whether a server's process is there, and has not begun to go down."""
    return hung.has_server(layout) and layout.endpoint.exists()


def _running(settings: Settings) -> Endpoint | None:
    """The endpoint, when its server answers; None when there is none.

    Raises LocalEc2Error for a server that is there and does not answer.
    """
    layout = _layout(settings)
    try:
        endpoint = Endpoint.model_validate_json(layout.endpoint.read_bytes())
    except (OSError, ValidationError):
        return None
    if endpoint.state_dir != layout.state_dir:
        return None  # a copy of another server's directory
    try:
        answer = _own_route(endpoint, "health", None, HEALTH_TIMEOUT_S)
    except LocalEc2Error as error:
        # Nobody there, or somebody else at its port; unless its process lives and still says that it serves.
        # One that was killed a moment ago has closed its connections, and holds its lock a little longer.
        if wait_until(lambda: not _lives(layout), ENDING_S, 0.05):
            return None
        raise LocalEc2Error(
            f"localec2 (pid {endpoint.pid}) runs in {layout.state_dir} and does not answer: {error.message}",
            hint="end it: invoke local.down --force",
        ) from error
    return endpoint if answer.get("state_dir") == str(endpoint.state_dir) else None


def _layout(settings: Settings) -> Layout:
    return Layout(settings.local_dir.expanduser().resolve())


def _own_route(
    endpoint: Endpoint, route: str, body: bytes | None, timeout_s: float, method: str | None = None
) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - http to 127.0.0.1, from our own file
        f"{endpoint.url}/_localec2/{route}", data=body, method=method,
        headers={"X-Localec2-Token": endpoint.admin_token},
    )  # fmt: skip
    # No proxy: the environment's is for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        with contextlib.suppress(ValueError, KeyError):
            raise LocalEc2Error(f"localec2: {json.load(error)['error']}") from error
        raise LocalEc2Error(f"localec2 answered {error.code} to {route}") from error
    except (OSError, ValueError) as error:
        raise LocalEc2Error(f"localec2 does not answer: {error}") from error


def _start(settings: Settings, layout: Layout, netd: Path) -> None:
    reader, writer = os.pipe()
    command = [
        sys.executable, "-m", "instant_env.localec2", "--state-dir", str(layout.state_dir),
        "--netd", str(netd), "--egress" if settings.local_egress else "--no-egress",
        "--region", settings.region or DEFAULT_REGION, "--accelerator", settings.accelerator.value,
        "--strictness", settings.localec2.model_dump_json(),
        "--ready-fd", str(writer),
    ]  # fmt: skip
    # AWS_* of the caller's shell is none of the server's business.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))
    }
    descriptor = os.open(layout.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(reader) as ready, os.fdopen(descriptor, "ab") as log:
        try:
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=(writer,), cwd="/", env=environment | {"PYTHONPATH": _import_path()},
            )  # fmt: skip
        finally:
            os.close(writer)
        # Ends at the latest with the process: nobody else holds the writing end.
        line = _read_line(ready, START_TIMEOUT_S)
    try:
        answer = json.loads(line)
    except ValueError:
        raise LocalEc2Error("localec2 did not start", hint=f"see {layout.log}") from None
    if not answer.get("ok"):
        error = LocalEc2Error(answer["error"], hint=answer.get("hint") or f"see {layout.log}")
        error.exit_code = answer.get("exit_code", LocalEc2Error.exit_code)
        raise error


def _import_path() -> str:
    """The server runs in / and must find this package as we did."""
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(part for part in (ours, os.environ.get("PYTHONPATH", "")) if part)


def _read_line(stream: Any, timeout_s: float) -> str:
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return str(stream.readline()) if selector.select(timeout_s) else ""


@contextlib.contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
