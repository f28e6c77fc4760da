"""What localec2 itself takes: of a call, of a launch, of fifty clients at once.

    .venv/bin/python benchmarks/localec2.py [--known 200] [--calls 100] [--launches 20] [--clients 50]

A private localec2 knows 200 instances: one stopped instance, copied as records to its state directory while
the server is down, so no machine runs for them. Times are those of an unmodified boto3 client on the same
host, its parsing of the answer included; `server` is the same call without boto3's parsing.

A launch is of an image of 64 MiB of random bytes, in which the firmware finds nothing to boot. The firmware
has started when QEMU says over QMP that the processors run, which is what makes the instance `running`;
the client asks for that without a pause, so the figure is an upper bound. Prints one JSON object; figures
of different machines are not comparable.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from instant_env.arch import Arch
from instant_env.localec2 import starter
from instant_env.localec2.records.layout import Layout
from instant_env.localec2.records.records import InstanceRecord, VolumeRecord
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.stock.model import StockImage
from instant_env.settings import Settings, load

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

#: Targets of the project, median milliseconds. Of describe_instances, boto3's parsing takes the most, and is
#: the same whoever answers.
TARGETS_MS = {"describe_instances_server": 50.0, "run_instances_to_pending": 50.0, "firmware_start": 300.0}
IMAGE_MIB = 64
INSTANCE_TYPE: Literal["t3.micro"] = "t3.micro"


def machine_facts(accelerator: str) -> dict[str, object]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(),
        "kernel": platform.release(), "qemu": version.stdout.splitlines()[0], "accelerator": accelerator,
    }  # fmt: skip


def new_id(prefix: str) -> str:
    return f"{prefix}-{os.urandom(9).hex()[:17]}"


def figures(times_ms: list[float]) -> dict[str, float]:
    """Median and 99th percentile (nearest rank) of milliseconds."""
    ordered = sorted(times_ms)
    p99 = ordered[min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)]
    return {
        "n": len(ordered), "min_ms": round(ordered[0], 2), "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(p99, 2), "max_ms": round(ordered[-1], 2),
    }  # fmt: skip


def timed(calls: int, call: Callable[[], object]) -> dict[str, float]:
    call()
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1000)
    return figures(times)


def register_image(endpoint: starter.Endpoint, directory: Path) -> str:
    """An image with bytes in it, so that a copy of them would show."""
    raw, disk = directory / "disk.raw", directory / "disk.qcow2"
    raw.write_bytes(os.urandom(IMAGE_MIB << 20))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)]
    subprocess.run(convert, check=True)
    image = StockImage(
        base="debian-12", arch=Arch.X86_64, name="benchmark", owner_id="136693071363", disk=disk,
        description="random bytes", ssm_parameter="/aws/service/debian/release/12/latest/amd64",
        root_device_name="/dev/xvda", size_gib=1, boot_mode="uefi", digest="benchmark-0001",
        created=datetime.now(UTC),
    )  # fmt: skip
    return starter.register(endpoint, image)


def seed(settings: Settings, count: int) -> None:
    """Copy the one instance there is, stopped, until there are this many (the server is down)."""
    store = RecordStore(Layout(settings.local_dir.resolve()).records)
    (instance,) = store.load_all(InstanceRecord)
    (volume,) = store.load_all(VolumeRecord)
    if volume.attachment is None:
        raise RuntimeError("the instance has lost its volume")
    subnet = ipaddress.ip_network(f"{instance.private_ip}/20", strict=False)  # the default VPC's
    free = (str(host) for host in list(subnet.hosts())[100:] if str(host) != instance.private_ip)
    for number in range(1, count):
        address = next(free)
        copy = instance.model_copy(
            update={
                "id": new_id("i"), "reservation_id": new_id("r"), "interface_id": new_id("eni"),
                "interface_attachment_id": new_id("eni-attach"), "private_ip": address,
                "mac_address": f"02:00:00:00:{number // 256:02x}:{number % 256:02x}",
                "client_token": None, "tags": {**instance.tags, "Name": f"known-{number}"},
            }
        )  # fmt: skip
        attachment = volume.attachment.model_copy(update={"instance_id": copy.id})
        store.save(copy)
        store.save(volume.model_copy(update={"id": new_id("vol"), "attachment": attachment}))


def raw_call(endpoint: starter.Endpoint, body: str) -> Callable[[], object]:
    """The same request over one connection, signed each time, its answer read and thrown away."""
    where = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    signer = SigV4Auth(
        Credentials(endpoint.access_key_id, endpoint.secret_access_key), "ec2", endpoint.region
    )

    def call() -> object:
        kind = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        request = AWSRequest(method="POST", url=endpoint.url + "/", data=body, headers=kind)
        signer.add_auth(request)
        connection.request("POST", "/", body, dict(request.headers.items()))
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content[:300])
        return content

    return call


def describe(endpoint: starter.Endpoint, ec2: EC2Client, calls: int) -> dict[str, object]:
    instance_id = ec2.describe_instances(MaxResults=5)["Reservations"][0]["Instances"][0]["InstanceId"]
    filters: Any = [
        {"Name": "tag:Project", "Values": ["instant-env"]},
        {"Name": "instance-state-name", "Values": ["stopped"]},
    ]
    return {
        "describe_instances": timed(calls, ec2.describe_instances),
        "describe_instances_server": timed(
            calls, raw_call(endpoint, "Action=DescribeInstances&Version=2016-11-15")
        ),
        "describe_instances_filtered": timed(calls, lambda: ec2.describe_instances(Filters=filters)),
        "describe_instances_one": timed(calls, lambda: ec2.describe_instances(InstanceIds=[instance_id])),
        "describe_volumes": timed(calls, ec2.describe_volumes),
    }


def launch(settings: Settings, ec2: EC2Client, image_id: str, launches: int) -> dict[str, object]:
    """One machine at a time."""
    pending, running, bytes_made = [], [], []
    for _ in range(launches):
        started = time.perf_counter()
        answer = ec2.run_instances(ImageId=image_id, InstanceType=INSTANCE_TYPE, MinCount=1, MaxCount=1)
        pending.append((time.perf_counter() - started) * 1000)
        instance_id = answer["Instances"][0]["InstanceId"]
        while state_of(ec2, instance_id) != "running":
            pass
        running.append((time.perf_counter() - started) * 1000)
        volumes = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance_id]}])
        for volume in volumes["Volumes"]:
            path = Layout(settings.local_dir.resolve()).volume(volume["VolumeId"])
            bytes_made.append(path.stat().st_blocks * 512)
        ec2.terminate_instances(InstanceIds=[instance_id])
        while state_of(ec2, instance_id) != "terminated":
            time.sleep(0.02)
    return {
        "run_instances_to_pending": figures(pending),
        "firmware_start": figures(running),
        "disk_bytes_of_a_new_volume": max(bytes_made),
        "disk_bytes_of_its_image": IMAGE_MIB << 20,
    }


def state_of(ec2: EC2Client, instance_id: str) -> str:
    answer = ec2.describe_instances(InstanceIds=[instance_id])
    return answer["Reservations"][0]["Instances"][0]["State"]["Name"]


def crowd(endpoint: starter.Endpoint, clients: int, rounds: int = 20) -> dict[str, object]:
    """Clients that all begin at once, without retries: reading, tagging, making and deleting key pairs."""
    times: list[float] = []
    errors: list[str] = []
    begin = threading.Barrier(clients + 1)
    connections = [starter.client(endpoint, "ec2") for _ in range(clients)]

    def one(number: int, ec2: EC2Client) -> None:
        begin.wait()
        for turn in range(rounds):
            name = f"client-{number}-{turn}"
            calls: list[Callable[[], object]] = [
                lambda: ec2.describe_images(Owners=["self"]),
                lambda name=name: ec2.create_key_pair(KeyName=name, KeyType="ed25519"),  # type: ignore[misc]
                lambda: ec2.describe_instances(MaxResults=5),
                lambda name=name: ec2.delete_key_pair(KeyName=name),  # type: ignore[misc]
            ]
            for call in calls:
                started = time.perf_counter()
                try:
                    call()
                except (BotoCoreError, ClientError) as error:
                    errors.append(f"{type(error).__name__}: {error}")
                times.append((time.perf_counter() - started) * 1000)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(connections)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - started
    return {
        "clients": clients, "errors": len(errors), "first_errors": errors[:3],
        "calls_per_s": round(len(times) / elapsed_s, 1), **figures(times),
    }  # fmt: skip


@contextmanager
def served(settings: Settings) -> Iterator[starter.Endpoint]:
    endpoint = starter.up(settings, lambda line: print(line, file=sys.stderr))
    try:
        yield endpoint
    finally:
        starter.down(settings)


def measure(settings: Settings, arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Seed, measure, end."""
    load_1min = os.getloadavg()[0]  # before we make some
    with served(settings) as endpoint:
        image_id = register_image(endpoint, directory)
        ec2 = starter.client(endpoint, "ec2")
        ours: Any = [{"ResourceType": "instance", "Tags": [{"Key": "Project", "Value": "instant-env"}]}]
        answer = ec2.run_instances(
            ImageId=image_id, InstanceType=INSTANCE_TYPE, MinCount=1, MaxCount=1, TagSpecifications=ours
        )
        instance_id = answer["Instances"][0]["InstanceId"]
        while state_of(ec2, instance_id) != "running":
            time.sleep(0.1)
        ec2.stop_instances(InstanceIds=[instance_id], Force=True)
        while state_of(ec2, instance_id) != "stopped":
            time.sleep(0.1)
    seed(settings, arguments.known)
    started = time.perf_counter()
    with served(settings) as endpoint:
        up_s = time.perf_counter() - started
        ec2 = starter.client(endpoint, "ec2")
        return {
            "known": arguments.known, "up_s": round(up_s, 2), "targets_p50_ms": TARGETS_MS,
            **describe(endpoint, ec2, arguments.calls),
            **launch(settings, ec2, image_id, arguments.launches),
            "crowd": crowd(endpoint, arguments.clients),
            "machine": machine_facts(endpoint.accelerator) | {"load_1min": round(load_1min, 2)},
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what localec2 itself takes.")
    parser.add_argument("--known", type=int, default=200)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="instant-env-localec2-") as name:
        directory = Path(name)
        settings = load({"state_dir": str(directory / "state")})
        print(json.dumps(measure(settings, arguments, directory), indent=1))


if __name__ == "__main__":
    main()
