"""Token buckets, one for each token or address, in a table with an upper bound."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

#: Buckets that are remembered. The one that was used longest ago is forgotten first; by then it is full again
#: unless thousands of others came within a minute.
_MOST = 10_000
_WINDOW_S = 60


@dataclass(frozen=True)
class Allowance:
    """What a bucket says of one request. ``reset_s``: until the bucket is full again, or, when the request is
    refused, until the next one is admitted."""

    admitted: bool
    quota: int
    remaining: int
    reset_s: int

    def headers(self, policy: str) -> list[tuple[bytes, bytes]]:
        """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11)."""
        return [
            (b"ratelimit-policy", f'"{policy}";q={self.quota};w={_WINDOW_S}'.encode()),
            (b"ratelimit", f'"{policy}";r={self.remaining};t={self.reset_s}'.encode()),
        ]


class Buckets:
    """``per_minute`` requests each, all at once at first, then evenly."""

    def __init__(
        self, per_minute: int, *, most: int = _MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quota = per_minute
        self._rate = per_minute / _WINDOW_S
        self._most = most
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, name: str) -> Allowance:
        """Charge one request to a bucket."""
        now = self._clock()
        level, at = self._levels.pop(name, (float(self._quota), now))
        level = min(self._quota, level + (now - at) * self._rate)
        admitted = level >= 1
        level -= admitted
        self._levels[name] = (level, now)
        while len(self._levels) > self._most:
            self._levels.popitem(last=False)
        missing = self._quota - level if admitted else 1 - level
        return Allowance(admitted, self._quota, int(level), math.ceil(missing / self._rate))


def peer_name(address: str) -> str:
    """An address as one caller: of IPv6 the /64, since a host has all of it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if ip.version == 4:
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
