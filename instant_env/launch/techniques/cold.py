"""The baseline: a stock image, launched as usual."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.images import BakedImage
from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import Role
from instant_env.errors import UsageError
from instant_env.launch.cloud_config import cloud_config, timer_config
from instant_env.launch.launched import Launched
from instant_env.launch.techniques.base import (
    ComparedVolume,
    LaunchSpec,
    PoolSlot,
    Prepared,
    Technique,
    run_instance,
)


class Cold(Technique):
    """RunInstances of the base that the compared AMIs were baked from.

    Does: launch the stock image, unchanged; systemd and cloud-init bring it to SSH.
    Needs: at least one AMI of ours, whose tags name its base AMI, so that like is compared with like.
    Saves: nothing; everything else is measured against it.

    Measured, it has a key pair, a root volume encrypted, and of the type, as those of the AMIs that it is
    compared with, and its user data is a cloud-config with one command, which arms the timer that ends it
    (docs/bases.md says what that costs). Launched without a key pair it is somebody's, and gets key and
    timer by cloud-config.
    """

    name = "cold"
    recipe = None

    def prepare(self, cloud: Cloud, images: Mapping[str, BakedImage]) -> Prepared:
        if not images:
            raise UsageError(
                "cold launches the base of the AMI it is compared with, and there is none yet",
                hint="run: invoke bake --recipe minimal",
            )
        newest = max(images.values(), key=lambda image: (image.created, image.id))
        others = sorted(image.recipe for image in images.values() if image.base_ami != newest.base_ami)
        try:
            bases = cloud.ec2.describe_images(ImageIds=[newest.base_ami])["Images"]
        except ClientError as error:
            if not error_code(error).startswith("InvalidAMIID"):
                raise
            raise UsageError(
                f"{newest.base_ami}, the base of {newest.id}, is gone",
                hint=f"bake from the current one: invoke bake --arch {newest.arch} --recipe {newest.recipe}",
            ) from error
        base = bases[0]
        root_device = base.get("RootDeviceName", "")
        volumes = base.get("BlockDeviceMappings", [])
        roots: list[Any] = [v.get("Ebs", {}) for v in volumes if v.get("DeviceName") == root_device]
        root = roots[0] if roots else {}
        notes = [f"{', '.join(others)} baked from another base than {newest.base_ami}"] if others else []
        if len({(image.root_encrypted, image.root_volume_type) for image in images.values()}) > 1:
            notes.append(f"root volumes of the AMIs differ; cold's is as that of {newest.id}")
        own = (root.get("Encrypted", False), root.get("VolumeType", ""))
        is_like = own == (newest.root_encrypted, newest.root_volume_type)
        return Prepared(
            image_id=newest.base_ami,
            username=newest.login_user,
            base_ami=newest.base_ami,
            root_device=root_device,
            root_gib=root.get("VolumeSize", 0),
            note="; ".join(notes),
            compared_volume=None if is_like else _volume_of(newest),
        )

    def user_data(self, spec: LaunchSpec) -> str | None:
        if not spec.key_name:
            return cloud_config(spec.public_key, spec.expires_at)
        return timer_config(spec.user_data.ttl_s) if spec.user_data.ttl_s else None

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        del slot
        if spec.role is Role.BENCH and prepared.compared_volume is not None:
            spec = _as_compared(spec, prepared.compared_volume)
        return run_instance(cloud, prepared, spec, user_data=self.user_data(spec))


def _volume_of(image: BakedImage) -> ComparedVolume:
    own_key = image.encryption not in ("none", "default")
    return ComparedVolume(image.root_encrypted, image.root_volume_type, image.encryption if own_key else None)


def _as_compared(spec: LaunchSpec, volume: ComparedVolume) -> LaunchSpec:
    """With a root volume as the other techniques have it. A volume made from an encrypted snapshot is not
    made as one from a plain snapshot is (measured by martysweet.co.uk/ec2-launch-times, 2023), and that is
    not what a race is about. Encryption cannot be taken away from a base that has it."""
    options = dataclasses.replace(
        spec.options,
        encrypted=spec.options.encrypted or volume.encrypted,
        kms_key_id=spec.options.kms_key_id or volume.kms_key_id,
        volume_type=spec.options.volume_type or volume.volume_type or None,
    )
    return dataclasses.replace(spec, options=options)
