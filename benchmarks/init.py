"""What our init adds to a boot: a login to custom-init against the floor, and what is read until then.

    .venv/bin/python benchmarks/init.py [--arch x86_64] [--blocks 5] [--cold 1] [--beside INSTANT_INIT]

Needs a custom-init AMI (`invoke bake --recipe custom-init`), whose disk is copied twice: once with the init
of this checkout, once with a PID 1 that prints one line and waits, which is the floor. So firmware, kernel
and command line are the same. Both are launched in one localec2, one at a time, interleaved; `--cold` adds
launches of the base, for what it reads, and `--beside` a third copy with another build of the init, such as
that of an earlier revision.

Milliseconds count from the call of RunInstances. The floor's end at the line on the serial console, looked
for every 5 ms, with the same probe running beside it that looks for sshd on the other machine.
`processor_ms` is what QEMU has used of the host's processors by then, which says more than the time where
others use the host. Init's own figures are from its timeline, on the guest's clock. How long after the
kernel's hand-off the floor's line comes, which is what a start of Go takes, is from the kernel's log.
A machine that hangs is told, and another launched in its place (hangs.py).
Prints one JSON object; figures of different machines are not comparable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import asyncssh
from hangs import HangError, Hangs, console_end

from instant_env.arch import Arch
from instant_env.launch.guest import read_guest
from instant_env.localec2 import starter
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.stock.model import StockImage
from instant_env.settings import Settings, load
from instant_env.ssh.connect_probe import DIRECT, ProbeStats, SshAnswer
from instant_env.ssh.login import authenticate, client_options
from instant_env.ssh.probe_client import Prober, probing
from instant_env.toolchain import go_build

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

INSTANCE_TYPE: Literal["t3.micro"] = "t3.micro"
LIMIT_S = 400.0
LINE = b"floor"
LINE_AFTER = re.compile(rb"after (\d+) us|no hand-off")  # of the kernel
ASK = "grep VmRSS /proc/1/status; df -B1 --output=used / | tail -n 1; cat /run/instant-init/timeline.json"

#: What a launch is measured by, as it is named in the output.
Figures = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """One server, one key and one group for all launches."""

    settings: Settings
    endpoint: starter.Endpoint
    ec2: EC2Client
    key: asyncssh.SSHKey
    key_name: str
    group_id: str
    limit_s: float = LIMIT_S

    async def launch(self, image_id: str, follow: Callable[[Machine], Awaitable[Figures]]) -> Figures:
        """Launch, measure, end the machine whatever happened."""
        async with probing() as prober:
            return await self._launch(image_id, follow, prober)

    async def _launch(
        self, image_id: str, follow: Callable[[Machine], Awaitable[Figures]], prober: Prober
    ) -> Figures:
        started_ns = time.monotonic_ns()
        answer = self.ec2.run_instances(
            ImageId=image_id, InstanceType=INSTANCE_TYPE, KeyName=self.key_name, MinCount=1, MaxCount=1,
            SecurityGroupIds=[self.group_id],
        )  # fmt: skip
        instance_id = answer["Instances"][0]["InstanceId"]
        try:
            async with asyncio.timeout(self.limit_s):
                address = await self._running(instance_id)
                return await follow(Machine(instance_id, address, started_ns, prober))
        except TimeoutError:
            raise HangError(instance_id, self.limit_s, console_end(self._console(instance_id))) from None
        finally:
            self.ec2.terminate_instances(InstanceIds=[instance_id])
            while self._describe(instance_id)["State"]["Name"] != "terminated":
                await asyncio.sleep(0.05)

    def _console(self, instance_id: str) -> Path:
        return Layout(self.settings.local_dir.resolve()).instance(instance_id) / "console.log"

    def _describe(self, instance_id: str) -> Any:
        answer = self.ec2.describe_instances(InstanceIds=[instance_id])
        return answer["Reservations"][0]["Instances"][0]

    async def _running(self, instance_id: str) -> str:
        while (description := self._describe(instance_id))["State"]["Name"] == "pending":
            await asyncio.sleep(0.02)
        return str(description["PublicIpAddress"])

    def _probe(self, machine: Machine) -> asyncio.Task[SshAnswer]:
        now_ns = time.monotonic_ns()
        looking = machine.prober.probe(
            machine.address, self.endpoint.ssh_port, DIRECT, ProbeStats(), not_before_ns=now_ns
        )
        return asyncio.create_task(looking)

    async def floor(self, machine: Machine) -> Figures:
        """Until its line is on the console."""
        console = self._console(machine.instance_id)
        looking = self._probe(machine)
        try:
            while not console.exists() or LINE not in console.read_bytes():
                await asyncio.sleep(0.005)
            figures = {"t4_ms": machine.elapsed_ms(), "processor_ms": machine.processor_ms()}
            while (after := LINE_AFTER.search(console.read_bytes())) is None:
                await asyncio.sleep(0.005)
            if after[1]:
                figures["handoff_to_line_ms"] = round(int(after[1]) / 1000, 1)
            return figures
        finally:
            looking.cancel()

    def login(self, username: str) -> Callable[[Machine], Awaitable[Figures]]:
        """Until the key was accepted, and then the machine's own account."""

        async def follow(machine: Machine) -> Figures:
            sshd = await self._probe(machine)
            login = await authenticate(sshd.sock, client_options(username, self.key))
            figures = {
                "t3_ms": machine.elapsed_ms(sshd.banner_ns),
                "t4_ms": machine.elapsed_ms(login.authenticated_ns),
                "processor_ms": machine.processor_ms(),
            }
            figures["volume_requests"], figures["volume_bytes"] = starter.root_reads(
                self.endpoint, machine.instance_id
            )
            report = await read_guest(login.connection)
            if report.root_reads is not None:
                figures["disk_requests"], figures["disk_bytes"] = report.root_reads
            await asyncio.sleep(1)  # PID 1 completes its timeline
            output = (await login.connection.run(ASK, check=False)).stdout
            login.connection.abort()
            return figures | own_account(str(output))

        return follow


