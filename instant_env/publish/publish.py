"""`invoke publish`: an AMI that was baked in localec2 becomes one of another account, byte for byte.

Not shown on real EC2 yet: what is proved is publishing from one localec2 to another and booting the result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from instant_env.arch import Arch
from instant_env.cloud import runs
from instant_env.cloud.images import BakedImage, find_baked, list_baked, made_once
from instant_env.cloud.rules.consistency import repeat_while_unknown, wait_for_state
from instant_env.cloud.session import Cloud, CloudError, cloud_error, error_code
from instant_env.cloud.tags import PREFIX, Role, new_run_id, read_tags, tag_list
from instant_env.errors import UsageError
from instant_env.progress import Progress
from instant_env.publish import journal as journals
from instant_env.publish import transfer
from instant_env.publish.journal import Journal
from instant_env.publish.transfer import BLOCK_BYTES, Block, Moved, Standing, Watch

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import BlockDeviceMappingTypeDef, ImageTypeDef

#: Blocks under way at a time.
DEFAULT_WORKERS = 16
#: Repeated with back-off by botocore; coldsnap, which was made for this, takes as many.
_ATTEMPTS = 12
#: What is left of a publication that nobody went on with may go then.
_LIFETIME = timedelta(days=1)
#: EC2 takes seconds from CompleteSnapshot until a snapshot is completed.
_COMPLETE_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Volume:
    """A volume of the source image; ``blocks`` are those that hold something."""

    device: str
    snapshot_id: str
    size_gib: int
    volume_type: str
    delete_on_termination: bool
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Source:
    """What is to be published."""

    image: BakedImage
    description: ImageTypeDef
    volumes: tuple[Volume, ...]

    @property
    def size_blocks(self) -> int:
        """Blocks of all volumes, holes included."""
        return sum(volume.size_gib * 1024**3 // BLOCK_BYTES for volume in self.volumes)

    @property
    def listed_blocks(self) -> int:
        return sum(len(volume.blocks) for volume in self.volumes)

    def as_dict(self) -> dict[str, Any]:
        """For programs: what a dry run says."""
        return {
            "source": self.image.id,
            "name": self.image.name,
            "recipe": self.image.recipe,
            "arch": self.image.arch.value,
            "volumes": [
                {"device": item.device, "size_gib": item.size_gib, "blocks": len(item.blocks)}
                for item in self.volumes
            ],
            "blocks": self.size_blocks,
            "blocks_with_data": self.listed_blocks,
            "bytes_at_most": self.listed_blocks * BLOCK_BYTES,
        }


@dataclass(frozen=True)
class Published:
    """The outcome. ``seconds`` are those of this run, and so is the rate."""

    image_id: str
    snapshot_ids: tuple[str, ...]
    source: Source
    standing: Standing
    reused: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        new_blocks = self.standing.written - self.standing.written_before
        return {
            "ami": self.image_id,
            "snapshots": list(self.snapshot_ids),
            "source": self.source.image.id,
            "recipe": self.source.image.recipe,
            "arch": self.source.image.arch.value,
            "reused": self.reused,
            "blocks": self.source.size_blocks,
            "blocks_written": self.standing.written,
            "blocks_skipped": self.source.size_blocks - self.standing.written,
            "blocks_before": self.standing.before,
            "bytes_written": self.standing.written * BLOCK_BYTES,
            "seconds": round(self.seconds, 2),
            "mb_per_s": round(new_blocks * BLOCK_BYTES / 1e6 / self.seconds, 1) if self.seconds else 0.0,
        }


def check(cloud: str, which: str, recipe: str) -> None:
    """What can be known before anything is started. Raises UsageError."""
    if cloud != "aws":
        raise UsageError(f"--cloud {cloud}: an AMI is published to aws", hint="or to --to-endpoint URL")
    if which == "latest" and not recipe:
        raise UsageError("no recipe named", hint="--recipe minimal, or --ami with an id")


def find_source(cloud: Cloud, which: str, recipe: str, arch: Arch) -> Source:
    """The AMI to publish (an id, or ``latest`` of a recipe) and its blocks. Raises UsageError."""
    if which == "latest":
        image = find_baked(cloud, recipe, arch)
    else:
        images = [image for image in list_baked(cloud) if image.id == which]
        if not images:
            raise UsageError(
                f"{which} is not an AMI baked by instant-env in {cloud.name}", hint="run: invoke amis"
            )
        (image,) = images
    if image.state != "available" or not image.verified:
        raise UsageError(
            f"{image.id} is {image.state if image.state != 'available' else 'not verified'}",
            hint=f"bake it again: invoke bake --recipe {image.recipe} --arch {image.arch}",
        )
    ebs = _ebs(cloud, 1)
    with _as_cloud_errors(f"reading {image.id}"):
        description = cloud.ec2.describe_images(ImageIds=[image.id])["Images"][0]
        volumes = tuple(
            Volume(
                device=mapping["DeviceName"], snapshot_id=ebs_part["SnapshotId"],
                size_gib=ebs_part["VolumeSize"], volume_type=ebs_part.get("VolumeType", "gp3"),
                delete_on_termination=ebs_part.get("DeleteOnTermination", True),
                blocks=tuple(transfer.blocks_of(ebs, ebs_part["SnapshotId"])),
            )
            for mapping in description["BlockDeviceMappings"]
            if (ebs_part := mapping.get("Ebs", {})).get("SnapshotId")
        )  # fmt: skip
    return Source(image, description, volumes)


def publish(
    source_cloud: Cloud, target: Cloud, source: Source, *, workers: int = DEFAULT_WORKERS, progress: Progress,
    watch: Watch = lambda _: None,
) -> Published:  # fmt: skip
    """Copy the AMI's bytes to the target and register them; go on with what an interrupted run left.

    The AMI has the name, tags and volumes of its source, and demands IMDSv2. Where it was published before,
    that AMI is returned. Raises UsageError before anything is made, CloudError after; then what is there has
    our tags and an expiry, and the same call goes on with it.
    """
    started = time.monotonic()
    if workers < 1:
        raise UsageError(f"--workers {workers}: must be 1 or more", hint="16 is the default")
    image = source.image
    standing = Standing(total=source.listed_blocks)
    path = target.settings.state_dir / "publish" / f"{image.id}-{_target_key(target)}"
    with journals.opened(path, new_run_id()) as journal, runs.alive(target.settings, journal.run_id):
        blocks_before = sum(len(volume.blocks) for volume in journal.volumes.values())
        hint = "the same command goes on where this one stopped; `invoke clean` removes what it left"
        with _as_cloud_errors(f"publishing {image.id}", hint=hint):
            reused = _published_before(target, source)
            if reused is None:
                if journal.resumed and blocks_before:
                    progress(f"going on: {blocks_before} of {standing.total} blocks are there")
                client = _ebs(target, workers)
                snapshots = {}
                for volume in source.volumes:
                    snapshots[volume.device] = _publish_volume(
                        _ebs(source_cloud, workers), target, client, source, volume, journal, standing,
                        workers=workers, watch=watch, progress=progress,
                    )  # fmt: skip
                run_id = journal.run_id
                image_id = made_once(
                    target,
                    lambda: _register(target, source, snapshots, run_id),
                    name=source.image.name,
                    run_id=run_id,
                )
                # A new image's description may lack them, or be missing itself for a moment.
                ids = tuple(snapshots.values())
            else:
                image_id, ids = reused
            _finish(target, image_id, ids)
        journal.end()
    return Published(image_id, ids, source, standing, reused is not None, time.monotonic() - started)


def _ebs(cloud: Cloud, workers: int) -> Any:
    """A client of the EBS direct APIs that waits and repeats when it is throttled."""
    retries: Any = {"mode": "standard", "max_attempts": _ATTEMPTS}
    return cloud.client(
        "ebs",
        Config(retries=retries, max_pool_connections=max(10, workers), user_agent_extra="instant-env"),
    )


def _target_key(target: Cloud) -> str:
    """Which account, region and endpoint a journal is about."""
    try:
        account = target.client("sts").get_caller_identity()["Account"]
    except ClientError as error:
        raise cloud_error(error, "asking whose account this is") from error
    text = f"{account} {target.region} {target.endpoint_url or ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def _as_cloud_errors(doing: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise cloud_error(error, f"{doing}: {error.operation_name}", hint=hint) from error
    except BotoCoreError as error:
        raise CloudError(f"{doing}: {error}", hint=hint) from error
    except CloudError as error:
        raise CloudError(f"{doing}: {error.message}", hint=error.hint or hint) from error


def _published_before(target: Cloud, source: Source) -> tuple[str, tuple[str, ...]] | None:
    """The AMI that this one was published as, and its snapshots. Raises UsageError when its name is
    another's."""
    named: Any = [{"Name": "name", "Values": [source.image.name]}]
    for image in target.ec2.describe_images(Owners=["self"], Filters=named)["Images"]:
        if read_tags(image.get("Tags")).get(f"{PREFIX}published-from") != source.image.id:
            raise UsageError(
                f"{image['ImageId']} has the name {source.image.name} there already, and is not this AMI",
                hint="publish to another account or region",
            )
        mappings = image["BlockDeviceMappings"]
        return image["ImageId"], tuple(one["Ebs"]["SnapshotId"] for one in mappings if "Ebs" in one)
    return None


