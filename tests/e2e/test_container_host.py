"""container-host, baked and booted: its container answers, comes back, is updated, and keeps its secret.

Two recipes, a bake each: not in `make test`, but in `make test-images`. The container's image is written here
and served to the bake by this computer; the packages come from Debian's archive.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import pytest
from support.containers import archive
from support.front import KEPT, Front
from support.localec2_cloud import LocalCloud
from support.patience import until

from instant_env.arch import Arch
from instant_env.cloud.keys import KeyPair
from instant_env.ssh.connection import wait_for_login

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.environ.get("INSTANT_ENV_IMAGES") != "1", reason="bakes with Docker: INSTANT_ENV_IMAGES=1"
    ),
]

USER = "admin"
PORT = 8080
#: Two busy cores emulate systemd, Docker and the container.
PATIENCE_S = 600.0
SECRET = "correct-horse-battery-staple-7391"
#: Where a machine may hold it: the file, and what Docker and containerd keep of the container.
PLACES = (
    "/etc/container-host/environment", "/var/lib/docker/containers/", "/var/lib/docker/containerd/",
    "/var/lib/containerd/", "/run/docker/", "/run/containerd/",
)  # fmt: skip
#: The chain of the runner's without its rule against the metadata service.
OPEN = (
    "iptables -F CONTAINER-HOST && "
    "iptables -A CONTAINER-HOST -o docker0 -m conntrack --ctstate DNAT --ctdir ORIGINAL -j ACCEPT"
)
RECIPES = ("container-host", "container-host-init")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The directory by HTTP, under a name of this computer's."""
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{socket.gethostname().lower()}:{server.server_address[1]}"
        server.shutdown()


