"""The states that the API shows are those of real QEMU processes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.patience import until

from instant_env.localec2 import hung, starter
from instant_env.localec2.records.layout import Layout

if TYPE_CHECKING:
    from support.localec2_cloud import LocalCloud

pytest_plugins = ("support.localec2_cloud",)
pytestmark = pytest.mark.boot


def accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def eventually(address: str, port: int, expected: bool) -> bool:
    deadline = time.monotonic() + 60
    while accepts(address, port) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return accepts(address, port) == expected


def test_states_are_those_of_the_machine(local_cloud: LocalCloud) -> None:
    instance_id = local_cloud.launch(local_cloud.register_blank())
    assert local_cloud.wait(instance_id, "running")["PublicIpAddress"].startswith("127.")
    assert len(local_cloud.machines(instance_id)) == 1
    output = local_cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True)
    assert isinstance(output["Output"], str), "boto3 decodes it: it was base64"
    local_cloud.ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    local_cloud.wait(instance_id, "stopped")
    assert local_cloud.machines(instance_id) == []
    local_cloud.ec2.start_instances(InstanceIds=[instance_id])
    local_cloud.wait(instance_id, "running")
    assert len(local_cloud.machines(instance_id)) == 1
    local_cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    local_cloud.wait(instance_id, "terminated")
    assert local_cloud.machines(instance_id) == []
    assert local_cloud.ec2.describe_volumes()["Volumes"] == []
    assert list((local_cloud.endpoint.state_dir / "volumes").iterdir()) == []


def test_a_machine_that_is_killed_is_not_called_running(local_cloud: LocalCloud) -> None:
    instance_id = local_cloud.launch(local_cloud.register_blank())
    local_cloud.wait(instance_id, "running")
    os.kill(local_cloud.machines(instance_id)[0], signal.SIGKILL)
    stopped = local_cloud.wait(instance_id, "stopped")
    assert stopped["StateReason"]["Code"] == "Server.InternalError"


@pytest.mark.slow
def test_machines_of_a_killed_server_are_found_and_ended(local_cloud: LocalCloud) -> None:
    image_id = local_cloud.register_blank()
    lives, ends = local_cloud.launch(image_id), local_cloud.launch(image_id)
    local_cloud.wait(lives, "running")
    local_cloud.wait(ends, "running")
    os.kill(local_cloud.endpoint.pid, signal.SIGKILL)
    until(lambda: starter.status(local_cloud.settings).endpoint is None)
    assert len(local_cloud.machines(lives)) == 1, "machines outlive a killed server"
    local_cloud.up()
    assert local_cloud.machines(lives) == local_cloud.machines(ends) == []
    found = local_cloud.wait(lives, "stopped")
    assert "ended at the next start" in found["StateReason"]["Message"]
    assert [image["ImageId"] for image in local_cloud.ec2.describe_images()["Images"]] == [image_id]
    local_cloud.ec2.start_instances(InstanceIds=[lives])
    local_cloud.wait(lives, "running")


def test_a_signal_that_another_thread_was_given_ends_the_server(local_cloud: LocalCloud) -> None:
    """The kernel gives a process's signal to any thread that takes it, and Python's main thread may wait."""
    pid = local_cloud.endpoint.pid
    others = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir() if path.name != str(pid)]
    assert ctypes.CDLL(None).tgkill(pid, others[0], signal.SIGTERM) == 0
    until(lambda: not hung.has_server(Layout(local_cloud.endpoint.state_dir)))


@pytest.mark.slow
def test_down_and_up_again(local_cloud: LocalCloud) -> None:
    image_id = local_cloud.register_blank()
    instance_id = local_cloud.launch(image_id)
    local_cloud.wait(instance_id, "running")
    local_cloud.ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    local_cloud.wait(instance_id, "stopped")
    before = local_cloud.endpoint
    assert starter.down(local_cloud.settings)
    assert not starter.down(local_cloud.settings), "it is not up any more"
    assert starter.status(local_cloud.settings).endpoint is None
    local_cloud.up()
    assert local_cloud.endpoint.url == before.url, "clients keep their endpoint"
    assert local_cloud.endpoint.secret_access_key == before.secret_access_key
    status = starter.status(local_cloud.settings)
    assert [(item.id, item.state) for item in status.instances] == [(instance_id, "stopped")]


def test_one_server_per_state_directory(local_cloud: LocalCloud) -> None:
    assert starter.up(local_cloud.settings) == local_cloud.endpoint
    command = [
        sys.executable, "-m", "instant_env.localec2", "--state-dir", str(local_cloud.endpoint.state_dir),
        "--netd", "/bin/true",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "already uses" in result.stdout


def descendants(pid: int) -> set[int]:
    """A process and all that it started, and so on (proc(5): the parent is field 4 of stat)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_only_loopback_listens(local_cloud: LocalCloud) -> None:
    """The server, its network and its machines; TCP that listens and UDP that is bound."""
    instance_id = local_cloud.launch(local_cloud.register_blank())
    local_cloud.wait(instance_id, "running")
    pids = descendants(local_cloud.endpoint.pid)
    assert set(local_cloud.machines(instance_id)) < pids
    assert len(pids) >= 3, "the network is a process too"
    inodes = set()
    for pid in pids:
        for link in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(link.path) if os.path.islink(link.path) else ""  # noqa: PTH114, PTH115
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    seen = []
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        seen += [row[1] for row in rows if row[3] == state and row[9] in inodes]
    assert seen
    # Addresses are hexadecimal, lowest byte first: 127.x.y.z ends in 7F.
    assert all(entry.split(":")[0].endswith("7F") for entry in seen), seen
