"""Records from rows and rows from records; cursors."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Row, Table, and_, or_, type_coerce

from instant_env.service.records import Event, LaunchSample, Lease, Machine, PoolControl, Token
from instant_env.service.store import schema
from instant_env.service.store.protocol import StoreError

Record = TypeVar("Record", Token, Lease, Machine, Event, PoolControl, LaunchSample)

_CURSOR = re.compile(r"([0-9]{1,18})\.([a-z0-9-]{1,64})")


def values_of(record: Any) -> dict[str, Any]:
    """The columns of a record, not deeply."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def columns_of(table: Table, kind: type[Any]) -> list[ColumnElement[Any]]:
    """Those that a record of this kind has, in its order."""
    return [table.c[field.name] for field in fields(kind)]


def record_of(kind: type[Record], row: Row[Any]) -> Record:
    """From a row of :func:`columns_of`."""
    columns: tuple[Any, ...] = tuple(row)
    return kind(*columns)


def cursor_after(lease: Lease) -> str:
    """Where the page begins that follows this lease."""
    text = f"{schema.microseconds(lease.created_at)}.{lease.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def older_than_cursor(cursor: str) -> ColumnElement[bool]:
    """The condition of a page, newest first. Raises StoreError for text that :func:`cursor_after` did not
    make."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise StoreError("the cursor is not one that a list answered", hint="pass `cursor` of the last page")
    table = schema.leases
    # The column's own type wants a datetime; the cursor has the number that it is stored as.
    created = type_coerce(table.c.created_at, BigInteger())
    at, lease_id = int(match[1]), match[2]
    return or_(created < at, and_(created == at, table.c.id < lease_id))