@dataclass
class Machine:
    """A machine with a container, reached at its address; nobody is logged in until `run` is called."""

    cloud: LocalCloud
    instance_id: str
    address: str
    key: KeyPair
    connection: fabric.Connection | None = None

    def run(self, command: str, ok: bool = True, stdin: str | None = None) -> str:
        """A command as root; what it prints on both."""
        if self.connection is None:
            port = self.cloud.endpoint.ssh_port
            self.connection = wait_for_login(self.address, port, USER, self.key, timeout_s=PATIENCE_S)
        if stdin is not None:
            channel = self.connection.transport.open_session()
            channel.exec_command(f"sudo {command}")
            channel.sendall(stdin.encode())
            channel.shutdown_write()
            text = (channel.makefile().read() + channel.makefile_stderr().read()).decode()
            assert (channel.recv_exit_status() == 0) is ok, text
            return str(text)
        result = self.connection.run(f"sudo sh -c '{command}'", hide=True, warn=True, timeout=PATIENCE_S)
        print(command, result.stdout, result.stderr, sep="\n")
        assert result.ok is ok, result.stderr
        return f"{result.stdout}{result.stderr}"

    def reconnects(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def get(self, path: str = "/", timeout_s: float = 20.0) -> str | None:
        """The body of a 200; None for anything else."""
        url = f"http://{self.address}:{PORT}{path}"
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                return str(answer.read().decode()).strip()
        except (urllib.error.URLError, OSError):
            return None

    def answers(self, what: str) -> None:
        """Waits for a 200 of the health path, and prints how long that took."""
        begin = time.monotonic()
        until(lambda: self.get("/health", timeout_s=2.0) is not None, PATIENCE_S, 0.1)
        print(f"TIME {what}: 200 after {time.monotonic() - begin:.1f} s")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(Path(KEPT) if KEPT else tmp_path_factory.mktemp("container-host"))
    try:
        yield front
    finally:
        front.run("local.down")
        assert front.machines() == []


@pytest.fixture(scope="module", params=RECIPES)
def image(front: Front, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An AMI of the recipe with the container team/app:v1."""
    recipe = str(request.param)
    if images := front.json("amis", "--recipe", recipe)["images"]:
        return str(images[0]["ami"])
    directory = tmp_path_factory.mktemp("archive")
    digest = archive.write(directory / "app.tar", {"team/app:v1": {"VERSION": "v1"}}, Arch.X86_64)
    with served(directory) as url:
        values = {
            "image": "team/app", "tag": "v1", "archive_url": f"{url}/app.tar", "archive_sha256": digest,
            "ports": f"{PORT}:8080", "health_port": 8080, "health_path": "/health", "health_interval_s": 5,
        }  # fmt: skip
        given = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        baked = front.json("bake", "--arch", "x86_64", "--recipe", recipe, *given)
    manifest = json.loads(Path(baked["manifest"]).read_text())
    assert manifest["audit"]["findings"] == []
    print(f"TIME bake of {recipe}:", manifest.get("steps"))
    return str(baked["ami"])


@contextmanager
def launched(front: Front, image: str, hops: int, settings: dict[str, str]) -> Iterator[Machine]:
    cloud, key = LocalCloud(front.directory / "state"), KeyPair.generate()
    ec2, name = cloud.ec2, f"container-host-{hops}"
    ec2.import_key_pair(KeyName=name, PublicKeyMaterial=key.public_openssh.encode())
    group_id = ec2.create_security_group(GroupName=name, Description="SSH and the container")["GroupId"]
    for port in (22, PORT):
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpProtocol="tcp", FromPort=port, ToPort=port, CidrIp="127.0.0.0/8"
        )
    more: dict[str, Any] = {"MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": hops}}
    user_data = json.dumps({"instant-env": {"settings": settings}})
    instance_id = cloud.launch(
        image, InstanceType="m7i.large", KeyName=name, SecurityGroupIds=[group_id], UserData=user_data, **more
    )
    try:
        yield Machine(cloud, instance_id, cloud.wait(instance_id, "running")["PublicIpAddress"], key)
    finally:
        print(ec2.get_console_output(InstanceId=instance_id).get("Output", "")[-5000:])
        ec2.terminate_instances(InstanceIds=[instance_id])
        cloud.wait(instance_id, "terminated")
        ec2.delete_key_pair(KeyName=name)
        ec2.delete_security_group(GroupId=group_id)


def boot_id(machine: Machine) -> str:
    return machine.run("cat /proc/sys/kernel/random/boot_id")


def test_a_container_answers_comes_back_and_is_updated(front: Front, image: str, tmp_path: Path) -> None:
    # Two hops: what keeps the container from the metadata service is the rule.
    with launched(front, image, 2, {}) as machine:
        machine.answers("first boot")
        assert machine.connection is None, "and nobody has logged in"
        assert machine.get() == "v1"
        assert "unreachable" in str(machine.get("/metadata"))
        _comes_back(machine)
        _is_updated(machine, tmp_path)
        machine.run(OPEN)
        assert "reached: 200" in str(machine.get("/metadata")), "the rule was what kept it away"


def _comes_back(machine: Machine) -> None:
    first = machine.run("docker ps -q --no-trunc")
    machine.run("docker kill $(docker ps -q)")
    machine.answers("killed")
    assert machine.run("docker ps -q --no-trunc") != first
    machine.get("/hang")
    until(lambda: machine.get("/health", timeout_s=2.0) is None, PATIENCE_S)
    machine.answers("hung")
    status = json.loads(machine.run("container-host status --json"))
    assert status["restarts"] >= 2
    assert "failed its check 3 times" in status["reason"]
    before = boot_id(machine)
    machine.cloud.ec2.reboot_instances(InstanceIds=[machine.instance_id])
    until(lambda: machine.get("/health", timeout_s=2.0) is None, PATIENCE_S)
    machine.answers("rebooted")
    machine.reconnects()
    assert boot_id(machine) != before
    phases = json.loads(machine.run("cat /run/instant-env/phases.json"))["phases"]
    states = {phase["name"]: phase["state"] for phase in phases}
    assert [states[f"container-{name}"] for name in ("loaded", "service", "ready")] == ["done"] * 3
    policy = machine.run("docker inspect --format {{.HostConfig.RestartPolicy.Name}} $(docker ps -q)")
    assert policy.strip() == "no"


def _is_updated(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "more.tar"
    tags = {"team/app:v2": {"VERSION": "v2"}, "team/app:v3": {"VERSION": "v3", "BROKEN": "1"}}
    archive.write(file, tags, Arch.X86_64)
    assert machine.connection is not None
    machine.connection.put(str(file), "/var/tmp/more.tar")  # noqa: S108
    machine.run("docker load --quiet --input /var/tmp/more.tar")
    print("TIME update:", machine.run("container-host update v2"))
    assert machine.get() == "v2"
    assert "not rolled out" in machine.run("container-host update v3", ok=False)
    assert machine.get() == "v2"
    update = json.loads(machine.run("container-host status --json"))["update"]
    assert (update["ok"], update["from"], update["tag"]) == (False, "v2", "v3")


def test_a_secret_is_where_it_belongs_and_nowhere_else(front: Front, image: str) -> None:
    with launched(front, image, 1, {"environment": "ssh"}) as machine:
        until(
            lambda: "waiting for the environment" in machine.run("cat /run/instant-env/phases.json"),
            PATIENCE_S,
            1,
        )
        assert machine.get("/health") is None, "it does not run without its environment"
        machine.run("container-host environment", stdin=f"SECRET={SECRET}\n")
        machine.answers("environment")
        assert machine.get("/secret") == hashlib.sha256(SECRET.encode()).hexdigest()
        assert machine.run("stat -c %a:%U /etc/container-host/environment").strip() == "600:root"
        _is_nowhere_else(front, machine)
        machine.run(OPEN)
        assert "unreachable" in str(machine.get("/metadata")), "one hop is enough, without the rule"


def _is_nowhere_else(front: Front, machine: Machine) -> None:
    # The command has the secret in two parts, so that neither it nor sudo's log of it is found.
    half = len(SECRET) // 2
    parts = f'"{SECRET[:half]}""{SECRET[half:]}"'
    search = f"grep -rlsF --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev -e {parts} /; true"
    places = machine.run(search).split()
    assert PLACES[0] in places
    assert any(place.startswith(PLACES[1]) and place.endswith("config.v2.json") for place in places)
    assert [place for place in places if not place.startswith(PLACES)] == []
    words = machine.run(
        "journalctl --no-pager 2>/dev/null; dmesg; cat /run/instant-init/log/* 2>/dev/null; true"
    )
    assert SECRET not in words
    ec2 = machine.cloud.ec2
    attribute = ec2.describe_instance_attribute(InstanceId=machine.instance_id, Attribute="userData")
    assert SECRET not in json.dumps(attribute, default=str)
    assert SECRET not in ec2.get_console_output(InstanceId=machine.instance_id, Latest=True).get("Output", "")
    # Everything of this cloud: records, logs, images and other machines' disks.
    (volume,) = (
        mapping["Ebs"]["VolumeId"]
        for mapping in machine.cloud.describe(machine.instance_id)["BlockDeviceMappings"]
    )
    found = subprocess.run(
        ["grep", "-rlsF", "-e", SECRET, str(front.directory / "state")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert [line for line in found.stdout.splitlines() if volume not in line] == []
