"""The techniques, by name. To add one: a file here with one object, and a line in ``_ALL``."""

from __future__ import annotations

from instant_env.errors import UsageError
from instant_env.launch.techniques.base import Launched, Order, Prepared, Technique
from instant_env.launch.techniques.cold import Cold
from instant_env.launch.techniques.custom_init import CustomInit
from instant_env.launch.techniques.minimal_ami import MinimalAmi

__all__ = ["BASELINE", "TECHNIQUES", "Launched", "Order", "Prepared", "Technique", "find_technique"]

_ALL: tuple[Technique, ...] = (Cold(), MinimalAmi(), CustomInit())

TECHNIQUES: dict[str, Technique] = {technique.name: technique for technique in _ALL}

#: What the others are compared with.
BASELINE = Cold.name


def find_technique(name: str) -> Technique:
    """The technique of that name; UsageError lists the known ones."""
    try:
        return TECHNIQUES[name]
    except KeyError:
        raise UsageError(f"unknown technique {name!r}", hint=f"known: {', '.join(TECHNIQUES)}") from None
