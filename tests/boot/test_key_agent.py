"""`instant-init key-agent` as the unit of systemd that recipe minimal writes, on stock Debian."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from instant_env import toolchain
from instant_env.arch import Arch
from instant_env.bake.recipe import load_base, render_script, resolve
from instant_env.bake.ssh import wait_for_login
from instant_env.cloud.keys import KeyPair
from instant_env.localec2 import starter
from instant_env.settings import ROOT

if TYPE_CHECKING:
    import fabric
    from tiny_cloud import TinyCloud

pytest_plugins = ("tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPES = ROOT / "recipes"
UNIT = "instant-init-key.service"
#: RSS of an agent that waits, in KiB. A bound for a leak, not a figure.
MOST_RSS_KIB = 16 * 1024


def install(connection: fabric.Connection) -> None:
    """What the bake does: the binary, and the steps that configure the agent and sshd."""
    binary = toolchain.go_build("init", Arch.X86_64)
    connection.put(io.BytesIO(binary.read_bytes()), "/tmp/instant-init")  # noqa: S108 - a guest's
    connection.run("sudo install -m 0755 /tmp/instant-init /usr/sbin/instant-init", hide=True)
    recipe, base = resolve(RECIPES, "minimal", "apt"), load_base(RECIPES, "debian-12")
    for step in recipe.steps:
        if step.spec.name in ("key-agent", "sshd"):
            script = render_script(step, recipe, base, Arch.X86_64, {})
            connection.put(io.BytesIO(script.encode()), "/tmp/step")  # noqa: S108 - a guest's
            connection.run("sudo sh /tmp/step", hide=True)


def test_it_stays_hands_over_and_ends_the_machine(tiny_cloud: TinyCloud) -> None:
    cloud, wished, pushed = tiny_cloud, KeyPair.generate("wished"), KeyPair.generate("pushed")
    launched = cloud.ec2.run_instances(
        ImageId=starter.ensure_stock(cloud.settings, "debian-12", Arch.X86_64),
        InstanceType="t3.micro", MinCount=1, MaxCount=1, KeyName="tests", SecurityGroupIds=[cloud.group_id],
        UserData=json.dumps({"instant-env": {"ttl_s": 3000, "ssh_keys": [wished.public_openssh]}}),
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )  # fmt: skip
    instance_id = launched["Instances"][0]["InstanceId"]
    address, port = cloud.wait(instance_id, "running")["PublicIpAddress"], cloud.endpoint.ssh_port
    connection = wait_for_login(address, port, "admin", cloud.key, timeout_s=400)
    install(connection)

    def said(command: str) -> str:
        return str(connection.run(command, hide=True, warn=True).stdout).strip()

    # Started, and ready; it does not go away.
    said(f"sudo systemctl daemon-reload; sudo systemctl start {UNIT}; sudo systemctl restart ssh")
    assert said(f"systemctl show -p ActiveState -p SubState -p NRestarts {UNIT}").split() == [
        "ActiveState=active", "SubState=running", "NRestarts=0",
    ]  # fmt: skip
    assert "ttl_s 3000" in said(f"sudo journalctl -u {UNIT}")
    pid = said(f"systemctl show -P MainPID {UNIT}")
    assert int(said(f"awk '/VmRSS/ {{ print $2 }}' /proc/{pid}/status")) < MOST_RSS_KIB
    wait_for_login(address, port, "admin", wished, timeout_s=30).close()

    # Root is closed, and a key that is handed over opens.
    assert said("sudo sshd -T | grep -x 'permitrootlogin no'")
    starter.client(cloud.endpoint, "ec2-instance-connect").send_ssh_public_key(
        InstanceId=instance_id, InstanceOSUser="admin", SSHPublicKey=pushed.public_openssh
    )
    wait_for_login(address, port, "admin", pushed, timeout_s=30).close()

    # The tag shortens its life, and it ends in order.
    at = (datetime.now(UTC) + timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cloud.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at", "Value": at}])
    cloud.wait(instance_id, "stopped", timeout_s=200)
    console = str(cloud.ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", ""))
    assert "its time is up: the tag instant-env:expires-at says" in console
