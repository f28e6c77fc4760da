"""Structured logs: one JSON object per line, with the lease and request that it is about, and no secret.

:func:`make_logger` returns a logger without global state. ``bound(request_id=..., lease_id=...)`` binds names
to everything that the current task logs.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.contextvars import bound_contextvars as bound

__all__ = ["Logger", "bound", "make_logger"]

Logger = structlog.typing.FilteringBoundLogger

#: Names that are never written, whatever their value.
_WITHHELD = frozenset(
    {
        "authorization",
        "labels",
        "public_key",
        "key",
        "secret",
        "token",
        "password",
        "cookie",
        "body",
        "headers",
    }
)
#: Values that are secrets or keys wherever they stand: tokens of ours, bearer headers, SSH keys and their
#: bodies (all begin with a length of three zero bytes, "AAAA" in base64).
_SECRETS = re.compile(r"ie_[0-9A-Za-z]{8,}|(?i:bearer)\s+\S+|AAAA[0-9A-Za-z+/=]{20,}|-----BEGIN[^-]+-----.*")


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRETS.sub("[withheld]", value)
    if isinstance(value, dict):
        return {
            str(name): "[withheld]" if str(name).lower() in _WITHHELD else _masked(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_masked(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _masked(str(value))


def _without_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    masked: MutableMapping[str, Any] = _masked(dict(event))
    return masked


def make_logger(stream: TextIO, **names: Any) -> Logger:
    """A logger that writes to ``stream``; ``names`` are in each line."""
    logger: Logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _without_secrets,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        **names,
    )
    return logger
