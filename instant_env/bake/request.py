"""What is asked of a bake: one recipe for one architecture, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from instant_env.arch import Arch
from instant_env.cloud.instances import fits
from instant_env.cloud.tags import new_run_id
from instant_env.errors import UsageError
from instant_env.settings import Settings


@dataclass(frozen=True)
class Request:
    """One bake. ``run_id`` names all that it makes. ``builder_types`` are tried in this order, ``given``
    are the recipe's parameters as text."""

    recipe: str
    arch: Arch
    base: str | None = None
    builder_types: tuple[str, ...] = ()
    force: bool = False
    given: Mapping[str, str] = field(default_factory=dict)
    run_id: str = field(default_factory=new_run_id)

    @property
    def label(self) -> str:
        """For people: ``minimal x86_64``."""
        return f"{self.recipe} {self.arch}"

    def log_path(self, settings: Settings) -> Path:
        """Where the output of its steps goes."""
        return settings.state_dir / "logs" / f"bake-{self.run_id}-{self.recipe}-{self.arch}.log"


def words(text: str) -> list[str]:
    """``a, b,a`` as ``[a, b]``."""
    return list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


def types_for(arch: Arch, types: str) -> tuple[str, ...]:
    """Those of the types, a list with commas, that are of this architecture.

    Raises UsageError when there are some and none is.
    """
    fitting = tuple(kind for kind in words(types) if fits(kind, arch))
    if words(types) and not fitting:
        raise UsageError(f"no builder type for {arch} among {types}", hint="name one of each architecture")
    return fitting


def requests(
    recipes: str,
    archs: str,
    *,
    base: str | None = None,
    builder_types: str = "",
    force: bool = False,
    given: Mapping[str, str] | None = None,
) -> list[Request]:
    """One request for each of ``recipes`` and each of ``archs``; all lists are with commas.

    Raises UsageError for an empty list of architectures and for types that do not fit one of them. No recipe
    makes one request that is in the wrong: who reads it says which recipes there are.
    """
    wanted = list(dict.fromkeys(Arch.parse(word) for word in words(archs)))
    if not wanted:
        raise UsageError("no architecture named", hint=f"--arch takes: {', '.join(Arch)}")
    return [
        Request(
            recipe,
            arch,
            base=base,
            builder_types=types_for(arch, builder_types),
            force=force,
            given=given or {},
        )
        for recipe in words(recipes) or [""]
        for arch in wanted
    ]
