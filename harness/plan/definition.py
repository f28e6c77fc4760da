"""Experiments as people write them: a YAML file that says what is varied, and what is not.

    name: hop-limit
    about: Does the hop limit of IMDSv2 change when a login works?
    techniques: [custom-init, minimal-ami]
    options:
      hop_limit: [1, 2, 64]
    n: 10

Every list is an axis; the experiment has a cell for each combination of them. ``experiments/README.md`` has
the keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from harness.plan.experiment import Cell, Experiment, Options
from instant_env.arch import Arch
from instant_env.cloud.handover import HandOver
from instant_env.cloud.instances import Market, fits
from instant_env.errors import UsageError
from instant_env.foreign import read_yaml
from instant_env.launch.techniques import find_technique
from instant_env.settings import explain


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} is there twice")
    return values


_As = BeforeValidator(_listed)
_STRICT = ConfigDict(extra="forbid", frozen=True)

#: EC2's limits: HttpPutResponseHopLimit 1 to 64, VolumeInitializationRate 100 to 300 MiB/s, 16 KiB of user
#: data (API reference), of which our own document needs some.
HopLimit = Annotated[int, Field(ge=1, le=64)]
VolumeRate = Annotated[int, Field(ge=100, le=300)]
UserDataBytes = Annotated[int, Field(ge=0, le=15_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class Axes(BaseModel):
    """What an experiment may vary beside techniques, types and markets. null: as we do it otherwise."""

    model_config = _STRICT

    hop_limit: Annotated[list[HopLimit | None], _As, Field(min_length=1)] = [None]
    boot_mode: Annotated[
        list[Literal["uefi", "uefi-preferred", "legacy-bios"] | None], _As, Field(min_length=1)
    ] = [None]
    root_gib: Annotated[list[Annotated[int, Field(ge=1, le=16_384)] | None], _As, Field(min_length=1)] = [
        None
    ]
    volume_rate_mib_s: Annotated[list[VolumeRate | None], _As, Field(min_length=1)] = [None]
    user_data_bytes: Annotated[list[UserDataBytes | None], _As, Field(min_length=1)] = [None]
    instance_profile: Annotated[list[str | None], _As, Field(min_length=1)] = [None]
    zone: Annotated[list[str | None], _As, Field(min_length=1)] = [None]
    hand_over: Annotated[list[HandOver | None], _As, Field(min_length=1)] = [None]
    rest_s: Annotated[list[Seconds | None], _As, Field(min_length=1)] = [None]
    pause_s: Annotated[list[Seconds | None], _As, Field(min_length=1)] = [None]
    fresh_copy: Annotated[list[bool | None], _As, Field(min_length=1)] = [None]

    _each_once = field_validator("*")(_distinct)

    def combinations(self) -> list[Options]:
        values = self.model_dump()
        return [
            Options(**dict(zip(values, choice, strict=True)))
            for choice in itertools.product(*values.values())
        ]


class Definition(BaseModel):
    """The file. ``n`` attempts of each cell; ``warm_up`` attempts of each before them, which do not count."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: Annotated[str, Field(min_length=1)]
    techniques: Annotated[list[str], _As, Field(min_length=1)]
    architectures: Annotated[list[Arch], _As, Field(min_length=1)] = [Arch.X86_64]
    instance_types: Annotated[list[str], _As] = []
    markets: Annotated[list[Market | None], _As, Field(min_length=1)] = [None]
    options: Axes = Axes()
    n: Annotated[int, Field(ge=1, le=10_000)] = 10
    warm_up: Annotated[int, Field(ge=0, le=100)] = 0
    parallel: Annotated[int, Field(ge=1, le=100)] = 1
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 600.0
    seed: Annotated[int, Field(ge=0)] | None = None
    region: str | None = None
    ami: str = "latest"

    _each_once = field_validator("techniques", "architectures", "instance_types", "markets")(_distinct)

    def cells(self, default_type: Callable[[Arch], str]) -> tuple[Cell, ...]:
        """Every combination. A type belongs to the architecture it is of; an architecture without one has its
        default. Raises UsageError for a type that is of none of the architectures."""
        stray = [kind for kind in self.instance_types if not any(fits(kind, a) for a in self.architectures)]
        if stray:
            named = ", ".join(arch.value for arch in self.architectures)
            raise UsageError(f"experiment {self.name}: instance type {stray[0]} is not of {named}")
        return tuple(
            Cell(technique, arch, kind, market, options)
            for arch in self.architectures
            for kind in ([k for k in self.instance_types if fits(k, arch)] or [default_type(arch)])
            for technique in self.techniques
            for market in self.markets
            for options in self.options.combinations()
        )

    def experiment(self, cells: Sequence[Cell], seed: int) -> Experiment:
        return Experiment(
            tuple(cells),
            iterations=self.n,
            seed=seed,
            timeout_s=self.timeout_s,
            warm_up=self.warm_up,
            parallel=self.parallel,
        )


def load(path: Path) -> Definition:
    """Read an experiment. Raises UsageError that names the file, the key and what is wrong with it."""
    hint = "experiments/README.md has the keys"
    names = [] if path.is_file() else sorted(str(file) for file in path.parent.glob("*.yml"))
    loaded = read_yaml(path, hint=f"there are: {', '.join(names)}" if names else hint)
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} must hold keys and values", hint=hint)
    try:
        definition = Definition.model_validate(loaded)
    except ValidationError as error:
        raise UsageError(explain(error, str(path)), hint=hint) from error
    for technique in definition.techniques:
        find_technique(technique)
    return definition