def _tags(source: Source, run_id: str, *, expires_at: datetime) -> Any:
    """Tags of the image and its snapshots: the source's own, the run's, and where it came from."""
    own = ("run", "role", "expires-at", "encryption")  # the last: as the target does by default
    extra = {
        key.removeprefix(PREFIX): value
        for key, value in read_tags(source.description.get("Tags")).items()
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in own
    }
    return tag_list(
        run_id, Role.IMAGE, name=source.image.name, expires_at=expires_at,
        extra=extra | {"published-from": source.image.id},
    )  # fmt: skip


def _publish_volume(
    source_ebs: Any, target: Cloud, ebs: Any, source: Source, volume: Volume, journal: Journal,
    standing: Standing, *, workers: int, watch: Watch, progress: Progress,
) -> str:  # fmt: skip
    """One volume's completed snapshot at the target."""
    record = journal.volumes[volume.device]
    state = _snapshot_state(target, record.snapshot_id)
    if state not in ("pending", "completed"):
        if state:  # it timed out
            target.ec2.delete_snapshot(SnapshotId=record.snapshot_id)
        snapshot_id = _start(ebs, source, volume, journal.run_id, record.starts)
        journal.snapshot(volume.device, snapshot_id)
        state = "pending"
    entry = journal.volumes[volume.device]
    before = [Moved(index, digest) for index, digest in entry.blocks.items()]
    standing.before += len(before)
    standing.written_before += len(entry.written)
    for moved in before:
        standing.count(moved)
    if state == "completed":
        return entry.snapshot_id
    remaining = [block for block in volume.blocks if block.index not in entry.blocks]
    progress(f"{volume.device}: {len(remaining)} blocks of 512 KiB to {entry.snapshot_id}")
    watch(standing)
    for moved in transfer.copy(
        source_ebs, volume.snapshot_id, ebs, entry.snapshot_id, remaining, workers=workers
    ):
        journal.block(volume.device, moved.index, moved.digest)
        standing.count(moved)
        watch(standing)
    transfer.seal(ebs, entry.snapshot_id, entry.written)
    _wait_completed(target, entry.snapshot_id)
    return entry.snapshot_id


