"""The techniques, by name. To add one: a file here with one object, and a line in ``_IMAGES`` or ``_WAYS``.

A technique is an image, launched plainly, or a way of getting machines together with an image:
``warm-stopped`` is short for ``minimal-ami+warm-stopped``, and ``custom-init+warm-stopped`` is the same with
another image.
"""

from __future__ import annotations

from instant_env.errors import UsageError
from instant_env.launch.launched import Launched
from instant_env.launch.techniques.base import (
    Combined,
    FillError,
    LaunchContext,
    LaunchSpec,
    PoolSlot,
    Prepared,
    Technique,
)
from instant_env.launch.techniques.cold import Cold
from instant_env.launch.techniques.custom_init import CustomInit
from instant_env.launch.techniques.minimal_ami import MinimalAmi
from instant_env.launch.techniques.prealloc_eni import PreallocEni
from instant_env.launch.techniques.warm_hibernated import WarmHibernated
from instant_env.launch.techniques.warm_running import WarmRunning
from instant_env.launch.techniques.warm_stopped import WarmStopped

__all__ = [
    "BASELINE",
    "TECHNIQUES",
    "FillError",
    "LaunchContext",
    "LaunchSpec",
    "Launched",
    "PoolSlot",
    "Prepared",
    "Technique",
    "find_technique",
]  # fmt: skip

_IMAGES: dict[str, Technique] = {image.name: image for image in (Cold(), MinimalAmi(), CustomInit())}

#: Ways, with the image each has when none is named. An interface made ahead is compared with cold, so it has
#: cold's image; pools have the least that their key agent needs.
_WAYS: dict[str, tuple[type[Combined], str]] = {
    way.way: (way, image)
    for way, image in (
        (PreallocEni, Cold.name),
        (WarmStopped, MinimalAmi.name),
        (WarmHibernated, MinimalAmi.name),
        (WarmRunning, MinimalAmi.name),
    )
}

#: The techniques that have a short name.
TECHNIQUES: dict[str, Technique] = _IMAGES | {
    name: way(_IMAGES[image], name) for name, (way, image) in _WAYS.items()
}

#: What the others are compared with.
BASELINE = Cold.name


def find_technique(name: str) -> Technique:
    """The technique of that name, or the combination ``image+way``. UsageError lists the known ones."""
    if name in TECHNIQUES:
        return TECHNIQUES[name]
    image, plus, way = name.partition("+")
    if plus and image in _IMAGES and way in _WAYS:
        return _WAYS[way][0](_IMAGES[image], name)
    raise UsageError(
        f"unknown technique {name!r}",
        hint=f"known: {', '.join(TECHNIQUES)}; or IMAGE+WAY, as custom-init+prealloc-eni, "
        f"of {', '.join(_IMAGES)} and {', '.join(_WAYS)}",
    )
