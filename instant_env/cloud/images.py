"""The AMIs we baked, read back from their tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from instant_env.arch import Arch
from instant_env.cloud.rules import consistency
from instant_env.cloud.session import Cloud, cloud_error, delete_once_unused, error_code
from instant_env.cloud.tags import PREFIX, PROJECT, PROJECT_FILTER, expiry, project_filter, read_tags
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import EbsBlockDeviceTypeDef, ImageTypeDef

#: What EC2 answers of a snapshot that an AMI has, or had a moment ago.
SNAPSHOT_IN_USE = "InvalidSnapshot.InUse"
_RELEASE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class BakedImage:
    """One AMI of ours. ``size_gib`` is the sum of its volumes, what begins with ``root_`` is of its root
    device; ``created`` is aware (UTC).

    ``manifest`` is the name of the file that says how it was made, where it was baked. ``encryption`` is
    none, default (the account's key), or the key of the request.

    An AMI has an expiry until it is verified: a bake that is killed leaves one that anyone may remove then.
    """

    id: str
    name: str
    state: str
    recipe: str
    arch: Arch
    base: str
    base_ami: str
    plan_hash: str
    login_user: str
    created: datetime
    size_gib: int
    snapshot_ids: tuple[str, ...]
    root_device: str = ""
    root_gib: int = 0
    root_snapshot_id: str = ""
    root_encrypted: bool = False
    root_volume_type: str = ""
    run_id: str = ""
    manifest: str = ""
    encryption: str = "default"
    parent_ami: str = ""
    """Of the recipe's parent, which it was baked from in place of ``base_ami``."""
    hibernates: bool = True
    """Whether its machines can; True for one of an older version, whose tags do not say."""
    expires_at: datetime | None = None

    @property
    def verified(self) -> bool:
        return self.expires_at is None


def _from_description(image: ImageTypeDef) -> BakedImage:
    tags = read_tags(image.get("Tags"))
    mappings = [mapping for mapping in image.get("BlockDeviceMappings", []) if "Ebs" in mapping]
    volumes = [mapping["Ebs"] for mapping in mappings]
    root_device = image.get("RootDeviceName", "")
    nothing: EbsBlockDeviceTypeDef = {}
    roots = [mapping["Ebs"] for mapping in mappings if mapping.get("DeviceName") == root_device]
    root = roots[0] if roots else nothing
    return BakedImage(
        id=image["ImageId"],
        name=image.get("Name", ""),
        state=image.get("State", ""),
        recipe=tags.get(f"{PREFIX}recipe", ""),
        arch=Arch.parse(image.get("Architecture", "")),
        base=tags.get(f"{PREFIX}base", ""),
        base_ami=tags.get(f"{PREFIX}base-ami", ""),
        plan_hash=tags.get(f"{PREFIX}plan-hash", ""),
        login_user=tags.get(f"{PREFIX}login-user", ""),
        created=datetime.fromisoformat(image["CreationDate"].replace("Z", "+00:00")),
        size_gib=sum(volume.get("VolumeSize", 0) for volume in volumes),
        snapshot_ids=tuple(volume["SnapshotId"] for volume in volumes if "SnapshotId" in volume),
        root_device=root_device,
        root_gib=root.get("VolumeSize", 0),
        root_snapshot_id=root.get("SnapshotId", ""),
        root_encrypted=root.get("Encrypted", False),
        root_volume_type=root.get("VolumeType", ""),
        run_id=tags.get(f"{PREFIX}run", ""),
        manifest=tags.get(f"{PREFIX}manifest", ""),
        encryption=tags.get(f"{PREFIX}encryption", "default"),
        parent_ami=tags.get(f"{PREFIX}parent-ami", ""),
        hibernates=tags.get(f"{PREFIX}hibernates", "yes") == "yes",
        expires_at=expiry(tags),
    )


def mark_verified(cloud: Cloud, image: BakedImage) -> None:
    """Take the expiry from an AMI and its snapshots: it is to stay."""
    try:
        cloud.ec2.delete_tags(
            Resources=[image.id, *image.snapshot_ids], Tags=[{"Key": f"{PREFIX}expires-at"}]
        )
    except ClientError as error:
        raise cloud_error(error, f"marking {image.id} as verified") from error


def list_baked(
    cloud: Cloud, *, recipe: str = "", arch: Arch | None = None, run_id: str = ""
) -> list[BakedImage]:
    """Our AMIs, newest first. An AMI counts when it carries the image role and a recipe."""
    tags = {"recipe": recipe, "run": run_id}
    filters = project_filter(role="image", **{key: value for key, value in tags.items() if value})
    if arch is not None:
        filters.append({"Name": "architecture", "Values": [arch.value]})
    try:
        pages = cloud.ec2.get_paginator("describe_images").paginate(Owners=["self"], Filters=filters)
        images = [_from_description(image) for page in pages for image in page["Images"]]
    except ClientError as error:
        raise cloud_error(error, "listing AMIs") from error
    return sorted(images, key=lambda image: (image.created, image.id), reverse=True)


def made_once(cloud: Cloud, make: Callable[[], str], *, name: str, run_id: str) -> str:
    """The id of the AMI that ``make`` makes, also where the answer was lost: that of its name and run.

    botocore's errors are passed on.
    """

    def same_name() -> Iterator[tuple[str, dict[str, str]]]:
        filters: Any = [{"Name": "name", "Values": [name]}]
        for image in cloud.ec2.describe_images(Owners=["self"], Filters=filters)["Images"]:
            yield image["ImageId"], read_tags(image.get("Tags"))

    ours = {"Project": PROJECT, f"{PREFIX}run": run_id}
    return consistency.made_once(make, same_name, code="InvalidAMIName.Duplicate", tags=ours)


def parameter_name(recipe: str, arch: Arch) -> str:
    """The SSM parameter that holds the newest verified AMI of a recipe."""
    return f"/instant-env/{recipe}/{arch.value}/latest"


def find_baked(cloud: Cloud, recipe: str, arch: Arch, which: str = "latest") -> BakedImage:
    """The AMI of a recipe: ``latest`` (what the SSM parameter names) or an AMI id.

    Raises UsageError when there is none, or the AMI is of another recipe or architecture.
    """
    bake = f"invoke bake --arch {arch} --recipe {recipe}"
    if which == "latest":
        try:
            which = cloud.ssm.get_parameter(Name=parameter_name(recipe, arch))["Parameter"]["Value"]
        except ClientError as error:
            if error_code(error) == "ParameterNotFound":
                raise UsageError(f"no {recipe} AMI for {arch} yet", hint=f"run: {bake}") from error
            raise cloud_error(error, "reading the latest AMI") from error
    for image in list_baked(cloud, recipe=recipe, arch=arch):
        if image.id == which and image.state == "available":
            return image
    raise UsageError(
        f"{which} is not an available {recipe} AMI for {arch} baked by instant-env", hint=f"run: {bake}"
    )


def deregister(cloud: Cloud, image_id: str) -> list[str]:
    """Deregister an AMI of ours and delete its snapshots; return the snapshots' ids. What is gone is fine.

    Only what carries our tag goes. A snapshot that another AMI has too stays, and one that EC2 calls used for
    longer than a minute is the next `clean`'s. They are deleted one by one: DeleteAssociatedSnapshots would
    take those that are not ours along, and not every endpoint knows it.
    """
    try:
        images = cloud.ec2.describe_images(ImageIds=[image_id], Filters=PROJECT_FILTER)["Images"]
        ids = [
            mapping["Ebs"]["SnapshotId"]
            for image in images
            for mapping in image.get("BlockDeviceMappings", [])
            if mapping.get("Ebs", {}).get("SnapshotId")
        ]
        ours: Any = [*PROJECT_FILTER, {"Name": "snapshot-id", "Values": ids}]
        snapshots = cloud.ec2.describe_snapshots(Filters=ours)["Snapshots"] if ids else []
        if images:
            cloud.ec2.deregister_image(ImageId=image_id)
    except ClientError as error:
        if error_code(error) in ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"):
            return []
        raise cloud_error(error, f"deregistering {image_id}", hint="run: invoke clean") from error
    deleted = []
    for snapshot in snapshots:
        snapshot_id = snapshot["SnapshotId"]
        try:
            if delete_snapshot(cloud, snapshot_id):
                deleted.append(snapshot_id)
        except ClientError as error:
            if error_code(error) != SNAPSHOT_IN_USE:
                raise cloud_error(
                    error, f"deleting {snapshot_id} of {image_id}", hint="run: invoke clean"
                ) from error
    return deleted


def delete_snapshot(cloud: Cloud, snapshot_id: str, *, timeout_s: float = _RELEASE_TIMEOUT_S) -> bool:
    """Delete a snapshot whose AMI was just deregistered; False when it is gone, or another AMI of ours has
    it.

    EC2 counts the AMI as its user for a little while (boto/boto#3019: one of five; hashicorp/packer#8598),
    and the deletion is repeated for that long. The last refusal is passed on.
    """
    try:
        return _delete_unless_shared(cloud, snapshot_id, timeout_s)
    except ClientError as error:
        if error_code(error) != "InvalidSnapshot.NotFound":
            raise
        return False


def _delete_unless_shared(cloud: Cloud, snapshot_id: str, timeout_s: float) -> bool:
    try:
        cloud.ec2.delete_snapshot(SnapshotId=snapshot_id)
    except ClientError as error:
        if error_code(error) != SNAPSHOT_IN_USE:
            raise
    else:
        return True
    pages = cloud.ec2.get_paginator("describe_images").paginate(Owners=["self"], IncludeDisabled=True)
    mappings = [item for page in pages for image in page["Images"] for item in image["BlockDeviceMappings"]]
    if any(item.get("Ebs", {}).get("SnapshotId") == snapshot_id for item in mappings):
        return False
    delete_once_unused(
        lambda: cloud.ec2.delete_snapshot(SnapshotId=snapshot_id), (SNAPSHOT_IN_USE,), timeout_s
    )
    return True
