"""Blocks from one snapshot into another, by boto3 from a real server: whole, once, and through throttling."""

from __future__ import annotations

import hashlib
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from instant_env.cloud.session import CloudError
from instant_env.localec2.qemu import disks
from instant_env.localec2.records.records import SnapshotRecord
from instant_env.localec2.state import faults
from instant_env.localec2.state.state import now
from instant_env.publish import transfer

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

BLOCK = transfer.BLOCK_BYTES
SOURCE = "snap-0123456789abcdef0"


def source(served: Served) -> str:
    """A snapshot of 1 GiB: ten blocks of data, one of zeros that were written, the rest holes."""
    path = served.state.layout.snapshot(SOURCE)
    disks.create(path, 1)
    for number in range(10):
        write = f"write -P {65 + number} {number * 7 * BLOCK} {BLOCK}"
        subprocess.run(["qemu-io", "-c", write, str(path)], check=True, capture_output=True)
    zeros = f"write -P 0 {1000 * BLOCK} {BLOCK}"
    subprocess.run(["qemu-io", "-c", zeros, str(path)], check=True, capture_output=True)
    record = SnapshotRecord(
        id=SOURCE, volume_id="vol-ffffffff", size_gib=1, description="", owner_id="123456789012",
        start_time=now(), state="completed",
    )  # fmt: skip
    with served.state.lock:
        served.state.save(record)
    return SOURCE


def client(served: Served) -> Any:
    retries: Any = {"mode": "standard", "max_attempts": 4}
    return served.client("ebs", config=Config(retries=retries, max_pool_connections=10))


def until_completed(served: Served, snapshot_id: str) -> None:
    for _ in range(500):
        if served.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"] == "completed":
            return
        time.sleep(0.02)
    pytest.fail(f"{snapshot_id} is not completed")


def strike(served: Served, body: str) -> None:
    served.services.fault_injector.inject(faults.parse(body.encode()))


def test_a_copy_is_the_same_bytes_and_leaves_zeros_out(served: Served) -> None:
    ebs, source_id = client(served), source(served)
    strike(served, '{"kind": "error", "action": "PutSnapshotBlock", "code": "RequestThrottledException"}')
    strike(served, '{"kind": "drop", "action": "PutSnapshotBlock", "when": "after"}')
    blocks = transfer.blocks_of(ebs, source_id)
    assert [block.index for block in blocks] == [*range(0, 70, 7), 1000]
    target = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    moved = list(transfer.copy(ebs, source_id, ebs, target, blocks, workers=4))
    digests = {one.index: one.digest for one in moved}
    assert digests.pop(1000) is None
    assert digests[7] == hashlib.sha256(b"B" * BLOCK).digest()
    transfer.seal(ebs, target, {index: digest for index, digest in digests.items() if digest})
    until_completed(served, target)
    layout = served.state.layout
    pair = [str(layout.snapshot(name)) for name in (source_id, target)]
    subprocess.run(["qemu-img", "compare", *pair], check=True, capture_output=True)
    assert layout.snapshot(target).stat().st_size < 8 << 20


def test_one_block_that_fails_for_good_ends_the_copy(served: Served) -> None:
    ebs, source_id = client(served), source(served)
    target = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    strike(
        served,
        '{"kind": "error", "action": "PutSnapshotBlock", "code": "AccessDeniedException", "status": 403}',
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        list(transfer.copy(ebs, source_id, ebs, target, transfer.blocks_of(ebs, source_id), workers=2))


def test_bytes_with_another_checksum_are_not_taken(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that flips bits: the checksum in the answer's header is that of other bytes."""
    ebs, source_id = client(served), source(served)
    (block, *_) = transfer.blocks_of(ebs, source_id)
    wrong = {"x-amz-Checksum": "A" * 43 + "=", "x-amz-Checksum-Algorithm": "SHA256"}
    monkeypatch.setattr("instant_env.localec2.api.ebs_direct.serve", lambda *_: (200, wrong, b"x" * BLOCK))
    with pytest.raises(CloudError, match=r"block 0 of snap-\w+ does not have the checksum"):
        transfer.read(ebs, source_id, block)