def _start(ebs: Any, source: Source, volume: Volume, run_id: str, starts: int) -> str:
    """StartSnapshot; its client token makes a run that was killed before it knew find that snapshot."""
    token = hashlib.sha256(f"{run_id} {volume.device} {starts}".encode()).hexdigest()
    answer = ebs.start_snapshot(
        VolumeSize=volume.size_gib,
        Description=f"{source.image.name} {volume.device}, published from {source.image.id}"[:255],
        Tags=_tags(source, run_id, expires_at=_expiry_of(run_id)),
        ClientToken=token,
    )
    if answer["BlockSize"] != BLOCK_BYTES:
        raise CloudError(f"{answer['SnapshotId']} has blocks of {answer['BlockSize']} bytes")
    return str(answer["SnapshotId"])


def _expiry_of(run_id: str) -> datetime:
    """A day after the run began: the same in a repeated call, whose parameters must be the same."""
    return datetime.strptime(run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) + _LIFETIME


def _snapshot_state(target: Cloud, snapshot_id: str) -> str:
    if not snapshot_id:
        return ""
    try:
        return target.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"][0]["State"]
    except ClientError as error:
        if error_code(error) != "InvalidSnapshot.NotFound":
            raise
        return ""


def _wait_completed(target: Cloud, snapshot_id: str) -> None:
    def state() -> str:
        snapshots = target.ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        if not snapshots:
            return ""
        (snapshot,) = snapshots
        if snapshot["State"] not in ("pending", "completed"):
            said = f"{snapshot_id} is {snapshot['State']}: {snapshot.get('StateMessage', '')}"
            raise CloudError(said.strip(": "))
        return snapshot["State"]

    wait_for_state(state, "completed", snapshot_id, timeout_s=_COMPLETE_TIMEOUT_S)


