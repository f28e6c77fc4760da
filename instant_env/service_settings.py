"""The ``service:`` part of the settings: pools, limits and prices of the HTTP service."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instant_env.arch import Arch

_DAY_S = 24 * 3600


class PoolKind(StrEnum):
    """In which state the machines of a pool wait."""

    WARM_RUNNING = "warm-running"
    WARM_STOPPED = "warm-stopped"
    WARM_HIBERNATED = "warm-hibernated"


class PoolRecipe(StrEnum):
    """Images that a pool can have: those with a timer and a key agent of ours, which stock images lack."""

    MINIMAL = "minimal"
    CUSTOM_INIT = "custom-init"


class PoolSettings(BaseModel):
    """One pool. ``arch`` None is the host's, ``instance_type`` None the cloud's default for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    technique: PoolKind = PoolKind.WARM_RUNNING
    recipe: PoolRecipe = PoolRecipe.CUSTOM_INIT
    arch: Arch | None = None
    instance_type: str | None = None
    target: int = Field(default=1, ge=0, le=1000, description="machines that wait")
    max_age_s: int = Field(
        default=12 * 3600, ge=600, description="a machine that waited this long is replaced"
    )

    @property
    def name(self) -> str:
        """``warm-running-custom-init``, with architecture and type where they are given."""
        parts = [self.technique, self.recipe, self.arch, self.instance_type]
        return "-".join(str(part).replace(".", "-") for part in parts if part)


class ServiceSettings(BaseModel):
    """Limits and pools of ``invoke serve``. Times are in seconds, prices in US dollars per hour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: tuple[PoolSettings, ...] | None = Field(
        default=None,
        description="default: in localec2 one running machine of custom-init, on AWS none",
    )
    ttl_s: int = Field(default=3600, ge=1, description="a lease's time when none is asked for")
    min_ttl_s: int = Field(default=60, ge=1)
    max_ttl_s: int = Field(default=_DAY_S, ge=1)
    max_lifetime_s: int = Field(default=7 * _DAY_S, ge=1, description="with all extensions, from ready")
    instance_types: tuple[str, ...] = Field(
        default=(), description="types that a lease may ask for beside the default of its architecture"
    )
    max_usd_per_hour: float = Field(default=5.0, ge=0, description="ceiling of pools and leases together")
    max_leases: int = Field(
        default=20, ge=1, description="live leases of a token that has no limit of its own"
    )
    ssh_cidrs: tuple[Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/[0-9]+$")], ...] | None = Field(
        default=None, description="who may connect to port 22; default: this host's address"
    )
    launch_timeout_s: int = Field(default=600, ge=10, description="a machine lets its lessee in within this")
    requests_per_minute: int = Field(default=600, ge=1, description="of one token")
    event_streams: int = Field(default=16, ge=1, description="open at a time, of one token")

    @model_validator(mode="after")
    def _in_order(self) -> ServiceSettings:
        if not self.min_ttl_s <= self.ttl_s <= self.max_ttl_s <= self.max_lifetime_s:
            raise ValueError("min_ttl_s <= ttl_s <= max_ttl_s <= max_lifetime_s must hold")
        names = [pool.name for pool in self.pools or ()]
        if len(set(names)) != len(names):
            raise ValueError("two pools are alike: give one of them the higher target")
        return self