@dataclass(frozen=True)
class Machine:
    """One launch."""

    instance_id: str
    address: str
    started_ns: int
    prober: Prober

    def elapsed_ms(self, at_ns: int | None = None) -> float:
        return round(((at_ns or time.monotonic_ns()) - self.started_ns) / 1e6, 1)

    def processor_ms(self) -> float:
        """User and system time of its QEMU."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.instance_id.encode() in (process / "cmdline").read_bytes():
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            except OSError:  # it ended while we looked
                continue
        raise RuntimeError(f"no process of {self.instance_id}")


def own_account(text: str) -> Figures:
    """From ASK's answer: memory, the file system's use, and the spans of the timeline."""
    lines = text.splitlines()
    figures = {"root_used_bytes": float(lines[1])}
    if len(lines) < 3:  # systemd's memory is not of interest
        return figures
    timeline = json.loads(lines[2])
    figures["resident_kib"] = float(lines[0].split()[1])
    marks = {mark["name"]: mark["boottime_ms"] for mark in timeline["marks"]}
    for name, first, last in (
        ("handoff_to_init", "kernel_handoff", "init_start"),
        ("handoff_to_sshd_executed", "kernel_handoff", "sshd_started"),
        ("handoff_to_key_written", "kernel_handoff", "key_written"),
        ("handoff_to_sshd_listening", "kernel_handoff", "sshd_listening"),
        ("sshd_listening_to_first_login", "sshd_listening", "first_login"),
    ):
        if first in marks and last in marks:
            figures[f"{name}_ms"] = round(marks[last] - marks[first], 1)
    for stage in timeline["stages"]:
        if stage["end_ms"] is not None:
            figures[f"stage_{stage['name'].replace(' ', '_')}_ms"] = round(
                stage["end_ms"] - stage["start_ms"], 1
            )
    for reads in timeline["root_reads"]:
        if reads["mark"] == "first_login":
            figures["init_requests"], figures["init_bytes"] = reads["requests"], reads["bytes"]
    return figures


def tool(*command: str | Path, text: str | None = None) -> str:
    return subprocess.run(
        [str(part) for part in command], input=text, check=True, capture_output=True, text=True
    ).stdout


def register(bench: Bench, image: Any, arch: Arch, program: Path, directory: Path) -> str:
    """The AMI's disk with a program where its init is."""
    name = f"{program.name}-{os.urandom(4).hex()}"
    raw, disk = directory / "disk.raw", directory / f"{name}.qcow2"
    snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    tool(
        "qemu-img", "convert", "-O", "raw", Layout(bench.settings.local_dir.resolve()).snapshot(snapshot), raw
    )
    partitions = json.loads(tool("sfdisk", "--json", raw))["partitiontable"]["partitions"]
    start = max(partitions, key=lambda partition: int(partition["size"]))["start"] * 512
    path = "/usr/sbin/instant-init"
    commands = [f"rm {path}", f"write {program} {path}", f"sif {path} mode 0100755"]
    tool("debugfs", "-w", "-f", "-", f"{raw}?offset={start}", text="\n".join(commands))
    tool("qemu-img", "convert", "-O", "qcow2", raw, disk)
    raw.unlink()
    stock = StockImage(
        base="debian-12", arch=arch, name=name, owner_id="000000000000", disk=disk,
        description=f"custom-init's disk with {program.name}",
        ssm_parameter=f"/aws/service/instant-env-benchmark/{name}",
        root_device_name="/dev/xvda", size_gib=2, boot_mode="uefi", digest=name, created=datetime.now(UTC),
    )  # fmt: skip
    return starter.register(bench.endpoint, stock)


