"""The baseline: a stock image, launched as usual."""

from __future__ import annotations

from collections.abc import Mapping

from botocore.exceptions import ClientError

from instant_env.cloud.images import BakedImage
from instant_env.cloud.session import Cloud, error_code
from instant_env.errors import UsageError
from instant_env.launch.cloud_config import cloud_config, timer_config
from instant_env.launch.launched import Launched
from instant_env.launch.techniques.base import LaunchSpec, PoolSlot, Prepared, Technique, run_instance


class Cold(Technique):
    """RunInstances of the base that the compared AMIs were baked from.

    Does: launch the stock image, unchanged; systemd and cloud-init bring it to SSH.
    Needs: at least one AMI of ours, whose tags name its base AMI, so that like is compared with like.
    Saves: nothing; everything else is measured against it.

    Measured, it has a key pair, and its user data is a cloud-config with one command, which arms the timer
    that ends it (docs/bases.md says what that costs). Launched without a key pair it is somebody's, and
    gets key and timer by cloud-config.
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
        sizes = [v.get("Ebs", {}).get("VolumeSize", 0) for v in volumes if v.get("DeviceName") == root_device]
        return Prepared(
            image_id=newest.base_ami,
            username=newest.login_user,
            base_ami=newest.base_ami,
            root_device=root_device,
            root_gib=sizes[0] if sizes else 0,
            note=f"{', '.join(others)} baked from another base than {newest.base_ami}" if others else "",
        )

    def user_data(self, spec: LaunchSpec) -> str | None:
        if not spec.key_name:
            return cloud_config(spec.public_key, spec.expires_at)
        return timer_config(spec.user_data.ttl_s) if spec.user_data.ttl_s else None

    def launch(self, cloud: Cloud, prepared: Prepared, spec: LaunchSpec, slot: PoolSlot) -> Launched:
        del slot
        return run_instance(cloud, prepared, spec, user_data=self.user_data(spec))
