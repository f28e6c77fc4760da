"""Calls that somebody's clock runs for, or that poll: each goes out once, and what is repeated is said.

botocore repeats by itself every answer with an HTTP status of 500, and InsufficientInstanceCapacity is one
(github.com/nib/hammertime, issue 29): in its adaptive mode with 8 repeats a RunInstances without capacity
goes out nine times, which takes 4 to 11 s, and after the first throttled call its limiter slows every other
call of the client. So these calls have clients that try once (:attr:`Cloud.ec2_once`,
:attr:`Cloud.ec2_polls`) and are repeated here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

T = TypeVar("T")

#: EC2's codes for "slow down" (EC2 Developer Guide, "Request throttling for the Amazon EC2 API"), and those
#: of other services (botocore/retries/standard.py, ThrottledRetryableChecker).
THROTTLING = frozenset(
    {
        "RequestLimitExceeded", "EC2ThrottledException", "Throttling", "ThrottlingException",
        "ThrottledException", "RequestThrottled", "RequestThrottledException", "TooManyRequestsException",
    }
)  # fmt: skip

#: Server errors of which EC2 says to repeat the request (EC2 API Reference, "Error codes"). The codes of
#: capacity come with the same HTTP status 500 and are none of these.
_TRANSIENT = frozenset({"InternalError", "InternalFailure", "Unavailable", "ServiceUnavailable"})

#: Gateways in front of EC2 answer so, without a code of EC2's. 500 is not among them, because of capacity.
_GATEWAY_STATUSES = frozenset({502, 503, 504})

#: Seconds before each repeat: RunInstances' request bucket is refilled at 2 a second (Developer Guide). Each
#: is drawn from its upper half, so that launches that were throttled together do not return together.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a call answered in the end. ``note`` says how often it was repeated and why; empty if not."""

    value: T
    note: str = ""


def is_repeatable(error: Exception) -> bool:
    """Whether the same call may succeed in a moment: throttled, failed within EC2, or not answered at all."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        is_gateways = status in _GATEWAY_STATUSES and (not code or code.isdigit())
        return code in THROTTLING | _TRANSIENT or is_gateways
    return isinstance(error, ConnectionError | HTTPClientError)


def repeated(call: Callable[[], T], doing: str, *, sleep: Callable[[float], None] | None = None) -> Answer[T]:
    """Make a call that may be made twice (it has a client token, or the second time changes nothing).

    It is made again, five times at most within 16 s, after errors that :func:`is_repeatable` allows; never
    for want of capacity. The last error is passed on, with a note (``__notes__``) when there were repeats.
    """
    reasons: list[str] = []
    started = time.monotonic()
    for pause_s in (*_PAUSES_S, None):
        try:
            return Answer(call(), _note(doing, reasons, started))
        except (ClientError, ConnectionError, HTTPClientError) as error:
            if pause_s is None or not is_repeatable(error):
                if note := _note(doing, reasons, started):
                    error.add_note(note)
                raise
            reasons.append(_reason(error))
        (sleep or time.sleep)(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
    raise AssertionError("the last try returns or raises")


def _reason(error: Exception) -> str:
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or "no code"
    return type(error).__name__


def _note(doing: str, reasons: list[str], started: float) -> str:
    """``RunInstances went out 3 times in 1.4 s: RequestLimitExceeded``."""
    if not reasons:
        return ""
    took_s = time.monotonic() - started
    return f"{doing} went out {len(reasons) + 1} times in {took_s:.1f} s: {', '.join(dict.fromkeys(reasons))}"


def joined(*notes: str) -> str:
    """Notes as one, without those that are empty."""
    return "; ".join(note for note in notes if note)


def words(error: BaseException) -> str:
    """An error's text with the notes of it: what was repeated before it."""
    return joined(str(error), *getattr(error, "__notes__", []))