def _register(target: Cloud, source: Source, snapshots: dict[str, str], run_id: str) -> str:
    """RegisterImage; the AMI expires until it is said to be whole."""
    image = source.description
    mappings: list[BlockDeviceMappingTypeDef] = [
        {
            "DeviceName": volume.device,
            "Ebs": {
                "SnapshotId": snapshots[volume.device],
                "VolumeSize": volume.size_gib,
                "VolumeType": volume.volume_type,  # type: ignore[typeddict-item]
                "DeleteOnTermination": volume.delete_on_termination,
            },
        }
        for volume in source.volumes
    ]
    return target.ec2.register_image(
        Name=source.image.name,
        Description=image.get("Description", ""),
        Architecture=image["Architecture"],
        BootMode=_boot_mode(image),
        EnaSupport=True,
        ImdsSupport="v2.0",
        VirtualizationType="hvm",
        RootDeviceName=image["RootDeviceName"],
        BlockDeviceMappings=mappings,
        TagSpecifications=[
            {"ResourceType": "image", "Tags": _tags(source, run_id, expires_at=_expiry_of(run_id))}
        ],
    )["ImageId"]


def _boot_mode(image: ImageTypeDef) -> Any:
    """The source's; Graviton has UEFI alone (EC2 User Guide, "Boot modes"), so that is what is said there."""
    return "uefi" if image["Architecture"] == "arm64" else image.get("BootMode", "uefi")


def _finish(target: Cloud, image_id: str, snapshot_ids: Sequence[str]) -> None:
    """Take the expiry from the AMI and its snapshots once it is available: they are to stay. Doing it again
    changes nothing."""

    def state() -> str:
        images = target.ec2.describe_images(ImageIds=[image_id])["Images"]
        return images[0]["State"] if images else ""

    wait_for_state(state, "available", image_id, timeout_s=_COMPLETE_TIMEOUT_S)
    expiry: Any = [{"Key": f"{PREFIX}expires-at"}]
    repeat_while_unknown(lambda: target.ec2.delete_tags(Resources=[image_id, *snapshot_ids], Tags=expiry))
