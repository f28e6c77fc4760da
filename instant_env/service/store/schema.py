"""The store's tables. A column has the name of the record's field that it holds, and its type converts it.

migrations/ makes these tables; a test compares both. Times are microseconds since 1970 in UTC, which sort and
compare in the same way in every engine.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

from instant_env.arch import Arch
from instant_env.cloud.instances import Market
from instant_env.public_key import PublicKey
from instant_env.service.records import (
    EndReason,
    EventKind,
    LeaseRequest,
    LeaseState,
    MachineState,
    Scope,
    Selection,
    Source,
    Timing,
)

#: The newest of migrations/versions.
REVISION = "0001"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(value: datetime) -> int:
    """Since 1970. Raises TypeError for a datetime without a time zone."""
    return (value - EPOCH) // _MICROSECOND


class Instant(TypeDecorator[datetime]):
    """An aware datetime."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> int | None:
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, _dialect: Dialect) -> datetime | None:
        return None if value is None else EPOCH + value * _MICROSECOND


class Word(TypeDecorator[StrEnum]):
    """A member of a StrEnum, by its value."""

    impl = Text
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: StrEnum | None, _dialect: Dialect) -> str | None:
        return None if value is None else str(self.words(value))

    def process_result_value(self, value: str | None, _dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.words(value)


class OptionalText(TypeDecorator[str]):
    """Text that is NULL when it is empty: a unique index lets any number of rows have none."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return value or None

    def process_result_value(self, value: str | None, _dialect: Dialect) -> str:
        return value or ""


class Texts(TypeDecorator[tuple[str, ...]]):
    """A tuple of texts; None stays None."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, _dialect: Dialect) -> list[str] | None:
        return None if value is None else list(value)

    def process_result_value(self, value: list[str] | None, _dialect: Dialect) -> tuple[str, ...] | None:
        return None if value is None else tuple(value)


class Scopes(TypeDecorator[frozenset[Scope]]):
    """A set of scopes."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: frozenset[Scope] | None, _dialect: Dialect) -> list[str]:
        return sorted(value or ())

    def process_result_value(self, value: list[str] | None, _dialect: Dialect) -> frozenset[Scope]:
        return frozenset(Scope(word) for word in value or ())


class Request(TypeDecorator[LeaseRequest]):
    """What was asked for."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: LeaseRequest | None, _dialect: Dialect) -> Any:
        # asdict() would copy deeply, which labels of any mapping type need not bear.
        return value and {
            "public_key": asdict(value.public_key),
            "technique": value.technique,
            "arch": value.arch,
            "instance_type": value.instance_type,
            "market": value.market,
            "ttl_s": value.ttl_s,
            "fallback": value.fallback,
            "labels": dict(value.labels),
        }

    def process_result_value(self, value: Any, _dialect: Dialect) -> LeaseRequest | None:
        if value is None:
            return None
        parts = {
            "public_key": PublicKey(**value["public_key"]),
            "arch": Arch(value["arch"]),
            "market": Market(value["market"]),
        }
        return LeaseRequest(**{**value, **parts})


class Chosen(TypeDecorator[Selection]):
    """What was selected and why."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Selection | None, _dialect: Dialect) -> Any:
        if value is None:
            return None
        return {
            "chosen": value.chosen,
            "predicted_ms": value.predicted_ms,
            "basis": value.basis,
            "n": value.n,
            "alternatives": [dict(alternative) for alternative in value.alternatives],
        }

    def process_result_value(self, value: Any, _dialect: Dialect) -> Selection | None:
        return None if value is None else Selection(**{**value, "alternatives": tuple(value["alternatives"])})


class Timings(TypeDecorator[Timing]):
    """When each phase was reached."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Timing | None, _dialect: Dialect) -> Any:
        value = value or Timing()
        return {
            "t1_ms": value.t1_ms,
            "t2_ms": value.t2_ms,
            "t3_ms": value.t3_ms,
            "t4_ms": value.t4_ms,
            "t4_by": value.t4_by,
            "resolution_ms": dict(value.resolution_ms),
        }

    def process_result_value(self, value: Any, _dialect: Dialect) -> Timing:
        return Timing(**value)


metadata = MetaData()

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("scopes", Scopes, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("max_leases", Integer),
    Column("max_usd_per_hour", Double),
    Column("instance_types", Texts),
    UniqueConstraint("sha256", name="tokens_sha256"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("state", Word(LeaseState), nullable=False),
    Column("request", Request, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("technique", Text, nullable=False),
    Column("source", Word(Source)),
    Column("selection", Chosen),
    Column("machine_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("instance_id", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("username", Text, nullable=False),
    Column("host_keys", Texts, nullable=False),
    Column("host_keys_known_by", Text, nullable=False),
    Column("market", Word(Market)),
    Column("usd_per_hour", Double, nullable=False),
    Column("timing", Timings, nullable=False),
    Column("ready_at", Instant),
    Column("expires_at", Instant),
    Column("ended_at", Instant),
    Column("reason", Word(EndReason)),
    Column("detail", Text, nullable=False),
    Column("version", Integer, nullable=False),
    # The sequence of its last event, counted under the row's lock: a sequence of the whole table would let a
    # reader pass over an event that is committed late.
    Column("last_event", Integer, nullable=False),
    Index("leases_by_time", "created_at", "id"),
    Index("leases_by_owner", "owner", "created_at", "id"),
    # With all columns that limits look at, so that the rows are not read.
    Index("leases_by_use", "owner", "state", "usd_per_hour"),
    Index("leases_by_state", "state", "machine_id", "usd_per_hour"),
)

events = Table(
    "events",
    metadata,
    Column("lease_id", Text, ForeignKey("leases.id", name="events_of_lease"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("kind", Word(EventKind), nullable=False),
    Column("at", Instant, nullable=False),
    Column("data", JSON, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("lease_id", Text, ForeignKey("leases.id", name="idempotency_keys_of_lease"), nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("idempotency_keys_by_lease", "lease_id"),
)

# Without a foreign key to leases: a machine whose tag names a lease that an older copy of the store does not
# know has a row as well.
machines = Table(
    "machines",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Word(MachineState), nullable=False),
    Column("technique", Text, nullable=False),
    Column("arch", Word(Arch), nullable=False),
    Column("instance_type", Text, nullable=False),
    Column("image_id", Text, nullable=False),
    Column("market", Word(Market), nullable=False),
    Column("client_token", OptionalText),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("pool", Text),
    Column("lease_id", Text),
    Column("instance_id", OptionalText),
    Column("address", Text, nullable=False),
    Column("username", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("host_keys", Texts, nullable=False),
    Column("ready_at", Instant),
    Column("usd_per_hour", Double, nullable=False),
    Column("detail", Text, nullable=False),
    Column("version", Integer, nullable=False),
    # Two rows of one machine would let two leases claim it.
    UniqueConstraint("instance_id", name="machines_instance_id"),
    UniqueConstraint("client_token", name="machines_client_token"),
    Index("machines_by_pool", "pool", "state", "created_at", "id"),
    Index("machines_by_state", "state", "usd_per_hour"),
    Index("machines_by_lease", "lease_id"),
)

pool_controls = Table(
    "pool_controls",
    metadata,
    Column("name", Text, primary_key=True),
    Column("target", Integer),
    Column("paused", Boolean, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("open_until", Instant),
    Column("last_error", Text, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("technique", Text, nullable=False),
    Column("arch", Word(Arch), nullable=False),
    Column("instance_type", Text, nullable=False),
    Column("source", Word(Source), nullable=False),
    Column("at", Instant, nullable=False),
    Column("ms", Double, nullable=False),
    Column("ok", Boolean, nullable=False),
    Index("samples_by_kind", "technique", "arch", "instance_type", "at"),
)
