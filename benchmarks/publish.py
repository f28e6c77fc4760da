"""What publishing costs: MB/s from one localec2 to another, and the share of blocks that is skipped.

    .venv/bin/python benchmarks/publish.py [--data-mib 512] [--size-gib 8] [--workers 1 4 16] [--runs 3]

Two private servers. The image has random bytes in runs of 3 MiB that begin at odd places, with holes between,
and some blocks that were written with zeros: they are read, found to be zeros, and left out. Nothing boots.
Both servers and the client share this computer's processors, so on EC2 the figure is another one. MB/s are of
the blocks that were written, from the first call to the registered AMI. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instant_env.arch import Arch
from instant_env.cloud.session import Cloud, connect
from instant_env.cloud.tags import Role, tag_list
from instant_env.localec2 import starter
from instant_env.publish import publish
from instant_env.publish.transfer import BLOCK_BYTES
from instant_env.settings import AcceleratorChoice, CloudName, Settings

MIB = 1 << 20


def make_disk(path: Path, size_gib: int, data_mib: int) -> None:
    """The disk to publish, as qcow2."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", f"{path}.raw", f"{size_gib}G"], check=True)
    runs = data_mib // 3
    apart = size_gib * 1024 * MIB // (runs + 1)
    with Path(f"{path}.raw").open("r+b") as raw:
        for number in range(runs):
            raw.seek(number * apart + 4096)
            raw.write(os.urandom(3 * MIB))
    convert = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", f"{path}.raw", str(path)]
    subprocess.run(convert, check=True)
    Path(f"{path}.raw").unlink()
    script = [f"write -q {number * apart + 8 * MIB} {BLOCK_BYTES}" for number in range(data_mib // 5)]
    words = [word for line in script for word in ("-c", line.replace("write -q", "write -q -P 0"))]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, str(path)], check=True, capture_output=True)


def register(cloud: Cloud, endpoint: starter.Endpoint, disk: Path, size_gib: int) -> str:
    """The disk as an image of this account's own."""
    body = {
        "base": "debian-12", "arch": "x86_64", "name": "to publish", "owner_id": "136693071363",
        "ssm_parameter": "/aws/service/debian/release/12/latest/amd64", "root_device_name": "/dev/xvda",
        "disk": str(disk), "size_gib": size_gib, "boot_mode": "uefi", "digest": "publish-benchmark",
        "created": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    stock = starter._own_route(endpoint, "stock-images", json.dumps(body).encode(), 600.0)["image_id"]
    tags: Any = tag_list("r", Role.IMAGE, name="to publish", extra={"recipe": "benchmark"})
    image_id = cloud.ec2.copy_image(
        Name="benchmark", SourceImageId=stock, SourceRegion=cloud.region,
        TagSpecifications=[{"ResourceType": "image", "Tags": tags}],
    )["ImageId"]  # fmt: skip
    while cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"] == "pending":
        time.sleep(0.05)
    return image_id


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-mib", type=int, default=512)
    parser.add_argument("--size-gib", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="publish-"))
    places = [
        Settings(
            cloud=CloudName.LOCAL, state_dir=directory / name, accelerator=AcceleratorChoice.TCG
        )
        for name in ("from", "to")
    ]  # fmt: skip
    rows = []
    try:
        source_cloud, target = (connect(place) for place in places)
        make_disk(directory / "disk.qcow2", options.size_gib, options.data_mib)
        image_id = register(
            source_cloud, starter.running(places[0]), directory / "disk.qcow2", options.size_gib
        )
        source = publish.find_source(source_cloud, image_id, "", Arch.X86_64)
        for run in range(options.runs):
            for workers in options.workers:
                result = publish.publish(
                    source_cloud, target, source, workers=workers, progress=lambda _: None
                )
                rows.append({"run": run, "workers": workers, **result.as_dict()})
                target.ec2.deregister_image(ImageId=result.image_id, DeleteAssociatedSnapshots=True)
    finally:
        for place in places:
            starter.down(place)
        shutil.rmtree(directory)
    facts = {
        "cpu": cpu_model(), "cores": os.cpu_count(), "linux": platform.release(),
        "load": round(os.getloadavg()[0], 1), "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
    }  # fmt: skip
    columns = ("run", "workers", "seconds", "mb_per_s", "blocks", "blocks_written", "blocks_skipped")
    print(json.dumps({"machine": facts, "runs": [{k: row[k] for k in columns} for row in rows]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
