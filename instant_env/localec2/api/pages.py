"""Pages of a listing: what EC2's Describe actions share and moto leaves out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.paging import paging

T = TypeVar("T")

#: Of most Describe actions (API_DescribeInstances, API_DescribeSecurityGroups).
LEAST, MOST = 5, 1000


def page(
    results: Sequence[T],
    token: str | None,
    most: Any,
    name_of: Callable[[T], str],
    least: int = LEAST,
    longest: int = MOST,
) -> tuple[list[T], str | None]:
    """One page of what was found, and the token of the next (None: this is the last).

    The token says which item was the last one of the page before, so what comes meanwhile shifts nothing, and
    neither does what goes: it says as well how many items came up to it. ``results`` must always come in the
    same order. Raises EC2ClientError for a token that no answer had.
    """
    if most is not None and not least <= int(most) <= longest:
        bound = f"greater than {least}" if int(most) < least else f"less than {longest}"
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Value ( {most} ) for parameter maxResults is invalid. Expecting a value {bound}.",
        )
    start = 0
    if token is not None:
        last, count = _opened(token)
        # The last item may have gone since: what followed it has moved up.
        start = next((i + 1 for i, item in enumerate(results) if name_of(item) == last), count - 1)
    items = list(results[start : start + int(most or longest)])
    end = start + len(items)
    return items, _token(name_of(items[-1]), end) if len(results) > end else None


def _token(last: str, count: int) -> str:
    text = f"{count} {last}".encode()
    return base64.urlsafe_b64encode(hashlib.sha256(text).digest()[:6] + text).decode()


def _opened(token: str) -> tuple[str, int]:
    """What :func:`_token` put in. It has a checksum: EC2 does not take what is not of its own making."""
    try:
        content = base64.b64decode(token, altchars=b"-_", validate=True)
        count, _, last = content[6:].decode().partition(" ")
        if token == _token(last, int(count)):
            return last, int(count)
    except ValueError:
        pass
    raise invalid_token(token)


def invalid_token(token: str) -> EC2ClientError:
    """EC2's answer to a token that is not one of its own (boto3's issue 2673 has it word for word)."""
    return EC2ClientError(
        "InvalidParameterValue",
        f"Value ( {token} ) for parameter NextToken is invalid. The token is invalid.",
    )


def paged(action: str, answer: Any, params: Mapping[str, Any]) -> Any:
    """A whole answer as a page of it, when the action has pages and has not made one itself.

    Raises EC2ClientError for a token that no answer had, and for combinations that EC2 refuses.
    """
    shape = paging(action)
    if shape is None or not isinstance(answer, dict) or "NextToken" in answer:
        return answer
    token, most = params.get("NextToken"), params.get("MaxResults")
    if most is not None and any(params.get(name) for name in shape.excluded):
        raise EC2ClientError(
            "InvalidParameterCombination",
            f"The parameter {shape.excluded[0]} cannot be used with the parameter maxResults",
        )
    results = list(enumerate(answer.get(shape.items) or []))
    items, following = page(
        results, token, most, lambda item: shape.name_of(item[1]) or str(item[0]), shape.least, shape.most
    )
    return {**answer, shape.items: [item for _, item in items], "NextToken": following}
