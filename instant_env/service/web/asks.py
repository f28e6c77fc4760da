"""Bodies of requests. Unknown fields are refused, and so is null: leaving a field out is what asks for its
default."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey, PublicKeyError, is_plain
from instant_env.service.operations import Ask, Code, NewToken, Refusal
from instant_env.service.records import AUTO, LeaseState, Scope

#: Seconds: a whole number, no text, no null. The service's own limits are checked behind it.
Seconds = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Flag = Annotated[bool, Field(strict=True)]
InstanceType = Annotated[str, Field(pattern=r"^[a-z0-9.-]{3,32}$")]
_MOST_LABELS = 32


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _optional(description: str) -> Any:
    """A field that may be left out, but not be null: its type has no None, which only the default is."""
    return Field(None, description=description, json_schema_extra=_without_default)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("null is no value: leave the field out")
        return value

    def fingerprint(self) -> str:
        """SHA-256 of the canonical body: fields that were given, by name, without white space."""
        fields = self.model_dump(mode="json", exclude_unset=True)
        return hashlib.sha256(
            json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
        ).hexdigest()


class InstanceAsk(_Body):
    """A request for a machine."""

    public_key: str = Field(
        description="one line as in a .pub file: type, base64, comment; no options", max_length=16_384
    )
    technique: str = Field(
        AUTO, description="a technique of GET /v1/techniques, or auto", pattern=r"^[a-z0-9+._-]{1,64}$"
    )
    arch: Arch = _optional("default: the host's")
    instance_type: InstanceType = _optional("default: the architecture's")
    market: Market = _optional("default: on-demand")
    ttl_seconds: Seconds = _optional(
        "how long the machine lives, counted from ready; default and limits: GET /v1/quota"
    )
    fallback: Flag = Field(
        False, description="whether another technique will do if the one named has no machine"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="words of your own; they stay in the service's store"
    )

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if len(labels) > _MOST_LABELS:
            raise ValueError(f"at most {_MOST_LABELS} labels")
        for name, value in labels.items():
            if not (0 < len(name) <= 63 and len(value) <= 255 and is_plain(name + value)):
                raise ValueError(
                    "a label has 1 to 63 characters, its value at most 255, no control characters"
                )
        return labels

    def ask(self) -> Ask:
        """Raises Refusal (invalid-key)."""
        try:
            key = PublicKey.parse(self.public_key)
        except PublicKeyError as error:
            raise Refusal(
                Code.INVALID_KEY, error.message, hint=error.hint,
                errors=({"field": "public_key", "rule": error.message},),
            ) from None  # fmt: skip
        return Ask(
            key, self.technique, self.arch, self.instance_type, self.market, self.ttl_seconds, self.fallback,
            dict(self.labels),
        )  # fmt: skip


class TtlAsk(_Body):
    """A new end, counted from now."""

    ttl_seconds: Seconds
    shorten: Flag = Field(False, description="whether an earlier end than the present one is meant")


class PoolAsk(_Body):
    """What to change of a pool."""

    target: Annotated[int, Field(strict=True, ge=0, le=1000)] = _optional("machines that wait")
    paused: Flag = _optional("whether it stops filling")

    def check(self) -> PoolAsk:
        """Raises Refusal when nothing is to be changed."""
        if not self.model_fields_set:
            raise Refusal(Code.INVALID_REQUEST, "nothing to change", hint="give target, paused, or both")
        return self


class TokenAsk(_Body):
    """A new token. What it may not do is not said: limits that are left out are the service's."""

    name: str = Field(min_length=1, max_length=64, description="for people")
    scopes: list[Scope] = Field(min_length=1, max_length=3)
    ttl_seconds: Seconds = _optional("default: it does not expire")
    max_leases: Annotated[int, Field(strict=True, ge=0, le=100_000)] = _optional("live leases")
    max_usd_per_hour: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = _optional(
        "of its leases together"
    )
    instance_types: Annotated[list[InstanceType], Field(max_length=64)] = _optional("that it may ask for")

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not is_plain(name) or not name.strip():
            raise ValueError("a name has no control characters and is not empty")
        return name.strip()

    def new(self) -> NewToken:
        return NewToken(
            self.name, frozenset(scope.value for scope in self.scopes), self.ttl_seconds, self.max_leases,
            self.max_usd_per_hour, None if self.instance_types is None else tuple(self.instance_types),
        )  # fmt: skip


class _Query(BaseModel):
    """A misspelt parameter is refused, as a field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListQuery(_Query):
    """Which leases to list."""

    state: str = Field("", max_length=200, description="states, separated by commas; default: all")
    limit: int = Field(100, ge=1, le=1000)
    cursor: str = Field("", max_length=500, description="of the page before")
    all: bool = Field(False, description="everybody's; admins only")

    def states(self) -> frozenset[LeaseState] | None:
        """Raises Refusal for a word that is no state."""
        words = [word.strip() for word in self.state.split(",") if word.strip()]
        try:
            return frozenset(LeaseState(word) for word in words) or None
        except ValueError:
            raise Refusal(
                Code.INVALID_REQUEST, "state has a word that is no state",
                hint=f"states: {', '.join(LeaseState)}",
                errors=({"field": "state", "rule": f"one of {', '.join(LeaseState)}"},),
            ) from None  # fmt: skip


class WaitQuery(_Query):
    """How long to wait."""

    seconds: float = Field(60, description="any number; more than 60 is 60")


class TechniquesQuery(_Query):
    """For which machines."""

    arch: Arch | None = None
    instance_type: str | None = Field(None, pattern=r"^[a-z0-9.-]{3,32}$")
