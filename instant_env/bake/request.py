"""The request for a bake: one recipe for one architecture, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from instant_env.arch import Arch
from instant_env.bake.downloads.offer import Packages
from instant_env.cloud.instances import fits
from instant_env.cloud.rules.names import image_name
from instant_env.cloud.tags import new_run_id
from instant_env.errors import UsageError
from instant_env.settings import Settings


class Method(StrEnum):
    """How the builder's disk becomes an AMI: EC2 does it all, or a snapshot first, and RegisterImage."""

    CREATE_IMAGE = "create-image"
    REGISTER = "register"


class OnError(StrEnum):
    """What becomes of the machine when a bake fails."""

    CLEANUP = "cleanup"
    KEEP = "keep"


#: Ten years, less the leap days (API reference, EnableImageDeprecation: DeprecateAt).
_MOST_DEPRECATION_DAYS = 3650

Choice = TypeVar("Choice", bound=StrEnum)


def choose(kind: type[Choice], text: str, flag: str) -> Choice:
    """The choice of that name. Raises UsageError."""
    try:
        return kind(text)
    except ValueError:
        raise UsageError(
            f"{flag} {text}: must be one of {', '.join(kind)}",
            hint=f"{flag} {next(iter(kind))} is the default",
        ) from None


@dataclass(frozen=True)
class Options:
    """What all bakes of one command share.

    ``base_ami`` stands in for the base's own reference to its AMI (see bases.find); ``builder_types`` of any
    architecture are tried in this order; ``parameters`` are the recipe's, as text. ``encrypt``: the
    builder's root volume, and so the image, with ``kms_key_id`` or the account's default key.
    ``ssh_private``: reach machines by their private addresses, from within the VPC. ``check_host_key``: go on
    only when a machine's console has the host key that its server showed. ``packages``: who fetches packages
    and downloads. Both ways get the same files, so it is no part of the plan's hash. ``from_parent``: bake
    from the AMI of the recipe's parent (see instant_env.bake.parent).
    """

    base: str | None = None
    base_ami: str | None = None
    builder_types: tuple[str, ...] = ()
    force: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    method: Method = Method.CREATE_IMAGE
    encrypt: bool = True
    kms_key_id: str | None = None
    on_error: OnError = OnError.CLEANUP
    ssh_private: bool = False
    check_host_key: bool = True
    packages: Packages = Packages.AUTO
    from_parent: bool = False
    deprecate_after_days: int | None = None
    protect: bool = False

    @property
    def encryption(self) -> str:
        """Of the root volume, as an image's tag has it: none, default, or the key."""
        return (self.kms_key_id or "default") if self.encrypt else "none"

    def __post_init__(self) -> None:
        if self.kms_key_id and not self.encrypt:
            raise UsageError("--kms-key-id without encryption", hint="leave out --no-encrypt")
        if self.deprecate_after_days is not None and self.deprecate_after_days < 1:
            raise UsageError("an image that is deprecated before it is a day old", hint="days, 1 or more")
        if (self.deprecate_after_days or 0) > _MOST_DEPRECATION_DAYS:
            raise UsageError(
                f"--deprecate-after-days {self.deprecate_after_days}: EC2 takes a date within ten years",
                hint=f"{_MOST_DEPRECATION_DAYS} at most; or leave it out, and the image is never deprecated",
            )


@dataclass(frozen=True)
class Request:
    """One bake. ``run_id`` names all that it makes."""

    recipe: str
    arch: Arch
    options: Options = field(default_factory=Options)
    run_id: str = field(default_factory=new_run_id)

    @property
    def label(self) -> str:
        """For people: ``minimal x86_64``."""
        return f"{self.recipe} {self.arch}"

    @property
    def image_name(self) -> str:
        """The name of the AMI."""
        return image_name(f"instant-env-{self.recipe}-{self.arch}", self.run_id)

    @property
    def builder_types(self) -> tuple[str, ...]:
        """The requested types of this architecture."""
        return tuple(kind for kind in self.options.builder_types if fits(kind, self.arch))

    def log_path(self, settings: Settings) -> Path:
        """Where the output of its steps goes."""
        return settings.state_dir / "logs" / f"bake-{self.run_id}-{self.recipe}-{self.arch}.log"


def split_commas(text: str) -> list[str]:
    """``a, b,a`` as ``[a, b]``."""
    return list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


def requests(recipes: str, archs: str, options: Options) -> list[Request]:
    """One request for each of ``recipes`` and each of ``archs``, both lists with commas.

    Raises UsageError for an empty list of architectures, and when builder types are named but none of one of
    them. Without a recipe there is one request; reading it fails, with the list of recipes.
    """
    architectures = list(dict.fromkeys(Arch.parse(word) for word in split_commas(archs)))
    if not architectures:
        raise UsageError("no architecture named", hint=f"--arch takes: {', '.join(Arch)}")
    matrix = [
        Request(recipe, arch, options) for recipe in split_commas(recipes) or [""] for arch in architectures
    ]
    for request in matrix:
        if options.builder_types and not request.builder_types:
            raise UsageError(
                f"no builder type for {request.arch} among {', '.join(options.builder_types)}",
                hint="name one of each architecture",
            )
    return matrix
