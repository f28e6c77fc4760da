"""Which AMI a base is now: by SSM parameter, by name, or by id; its owner and architecture checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from instant_env.arch import Arch
from instant_env.bake.recipe import Base
from instant_env.cloud.session import Cloud, CloudError, cloud_error
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import ImageTypeDef


@dataclass(frozen=True)
class BaseImage:
    """An AMI to bake from. ``created`` is EC2's CreationDate, ISO 8601 in UTC; ``boot_mode`` is
    empty where the AMI does not say."""

    id: str
    name: str
    created: str
    owner: str
    root_device: str
    size_gib: int
    found_by: str
    boot_mode: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "created": self.created, "owner": self.owner}


def find(cloud: Cloud, base: Base, arch: Arch, reference: str | None = None) -> BaseImage:
    """The AMI that ``base`` stands for on this cloud, or the one that ``reference`` names instead.

    A reference is an AMI id (``ami-...``), an SSM parameter (``/...``), or a name with ``*`` and ``?``, of
    which the newest available AMI counts. Only AMIs of the base's owners are taken: names are anybody's.
    Raises UsageError for another architecture or owner, CloudError when there is none.
    """
    by = reference or base.reference_for(arch)
    doing = f"looking for base {base.base} by {by}"
    try:
        images = _images(cloud, base, arch, by)
    except ClientError as error:
        raise cloud_error(error, doing) from error
    if not images:
        raise CloudError(f"{doing}: no such AMI in {cloud.region}", hint=f"correct {_where(base, reference)}")
    image = max(images, key=lambda image: image.get("CreationDate", ""))
    _check(image, base, arch, _where(base, reference))
    return _described(image, by)


def own(cloud: Cloud, image_id: str, found_by: str) -> BaseImage:
    """An AMI of this account to bake from: a parent's. Raises CloudError when it has gone."""
    doing = f"looking for {image_id}"
    try:
        images = cloud.ec2.describe_images(ImageIds=[image_id], Owners=["self"])["Images"]
    except ClientError as error:
        raise cloud_error(error, doing) from error
    if not images:
        raise CloudError(f"{doing}: no such AMI of this account in {cloud.region}", hint="run the bake again")
    return _described(images[0], found_by)


def _described(image: ImageTypeDef, by: str) -> BaseImage:
    (root,) = [m["Ebs"] for m in image["BlockDeviceMappings"] if m["DeviceName"] == image["RootDeviceName"]]
    return BaseImage(
        id=image["ImageId"],
        name=image.get("Name", ""),
        created=image.get("CreationDate", ""),
        owner=image.get("OwnerId", ""),
        root_device=image["RootDeviceName"],
        size_gib=root.get("VolumeSize", 0),
        found_by=by,
        boot_mode=image.get("BootMode", ""),
    )


def newer_than_facts(base: Base, image: BaseImage) -> str:
    """A line for people where the AMI is newer than what recipes/bases says of it; else an empty text."""
    if base.facts.as_of is None or image.created[:10] <= base.facts.as_of.isoformat():
        return ""
    return (
        f"note: {image.id} is of {image.created[:10]}, newer than the facts in recipes/bases/{base.base}.yml "
        f"({base.facts.as_of}): preflight names each that differs"
    )


def _images(cloud: Cloud, base: Base, arch: Arch, by: str) -> list[ImageTypeDef]:
    if by.startswith("/"):
        by = cloud.ssm.get_parameter(Name=by)["Parameter"]["Value"]
    if by.startswith("ami-"):
        return cloud.ec2.describe_images(ImageIds=[by])["Images"]
    filters = {"name": by, "architecture": arch.value, "state": "available"}
    pages = cloud.ec2.get_paginator("describe_images").paginate(
        Owners=base.owners, Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()]
    )
    return [image for page in pages for image in page["Images"]]


def _where(base: Base, reference: str | None) -> str:
    return "--base-ami" if reference else f"recipes/bases/{base.base}.yml"


def _check(image: ImageTypeDef, base: Base, arch: Arch, where: str) -> None:
    ami = image["ImageId"]
    if image["Architecture"] != arch.value:
        raise UsageError(
            f"base {base.base}: {ami} is {image['Architecture']}, not {arch}", hint=f"correct {where}"
        )
    if not {image.get("OwnerId", ""), image.get("ImageOwnerAlias", "")} & set(base.owners):
        raise UsageError(
            f"base {base.base}: {ami} belongs to {image.get('OwnerId')}, not to {' or '.join(base.owners)}",
            hint=f"if you trust that account, name it in owners of recipes/bases/{base.base}.yml",
        )
