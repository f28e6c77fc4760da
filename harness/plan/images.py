"""Which AMIs a run compares."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from instant_env.arch import Arch
from instant_env.cloud.images import BakedImage, find_baked, list_baked
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.launch.techniques import BASELINE, TECHNIQUES, find_technique


def choose(
    cloud: Cloud, arch: Arch, ami: str, names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, BakedImage]]:
    """The techniques to run and our AMIs by recipe.

    ``ami`` is ``latest`` or the id of one of our AMIs, which then stands for its recipe; other recipes give
    their latest. Without ``names``: cold and every technique whose AMI there is, or, given an AMI id, cold
    and the technique of that AMI. Raises UsageError for unknown names and AMIs, and when nothing is baked.
    """
    requested = [find_technique(name) for name in names] if names else None
    images: dict[str, BakedImage] = {}
    if ami != "latest":
        named = _by_id(cloud, arch, ami)
        images[named.recipe] = named
    if requested is None:
        if ami == "latest":
            _add_latest(cloud, arch, images)
        chosen = [
            name
            for name, technique in TECHNIQUES.items()
            if technique.raced_by_default and technique.recipe in images
        ]
        if not chosen:
            raise UsageError(
                f"no {arch} AMI to compare with cold yet",
                hint=f"run: invoke bake --arch {arch} --recipe minimal",
            )
        return (BASELINE, *chosen), images
    for technique in requested:
        if technique.recipe and technique.recipe not in images:
            images[technique.recipe] = find_baked(cloud, technique.recipe, arch)
    if not images:  # cold alone: the base of whatever there is
        _add_latest(cloud, arch, images)
    return tuple(technique.name for technique in requested), images


def _by_id(cloud: Cloud, arch: Arch, ami: str) -> BakedImage:
    for image in list_baked(cloud, arch=arch):
        if image.id == ami:
            return find_baked(cloud, image.recipe, arch, ami)
    raise UsageError(f"{ami} is not an AMI for {arch} baked by instant-env", hint="see: invoke amis")


def _add_latest(cloud: Cloud, arch: Arch, images: dict[str, BakedImage]) -> None:
    """Add each technique's latest AMI, where there is one."""
    for technique in TECHNIQUES.values():
        if technique.recipe is not None:
            with contextlib.suppress(UsageError):
                images[technique.recipe] = find_baked(cloud, technique.recipe, arch)
