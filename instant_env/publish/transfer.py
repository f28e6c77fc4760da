"""The bytes of one snapshot into another, of any two clouds, by the EBS direct APIs.

Several blocks at a time, each with its checksum, compared at every hand-over: what the source says it sent,
what we got, what the target got, and the aggregate of all of them at the end.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

from instant_env.cloud.session import CloudError

#: Bytes of a block (EBS User Guide, "Concepts for EBS direct APIs").
BLOCK_BYTES = 524_288
_ZEROS = bytes(BLOCK_BYTES)
#: Reads of a block that came with another checksum than it has.
_READS = 3


@dataclass(frozen=True)
class Block:
    """One block of the source, and the token to read it with."""

    index: int
    token: str


@dataclass(frozen=True)
class Moved:
    """What became of a block: its SHA-256, or None when it was nothing but zeros and so was left out."""

    index: int
    digest: bytes | None


def blocks_of(ebs: Any, snapshot_id: str) -> list[Block]:
    """The blocks of a snapshot that hold something, by ListSnapshotBlocks: the rest reads as zeros."""
    blocks: list[Block] = []
    more: dict[str, str] = {}
    while True:
        page = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, **more)
        if (size := page["BlockSize"]) != BLOCK_BYTES:
            raise CloudError(f"the blocks of {snapshot_id} have {size} bytes, not {BLOCK_BYTES}")
        blocks += [Block(item["BlockIndex"], item["BlockToken"]) for item in page.get("Blocks", [])]
        if not page.get("NextToken"):
            return blocks
        more = {"NextToken": page["NextToken"]}


def read(ebs: Any, snapshot_id: str, block: Block) -> tuple[bytes, bytes]:
    """The bytes of a block, and their SHA-256. Raises CloudError when they do not come whole."""
    for _ in range(_READS):
        answer = ebs.get_snapshot_block(
            SnapshotId=snapshot_id, BlockIndex=block.index, BlockToken=block.token
        )
        data: bytes = answer["BlockData"].read()
        digest = hashlib.sha256(data).digest()
        if len(data) == BLOCK_BYTES and base64.b64encode(digest).decode() == answer["Checksum"]:
            return data, digest
    raise CloudError(f"block {block.index} of {snapshot_id} does not have the checksum it came with")


def copy(
    source: Any, source_id: str, target: Any, target_id: str, blocks: list[Block], *, workers: int
) -> Iterator[Moved]:
    """Copy blocks, ``workers`` at a time; yields each when the target has answered.

    ``source`` and ``target`` are boto3 clients of the service ``ebs``, which repeat throttled calls.
    When one fails for good, or the caller stops, those under way are waited for (and yielded no more).
    Raises botocore's errors and CloudError.
    """

    def move(block: Block) -> Moved:
        data, digest = read(source, source_id, block)
        if data == _ZEROS:
            return Moved(block.index, None)
        target.put_snapshot_block(
            SnapshotId=target_id, BlockIndex=block.index, BlockData=data, DataLength=BLOCK_BYTES,
            Checksum=base64.b64encode(digest).decode(), ChecksumAlgorithm="SHA256",
        )  # fmt: skip
        return Moved(block.index, digest)

    waiting = iter(blocks)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="block")
    try:
        under_way: set[Future[Moved]] = {pool.submit(move, block) for block in islice(waiting, 2 * workers)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            under_way |= {pool.submit(move, block) for block in islice(waiting, len(done))}
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def seal(ebs: Any, snapshot_id: str, digests: dict[int, bytes]) -> None:
    """CompleteSnapshot, with the aggregate of the checksums: that of all of them in the blocks' order."""
    aggregate = hashlib.sha256(b"".join(digest for _, digest in sorted(digests.items()))).digest()
    ebs.complete_snapshot(
        SnapshotId=snapshot_id, ChangedBlocksCount=len(digests),
        Checksum=base64.b64encode(aggregate).decode(), ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )  # fmt: skip


Watch = Callable[["Standing"], None]


@dataclass
class Standing:
    """How far a publication is: blocks of all volumes that hold something."""

    total: int
    written: int = 0
    skipped: int = 0
    before: int = 0
    """Blocks that an earlier, interrupted run had done."""
    written_before: int = 0

    def count(self, moved: Moved) -> None:
        """One more block is done."""
        if moved.digest is None:
            self.skipped += 1
        else:
            self.written += 1

    @property
    def done(self) -> int:
        return self.written + self.skipped