@contextmanager
def prepared(settings: Settings) -> Iterator[Bench]:
    """A key pair and a group, gone afterwards."""
    endpoint = starter.up(settings)
    ec2: EC2Client = starter.client(endpoint, "ec2")
    key, name = asyncssh.generate_private_key("ssh-ed25519"), f"init-{os.urandom(4).hex()}"
    ec2.import_key_pair(KeyName=name, PublicKeyMaterial=key.export_public_key())
    group_id = ec2.create_security_group(GroupName=name, Description="SSH from this host")["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="127.0.0.1/32"
    )
    try:
        yield Bench(settings, endpoint, ec2, key, name, group_id)
    finally:
        ec2.delete_security_group(GroupId=group_id)
        ec2.delete_key_pair(KeyName=name)


def newest(ec2: EC2Client, arch: Arch) -> Any:
    filters: Any = [
        {"Name": "tag:instant-env:recipe", "Values": ["custom-init"]},
        {"Name": "architecture", "Values": [arch.value]},
    ]
    images = ec2.describe_images(Owners=["self"], Filters=filters)["Images"]
    if not images:
        raise SystemExit(f"no custom-init AMI for {arch}: run invoke bake --arch {arch} --recipe custom-init")
    return max(images, key=lambda image: image["CreationDate"])


def summary(launches: list[Figures]) -> dict[str, object]:
    """Median, least and most of every figure that all launches have."""
    common = set.intersection(*(set(launch) for launch in launches))
    return {
        name: {
            "p50": statistics.median(values := [launch[name] for launch in launches]),
            "min": min(values),
            "max": max(values),
        }
        for name in launches[0]
        if name in common
    }


def launch_once(bench: Bench, image_id: str, follow: Callable[[Machine], Awaitable[Figures]]) -> Figures:
    return asyncio.run(bench.launch(image_id, follow))


def compared(blocks: list[dict[str, Figures]]) -> dict[str, Any]:
    """Figures of each kind of launch, and custom-init's against the floor's; a block may lack what hung."""
    launches: dict[str, list[Figures]] = {}
    for block in blocks:
        for name, figures in block.items():
            launches.setdefault(name, []).append(figures)
    result: dict[str, Any] = {name: {"n": len(all_), **summary(all_)} for name, all_ in launches.items()}
    pairs = [
        (block["custom-init"], block["floor"]) for block in blocks if {"custom-init", "floor"} <= block.keys()
    ]
    for figure in ("t4_ms", "processor_ms") if pairs else ():
        ratios = [ours[figure] / floor[figure] for ours, floor in pairs]
        result[f"{figure}_to_floor"] = {
            "of_medians": round(result["custom-init"][figure]["p50"] / result["floor"][figure]["p50"], 3),
            "median_of_blocks": round(statistics.median(ratios), 3), "target": 1.2,
        }  # fmt: skip
    times = [
        block["custom-init"]["t4_ms"] / block["beside"]["t4_ms"]
        for block in blocks
        if {"custom-init", "beside"} <= block.keys()
    ]
    if times:
        result["t4_ms_to_beside"] = {"median_of_blocks": round(statistics.median(times), 3)}
    return result


def measure(bench: Bench, arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    arch = Arch(arguments.arch)
    image = newest(bench.ec2, arch)
    base = starter.ensure_stock(bench.settings, "debian-12", arch)
    follow = {"floor": bench.floor, "custom-init": bench.login("admin"), "cold": bench.login("admin")}
    packages = {"floor": "benchmarks/floor", "custom-init": "init"}
    programs = {name: go_build(package, arch, directory) for name, package in packages.items()}
    if arguments.beside:
        programs["beside"] = arguments.beside
        follow["beside"] = bench.login("admin")
    images = {name: register(bench, image, arch, path, directory) for name, path in programs.items()}
    images["cold"] = base
    load_1min, hangs = os.getloadavg()[0], Hangs()  # before we make some
    blocks: list[dict[str, Figures]] = []
    for number in range(arguments.blocks):
        order = [*programs, *(["cold"] if number < arguments.cold else [])]
        random.shuffle(order)
        blocks.append({})
        for name in order:
            figures = hangs.measured(name, partial(launch_once, bench, images[name], follow[name]))
            if figures is not None:
                blocks[-1][name] = figures
    result = compared(blocks)
    if "t4_ms_to_beside" in result:
        sizes = [programs[name].stat().st_size for name in ("custom-init", "beside")]
        result["t4_ms_to_beside"]["bytes"] = sizes
    return result | {
        "hangs": hangs.rows,
        "image": image["ImageId"],
        "machine": {
            "cores": os.cpu_count(), "kernel": platform.release(), "accelerator": bench.endpoint.accelerator,
            "qemu": tool("qemu-system-x86_64", "--version").splitlines()[0],
            "load_1min": [round(load_1min, 2), round(os.getloadavg()[0], 2)],
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what our init adds to a boot.")
    parser.add_argument("--arch", default="x86_64", choices=[arch.value for arch in Arch])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--cold", type=int, default=1, help="launches of the base, at most as many as blocks")
    parser.add_argument("--beside", type=Path, help="another build of instant-init, to compare with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="instant-env-init-") as name, prepared(load()) as bench:
        print(json.dumps(measure(bench, arguments, Path(name)), indent=1))


if __name__ == "__main__":
    main()
