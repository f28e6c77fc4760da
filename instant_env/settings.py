"""Settings: one typed object, layered ``defaults < instant-env.yml < environment < flags``.

Environment variables are ``INSTANT_ENV_<FIELD>`` in capitals (``INSTANT_ENV_CLOUD=aws``). The file is
``instant-env.yml`` in the working directory, or the one ``INSTANT_ENV_CONFIG`` names. Unknown keys are
errors, and so are unknown variables that begin with ``INSTANT_ENV_``. layers.py merges them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instant_env.errors import UsageError
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.service_settings import ServiceSettings

_PREFIX = "INSTANT_ENV_"

#: Variables that are not settings: the file's name, mirrors of distributions, and what the tests read.
_OTHER_VARIABLES = frozenset(
    _PREFIX + name
    for name in (
        "CONFIG",
        "DEBIAN_MIRROR",
        "DEBIAN_SECURITY_MIRROR",
        "AL2023_MIRROR",
        "IMDS",
        "AL2023",
        "AWS_TESTS",
        "DEATHS",
        "DOWNLOADS",
        "E2E_DIR",
        "FUZZ_INPUTS",
        "CLIENTS",
        "FUZZ_SECONDS",
        "IMAGES",
        "KILLS",
        "KILL_SEED",
        "TERRAFORM_PLUGINS",
        "USER_DATA_CASES",
        "WRITE_TABLE",
    )
)

_PACKAGE = Path(__file__).resolve().parent
#: The checkout that this package runs from, or None when it was installed from a wheel.
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "recipes").is_dir() else None
#: Where recipes/, policies/, experiments/ and the Go sources are: the checkout, or the wheel's copy of them
#: (scripts/wheel_assets.py puts it there). Read-only in a wheel.
ROOT = CHECKOUT or _PACKAGE / "_assets"


#: Where nothing names a region.
DEFAULT_REGION = "us-east-1"


class CloudName(StrEnum):
    """Where machines come from."""

    LOCAL = "local"
    AWS = "aws"


class AcceleratorChoice(StrEnum):
    """How localec2 runs guests: ``auto`` boots a probe guest and takes KVM only when that really ran."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


def _xdg(variable: str, fallback: str) -> Path:
    """The XDG directory of this project (XDG Base Directory 0.8: relative paths are ignored)."""
    value = os.environ.get(variable, "")
    base = Path(value) if value.startswith("/") else Path.home() / fallback
    return base / "instant-env"


def state_home() -> Path:
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_home() -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache")


class Settings(BaseModel):
    """Everything that can be set, with its default. Frozen: a run sees one set of values.

    Making one reads no file and no environment; :func:`load` does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cloud: CloudName = CloudName.LOCAL
    region: str | None = Field(
        default=None,
        description="default: AWS_REGION, AWS_DEFAULT_REGION or the profile's (aws only), else us-east-1",
    )
    profile: str | None = Field(default=None, description="AWS profile (aws only)")
    endpoint_url: str | None = Field(
        default=None,
        repr=False,
        pattern=r"^https?://",
        description="where all of AWS's services are (aws only)",
    )
    base: str | None = Field(
        default=None, description="base to bake from; default debian-12 (local), al2023 (aws)"
    )
    instance_type: str | None = Field(
        default=None, description="type to launch; default by architecture and cloud"
    )
    subnet: str | None = Field(default=None, description="subnet id; default: one of the default VPC")
    security_group: str | None = Field(
        default=None, description="security group of machines to measure; default: one made for the run"
    )
    ssh_private: bool = Field(
        default=False,
        description="reach machines by their private addresses, from within the VPC; default: by public ones",
    )
    builder_profile: str | None = Field(
        default=None, description="instance profile of builders; default: none, so that they can call nothing"
    )
    caller_ip_url: str | None = Field(
        default=None,
        repr=False,
        description="URL that answers with the caller's address; localec2 serves its own",
    )
    ssh_port: int | None = Field(
        default=None, ge=1, le=65535, description="port of SSH on machines; default 22"
    )
    state_dir: Path = Field(default_factory=state_home, description="state of localec2, manifests, logs")
    cache_dir: Path = Field(default_factory=cache_home, description="what can be made again: stock images")
    recipes_dir: Path = ROOT / "recipes"
    results_dir: Path = (CHECKOUT or Path()) / "results"
    accelerator: AcceleratorChoice = AcceleratorChoice.AUTO
    local_egress: bool = Field(
        default=True, description="machines of localec2 reach the internet, as the security groups say"
    )
    localec2: LocalEc2Settings = Field(
        default_factory=LocalEc2Settings, description="how strict the embedded EC2 is"
    )
    service_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/]+/?$",
        description="where `invoke lease.new` and its sisters find the service; default: the one that "
        "`invoke serve` started here",
    )
    service_token: str | None = Field(
        default=None, repr=False, description="token for that service; default: the one that serve wrote"
    )
    service: ServiceSettings = Field(
        default_factory=ServiceSettings, description="pools and limits of `invoke serve`"
    )

    @property
    def service_dir(self) -> Path:
        """What `invoke serve` keeps: the store, its address and a token for clients on this host."""
        return self.state_dir / "service"

    @property
    def local_dir(self) -> Path:
        """State directory of localec2."""
        return self.state_dir / "localec2"


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Merge the layers into Settings. ``None`` and empty flags do not count as given.

    Raises UsageError for a file that is not a mapping, an unknown key or variable, or a wrong value.
    """
    from instant_env import layers

    names = {_PREFIX + name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    for name in sorted(environ):
        # A misspelt INSTANT_ENV_CLOUD or INSTANT_ENV_SUBNET must not mean the default.
        if name.startswith(_PREFIX) and name not in names:
            hint = layers.nearest(name, list(names)) or "see instant_env/settings.py for the names; unset it"
            raise UsageError(f"unknown environment variable {name}", hint=hint)
    values = {key: value for key, value in (flags or {}).items() if value not in (None, "")}
    return layers.merge(Settings, flags=values, prefix=_PREFIX, environ=environ, file=_config_file(environ))


def _config_file(environ: Mapping[str, str]) -> Path | None:
    """The settings file, or None; one that is named has to be there."""
    named = environ.get("INSTANT_ENV_CONFIG")
    path = Path(named or "instant-env.yml")
    if path.is_file():
        return path
    if named:
        raise UsageError(f"no such file: {path}", hint="INSTANT_ENV_CONFIG names it")
    return None


def explain(error: ValidationError, what: str) -> str:
    """Fold pydantic's report into one line: ``settings: cloud: Input should be 'local' or 'aws'``."""
    parts = [
        f"{'.'.join(str(place) for place in item['loc']) or 'value'}: {item['msg']}"
        for item in error.errors(include_url=False)
    ]
    return f"{what}: " + "; ".join(parts)
