"""The EBS direct APIs: blocks that are written are the snapshot's bytes, and what is refused, by boto3."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.localec2_served import completed, holds, launch, volume_of, write
from support.localec2_served import state_of as launched_state
from support.patience import until

from instant_env.localec2.state import faults
from instant_env.localec2.state.state import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

BLOCK = 524_288


def sha(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def block_of(letter: str) -> bytes:
    return letter.encode() * BLOCK


def put(ebs: Any, snapshot_id: str, index: int, data: bytes, **other: Any) -> Any:
    arguments = {"DataLength": BLOCK, "Checksum": sha(data), "ChecksumAlgorithm": "SHA256"} | other
    return ebs.put_snapshot_block(SnapshotId=snapshot_id, BlockIndex=index, BlockData=data, **arguments)


def complete(ebs: Any, snapshot_id: str, blocks: dict[int, bytes], **other: Any) -> Any:
    aggregate = sha(b"".join(hashlib.sha256(data).digest() for _, data in sorted(blocks.items())))
    arguments: dict[str, Any] = {
        "ChangedBlocksCount": len(blocks), "Checksum": aggregate, "ChecksumAlgorithm": "SHA256",
        "ChecksumAggregationMethod": "LINEAR",
    }  # fmt: skip
    return ebs.complete_snapshot(SnapshotId=snapshot_id, **arguments | other)


def refusal(call: Callable[[], Any]) -> tuple[int, str, str | None]:
    with pytest.raises(ClientError) as caught:
        call()
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"], answer.get("Reason")  # type: ignore[return-value]


def state_of(served: Served, snapshot_id: str) -> str:
    return served.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"]


def start(ebs: Any, **more: Any) -> str:
    return str(ebs.start_snapshot(**{"VolumeSize": 1} | more)["SnapshotId"])


def test_what_is_written_can_be_registered_and_read_back(served: Served) -> None:
    ebs = served.client("ebs")
    tags = [{"Key": "Project", "Value": "p"}]
    made = ebs.start_snapshot(VolumeSize=1, Description="from afar", Tags=tags, Encrypted=True)
    assert (made["Status"], made["BlockSize"], made["VolumeSize"]) == ("pending", BLOCK, 1)
    snapshot_id, blocks = made["SnapshotId"], {7: block_of("c"), 0: block_of("a"), 2047: block_of("z")}
    put(ebs, snapshot_id, 0, block_of("x"))  # is overwritten
    for index, data in blocks.items():
        assert put(ebs, snapshot_id, index, data)["Checksum"] == sha(data)
    assert state_of(served, snapshot_id) == "pending"
    assert complete(ebs, snapshot_id, blocks)["Status"] == "pending"
    found = completed(served, snapshot_id)
    assert (found["VolumeSize"], found["Description"], found["Tags"]) == (1, "from afar", tags)
    assert complete(ebs, snapshot_id, blocks)["Status"] == "completed"  # a repeated call, its answer lost
    assert sorted(path.name for path in served.state.layout.snapshots.iterdir()) == [f"{snapshot_id}.qcow2"]

    listed = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    assert (listed["VolumeSize"], listed["BlockSize"]) == (1, BLOCK)
    assert [item["BlockIndex"] for item in listed["Blocks"]] == [0, 7, 2047]
    for item in listed["Blocks"]:
        answer = ebs.get_snapshot_block(SnapshotId=snapshot_id, **item)
        assert answer["BlockData"].read() == blocks[item["BlockIndex"]]
        assert answer["Checksum"] == sha(blocks[item["BlockIndex"]])
    image_id = served.ec2.register_image(
        Name="published", Architecture="x86_64", RootDeviceName="/dev/xvda", VirtualizationType="hvm",
        BootMode="uefi",
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}],
    )["ImageId"]  # fmt: skip
    instance_id = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)[
        "Instances"
    ][0]["InstanceId"]
    until(lambda: launched_state(served, instance_id) == "running")
    volume = served.state.layout.volume(volume_of(served, instance_id))
    assert [holds(volume, letter, str(at * BLOCK)) for at, letter in ((0, "a"), (7, "c"), (2047, "z"))] == [
        True
    ] * 3


def test_an_upload_goes_on_after_a_restart_and_a_sealed_one_is_finished(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ebs = served.client("ebs")
    open_id = start(ebs)
    put(ebs, open_id, 3, block_of("a"))
    sealed_id = start(ebs)
    put(ebs, sealed_id, 1, block_of("b"))
    monkeypatch.setattr(served.services.uploads, "_seal", lambda _: None)  # killed before it began
    complete(ebs, sealed_id, {1: block_of("b")})
    with served.state.layout.upload_log(open_id).open("ab") as log:
        log.write(b"torn")
    served.restart()
    ebs = served.client("ebs")
    completed(served, sealed_id)
    assert holds(served.state.layout.snapshot(sealed_id), "b", str(BLOCK))
    put(ebs, open_id, 4, block_of("d"))
    complete(ebs, open_id, {3: block_of("a"), 4: block_of("d")})
    completed(served, open_id)


def test_a_client_token_makes_one_snapshot(served: Served) -> None:
    ebs = served.client("ebs")
    first = start(ebs, ClientToken="t", Description="one")
    assert start(ebs, ClientToken="t", Description="one") == first
    assert refusal(lambda: start(ebs, ClientToken="t", Description="two"))[:2] == (409, "ConflictException")
    assert start(ebs, ClientToken="u", Description="one") != first


def test_bad_blocks_and_sums_are_refused(served: Served) -> None:
    ebs, data = served.client("ebs"), block_of("a")
    snapshot_id = start(ebs)
    wrong, short = (
        (400, "ValidationException", "INVALID_PARAMETER_VALUE"),
        (400, "ValidationException", "INVALID_BLOCK"),
    )
    assert refusal(lambda: put(ebs, snapshot_id, 0, data, Checksum=sha(b"other"))) == wrong
    assert refusal(lambda: put(ebs, snapshot_id, 0, data[:512], DataLength=512)) == short
    assert refusal(lambda: put(ebs, snapshot_id, 2048, data)) == short
    put(ebs, snapshot_id, 0, data)
    assert refusal(lambda: complete(ebs, snapshot_id, {0: data}, ChangedBlocksCount=2)) == wrong
    assert refusal(lambda: complete(ebs, snapshot_id, {0: block_of("b")})) == wrong
    complete(ebs, snapshot_id, {0: data})
    completed(served, snapshot_id)
    assert refusal(lambda: put(ebs, snapshot_id, 1, data)) == (
        400,
        "ValidationException",
        "INVALID_SNAPSHOT_ID",
    )
    missing = (404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND")
    assert refusal(lambda: put(ebs, "snap-0123456789abcdef0", 0, data)) == missing
    assert refusal(lambda: ebs.list_snapshot_blocks(SnapshotId="snap-0123456789abcdef0")) == missing
    token = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"][0]["BlockToken"]
    other = {"SnapshotId": snapshot_id, "BlockIndex": 1, "BlockToken": token}
    assert refusal(lambda: ebs.get_snapshot_block(**other)) == (
        400,
        "ValidationException",
        "INVALID_BLOCK_TOKEN",
    )
    assert refusal(lambda: start(ebs, KmsKeyArn="arn:aws:kms:us-east-1:123456789012:key/k"))[0] == 400
    assert refusal(lambda: start(ebs, VolumeSize=70_000)) == (
        400,
        "ValidationException",
        "INVALID_VOLUME_SIZE",
    )
    reserved = [{"Key": "aws:x", "Value": "y"}]
    assert refusal(lambda: start(ebs, Tags=reserved)) == (400, "ValidationException", "INVALID_TAG")


def test_strangers_and_others_snapshots_are_refused(served: Served) -> None:
    stranger = served.client("ebs", aws_secret_access_key="guess")
    assert refusal(lambda: start(stranger))[:2] == (403, "SignatureDoesNotMatch")
    image = served.state.images[served.register()]
    denied = (403, "AccessDeniedException", "UNAUTHORIZED_ACCOUNT")
    assert refusal(lambda: served.client("ebs").list_snapshot_blocks(SnapshotId=image.snapshot_id)) == denied


def test_an_upload_that_nobody_goes_on_with_is_given_up(served: Served) -> None:
    ebs = served.client("ebs")
    old, young, deleted = start(ebs, Timeout=10), start(ebs, Timeout=30), start(ebs)
    then = time.time() - 15 * 60
    for snapshot_id in (old, young):
        put(ebs, snapshot_id, 0, block_of("a"))
        os.utime(served.state.layout.upload_log(snapshot_id), (then, then))
    late = (400, "ValidationException", "WRITE_REQUEST_TIMEOUT")
    assert refusal(lambda: put(ebs, old, 1, block_of("a"))) == late
    served.ec2.delete_snapshot(SnapshotId=deleted)
    with served.state.lock:
        served.services.uploads.expire(now() + timedelta(seconds=1))
    assert [state_of(served, name) for name in (old, young)] == ["error", "pending"]
    left = {path.stem for path in served.state.layout.snapshots.iterdir()}
    assert left == {young}


def test_lists_come_in_pages_and_changes_are_found(served: Served) -> None:
    ebs = served.client("ebs")
    volume = volume_of(served, launch(served))
    write(served.state.layout.volume(volume), "a")
    write(served.state.layout.volume(volume), "b", "150M")
    first = served.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    completed(served, first)
    write(served.state.layout.volume(volume), "c", "150M")
    write(served.state.layout.volume(volume), "d", "300M")
    second = served.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    completed(served, second)
    changed = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)["ChangedBlocks"]
    assert [item["BlockIndex"] for item in changed] == [300, 600]
    assert ["FirstBlockToken" in item for item in changed] == [True, False]
    token = changed[0]["FirstBlockToken"]
    data = ebs.get_snapshot_block(SnapshotId=first, BlockIndex=300, BlockToken=token)["BlockData"].read()
    assert data == b"b" * 65536 + bytes(BLOCK - 65536)
    served.services.blocks.close_idle(0)
    assert served.services.blocks._raws == {}

    snapshot_id, blocks = start(ebs), {index: block_of("a") for index in range(0, 202, 2)}
    for index, data in blocks.items():
        put(ebs, snapshot_id, index, data)
    complete(ebs, snapshot_id, blocks)
    completed(served, snapshot_id)
    page = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=100)
    rest = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=100, NextToken=page["NextToken"])
    assert [item["BlockIndex"] for item in [*page["Blocks"], *rest["Blocks"]]] == list(blocks)
    assert "NextToken" not in rest
    unrelated = (400, "ValidationException", "UNRELATED_SNAPSHOTS")
    both = {"FirstSnapshotId": first, "SecondSnapshotId": snapshot_id}
    assert refusal(lambda: ebs.list_changed_blocks(**both)) == unrelated


def test_faults_strike_these_apis_too(served: Served) -> None:
    ebs = served.client("ebs")
    fault = b'{"kind": "error", "action": "StartSnapshot", "code": "RequestThrottledException"}'
    served.services.fault_injector.inject(faults.parse(fault))
    assert refusal(lambda: start(ebs))[:2] == (400, "RequestThrottledException")
    start(ebs)
