"""All checks that do not depend on what an action does, in one go."""

from __future__ import annotations

from collections.abc import Iterable

from instant_env.localec2.api.requests.fields import check_types, typed
from instant_env.localec2.api.requests.tags import check_tags
from instant_env.localec2.api.requests.texts import check_texts


def check(action: str, wire: Iterable[tuple[str, str]]) -> None:
    """Refuse a request to EC2 by what its fields say. Raises EC2ClientError."""
    fields = list(typed(action, wire))
    check_texts(action, fields)
    check_types(fields)
    check_tags(action, fields)
