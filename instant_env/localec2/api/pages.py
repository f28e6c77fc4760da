"""Pages of a listing, and patterns in filters: what EC2's Describe actions share and moto leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from instant_env.localec2.state.moto_api import EC2ClientError

T = TypeVar("T")

#: Of most Describe actions (API_DescribeInstances, API_DescribeSecurityGroups).
LEAST, MOST = 5, 1000


def page(
    found: Sequence[T], token: str | None, most: Any, name_of: Callable[[T], str], least: int = LEAST
) -> tuple[list[T], str | None]:
    """One page of what was found, and the token of the next (None: this is the last).

    The token is the name of the last item of the page before, so what comes or goes meanwhile shifts nothing;
    ``found`` must always come in the same order.
    """
    if most is not None and not least <= int(most) <= MOST:
        bound = f"greater than {least}" if int(most) < least else f"less than {MOST}"
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Value ( {most} ) for parameter maxResults is invalid. Expecting a value {bound}.",
        )
    start = 0
    if token:
        start = next((i + 1 for i, item in enumerate(found) if name_of(item) == token), len(found))
    items = list(found[start : start + int(most or MOST)])
    more = len(found) > start + len(items)
    return items, name_of(items[-1]) if more else None


def is_pattern(value: str) -> bool:
    """Whether a filter's value has a wildcard: `*` stands for any characters, `?` for one."""
    return re.search(r"(?<!\\)[*?]", value) is not None


def matches(patterns: Sequence[str], value: object) -> bool:
    """Whether any of a filter's values, with their wildcards, is ``value`` or one of a list of values."""
    values = value if isinstance(value, list) else [value]
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
    return any(_compiled(pattern).fullmatch(text) for pattern in patterns for text in texts)


def _compiled(pattern: str) -> re.Pattern[str]:
    """EC2's own patterns: a backslash takes a wildcard's meaning away; brackets mean nothing."""
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    special = {"*": ".*", "?": "."}
    return re.compile("".join(special.get(part, re.escape(part[-1])) for part in parts), re.DOTALL)
