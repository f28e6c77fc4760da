"""Tags: how we know what is ours. EC2 is the state; what exists is what carries these.

``Project=instant-env`` is on everything; ``instant-env:run`` joins what one command made,
``instant-env:role`` says what it is for, ``instant-env:expires-at`` (UTC, ISO 8601) when anyone may end it.
``instant-env:protected`` is set by a person, on what nobody's clean-up may remove.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_ec2.literals import ResourceTypeType
    from mypy_boto3_ec2.type_defs import FilterTypeDef, TagSpecificationTypeDef, TagTypeDef

PROJECT = "instant-env"
PREFIX = "instant-env:"
#: On a resource that `clean` never removes, whatever its age. Any value but `false` protects, so that a slip
#: does not remove something.
PROTECTED = f"{PREFIX}protected"


class Role(StrEnum):
    """What a resource is for. ``lease``: a machine that was handed to a user, who has it until it expires;
    ``environment``: one with a name, and what belongs to it."""

    BUILDER = "builder"
    VERIFY = "verify"
    BENCH = "bench"
    POOL = "pool"
    LEASE = "lease"
    ENVIRONMENT = "environment"
    IMAGE = "image"


def new_run_id(now: datetime | None = None) -> str:
    """A name for one command's resources: sortable by time, unique by 32 random bits."""
    now = now or datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def project_filter(**tags: str) -> list[FilterTypeDef]:
    """Describe* filters for what is ours; keywords narrow by our own tags (``role="builder"``)."""
    filters: list[FilterTypeDef] = [{"Name": "tag:Project", "Values": [PROJECT]}]
    for key, value in tags.items():
        filters.append({"Name": f"tag:{PREFIX}{key.replace('_', '-')}", "Values": [value]})
    return filters


PROJECT_FILTER = project_filter()


def tag_list(
    run_id: str,
    role: Role,
    *,
    name: str,
    expires_at: datetime | None = None,
    extra: Mapping[str, str] | None = None,
) -> list[TagTypeDef]:
    """Our tags. ``extra`` keys get our prefix. ``expires_at`` must be aware; it is written in UTC."""
    tags = {"Project": PROJECT, "Name": name, f"{PREFIX}run": run_id, f"{PREFIX}role": role.value}
    if expires_at is not None:
        tags[f"{PREFIX}expires-at"] = expires_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    tags.update({PREFIX + key: value for key, value in (extra or {}).items()})
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tag_specifications(
    *resource_types: ResourceTypeType,
    run_id: str,
    role: Role,
    name: str,
    expires_at: datetime | None = None,
    extra: Mapping[str, str] | None = None,
) -> list[TagSpecificationTypeDef]:
    """The same tags for several resource types, as creating calls take them."""
    tags = tag_list(run_id, role, name=name, expires_at=expires_at, extra=extra)
    return [{"ResourceType": kind, "Tags": tags} for kind in resource_types]


def read_tags(tags: Iterable[Any] | None) -> dict[str, str]:
    """boto3's list of tags as a dict, our prefix kept."""
    return {tag["Key"]: tag["Value"] for tag in tags or ()}


def protected(tags: Mapping[str, str]) -> bool:
    """Whether the tag that protects a resource is among these."""
    return tags.get(PROTECTED, "false").strip().lower() != "false"


def expired(tags: Mapping[str, str], now: datetime) -> bool:
    """Whether the expiry tag has passed. No tag, or one we cannot read, means not expired."""
    at = expiry(tags)
    return at is not None and at <= now


def expiry(tags: Mapping[str, str]) -> datetime | None:
    """When anyone may end it (aware, UTC); None without a tag, or with one that we cannot read."""
    text = tags.get(f"{PREFIX}expires-at", "")
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
