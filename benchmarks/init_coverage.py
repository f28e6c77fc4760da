"""Which statements of the init run on a booted machine, by function: no test in a process has a PID 1.

    .venv/bin/python benchmarks/init_coverage.py [--below 60]

A tiny machine gets an init that counts (go build -cover -tags coverage), and goes through what a machine goes
through: volumes, services, a second card, keys that are handed over, orphans, sshd killed, a sleep, the power
button, SIGTERM, a full root, its time limit. Prints one JSON object: the share of all statements, and of each
function of which less than ``--below`` percent ran. The boot tests go further than this one machine does.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.init_guest import start, stop, wait_for_line, wait_until, write_file
from support.tiny_cloud import Guest, TinyCloud, end

from instant_env.arch import Arch
from instant_env.cloud.keys import KeyPair
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_build, go_environment

#: Where the test build leaves its counters (init/coverage.go).
COUNTERS = "/var/lib/instant-init-coverage"
ZONE = "us-east-1a"


def install(guest: Guest, binary: Path) -> None:
    guest.connection.put(str(binary), "/usr/sbin/instant-init.new")
    guest.run(
        "chmod 0755 /usr/sbin/instant-init.new; mv /usr/sbin/instant-init.new /usr/sbin/instant-init; sync"
    )


def put_through(cloud: TinyCloud, binary: Path) -> Guest:
    """One machine's lives, the last of which is still going on; its counters are on its disk."""
    ec2 = cloud.ec2
    blank = ec2.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    wishes: dict[str, Any] = {
        "hostname": "counted",
        "ssh_keys": [KeyPair.generate().public_openssh.strip()],
        "mounts": [{"device": blank, "path": "/data", "filesystem": "ext4", "format": "blank"}],
        "services": ["named"],
        "nonsense": True,
    }
    instance_id = cloud.launch_tiny(
        UserData=json.dumps({"instant-env": wishes}),
        HibernationOptions={"Configured": True},
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 2, "Encrypted": True}}],
        MetadataOptions={"InstanceMetadataTags": "enabled", "HttpTokens": "required"},
    )
    guest = cloud.login(instance_id)
    install(guest, binary)
    services = "/etc/instant-init/services"
    write_file(guest, f"{services}/named.json", '{"argv": ["/bin/sleep", "9999"], "start": "named"}')
    write_file(guest, f"{services}/flaky.json", '{"argv": ["/bin/false"], "after": ["named"]}')
    write_file(guest, f"{services}/wrong.json", "{")
    guest.run("rm /etc/ssh/ssh_host_*")
    ec2.attach_volume(VolumeId=blank, InstanceId=instance_id, Device="/dev/sdf")
    stop(cloud, instance_id)

    guest = start(cloud, instance_id)
    wait_until(guest, "grep -q ' /data ext4 ' /proc/mounts")
    guest.run("for n in $(seq 100); do (sleep 0.01 &) ; done; kill -HUP 1; instant-init timeline >/dev/null")
    described = cloud.describe(instance_id)
    card = ec2.create_network_interface(SubnetId=described["SubnetId"], Groups=[cloud.group_id])
    card_id = card["NetworkInterface"]["NetworkInterfaceId"]
    attachment = ec2.attach_network_interface(
        NetworkInterfaceId=card_id, InstanceId=instance_id, DeviceIndex=1
    )["AttachmentId"]
    wait_until(guest, "ip -4 address show dev eth1 2>/dev/null | grep -q inet")
    ec2.detach_network_interface(AttachmentId=attachment)
    wait_until(guest, "! ip link show dev eth1 2>/dev/null")
    far = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    tags = {"instant-env:ssh-key": cloud.key.public_openssh.strip(), "instant-env:expires-at": far}
    ec2.create_tags(
        Resources=[instance_id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
    )
    guest.run("kill -KILL $(cat /run/sshd.pid)")
    guest = cloud.login(instance_id)

    ec2.stop_instances(InstanceIds=[instance_id], Hibernate=True)
    cloud.wait(instance_id, "stopped", timeout_s=120)
    guest = start(cloud, instance_id)
    ec2.reboot_instances(InstanceIds=[instance_id])
    wait_for_line(cloud, instance_id, "restarting now, after")
    guest = cloud.login(instance_id)

    # A root without a block left; then its time is up.
    guest.run("rm /etc/ssh/ssh_host_*; dd if=/dev/zero of=/root/fill bs=1M; sync")
    guest.run("(sleep 1; kill -TERM 1) </dev/null >/dev/null 2>&1 &")
    cloud.wait(instance_id, "stopped", timeout_s=120)
    guest = start(cloud, instance_id)
    guest.run("rm /root/fill")
    soon = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at", "Value": soon}])
    wait_for_line(cloud, instance_id, "its time is up", timeout_s=180)
    cloud.wait(instance_id, "stopped", timeout_s=120)
    ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": "instant-env:expires-at"}])
    return start(cloud, instance_id)


def fetch(guest: Guest, directory: Path) -> list[Path]:
    """The counters, a directory for each start."""
    archive = directory / "counters.tar"
    guest.run(f"tar -C {COUNTERS} -cf /run/counters.tar .")
    guest.connection.get("/run/counters.tar", str(archive))
    subprocess.run(["tar", "-xmf", archive, "-C", directory], check=True)
    return sorted(path.parent for path in directory.glob("*/covmeta.*"))


def functions(starts: list[Path], directory: Path) -> dict[str, float]:
    """Percent of the statements of each function that ran in any start, and of ``total``."""
    profile = directory / "profile.txt"
    go = find_go()

    def tool(*words: str) -> str:
        environment = go_environment(Arch.X86_64)
        command = [go, "tool", *words]
        return subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        ).stdout

    tool("covdata", "textfmt", "-i", ",".join(str(path) for path in starts), "-o", str(profile))
    counts = {}
    for line in tool("cover", "-func", str(profile)).splitlines():
        if match := re.match(r"(?:instantenv/)?(\S+?):(?:\d+:)?\s+(\S+)\s+([0-9.]+)%$", line):
            counts["total" if match[1] == "total" else f"{match[1]} {match[2]}"] = float(match[3])
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Which statements of the init run on a booted machine.")
    parser.add_argument(
        "--below", type=float, default=60.0, metavar="PERCENT", help="which functions to name"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="instant-env-coverage-") as name:
        directory = Path(name)
        binary = go_build("init", Arch.X86_64, directory / "binary", tags="coverage", cover=True)
        cloud = TinyCloud(directory / "state", Arch.X86_64)
        try:
            starts = fetch(put_through(cloud, binary), directory)
        finally:
            end(cloud)
        counts = functions(starts, directory)
    total = counts.pop("total")
    low = {name: percent for name, percent in sorted(counts.items()) if percent < arguments.below}
    print(
        json.dumps(
            {"statements_percent": total, "starts": len(starts), "functions": len(counts), "low": low},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
