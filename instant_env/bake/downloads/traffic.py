"""What went through the proxy: bytes and seconds for each host, refusals, and failures."""

from __future__ import annotations

import threading
from dataclasses import dataclass

#: What a peer asked for is kept for so many hosts: a builder that asks for ever more of them fills no memory.
_MOST_HOSTS = 200


@dataclass
class HostTraffic:
    """Of one host. ``seconds`` add up over requests, which overlap."""

    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    #: Why the last request that failed did; empty when none has.
    failure: str = ""


class Traffic:
    """Of one bake. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, HostTraffic] = {}
        self._refused: dict[str, int] = {}

    def add(self, host: str, count: int, seconds: float, failure: str = "") -> None:
        """A request to ``host`` is over: ``count`` bytes came from it, and it failed or did not."""
        with self._lock:
            if host not in self._hosts and len(self._hosts) >= _MOST_HOSTS:
                return
            traffic = self._hosts.setdefault(host, HostTraffic())
            traffic.requests += 1
            traffic.bytes += count
            traffic.seconds += seconds
            traffic.failure = failure or traffic.failure

    def refuse(self, host: str) -> None:
        """A request was refused: ``host`` is not allowed."""
        with self._lock:
            if host in self._refused or len(self._refused) < _MOST_HOSTS:
                self._refused[host] = self._refused.get(host, 0) + 1

    @property
    def refused(self) -> tuple[str, ...]:
        """The hosts that were refused, in the order of their first refusal."""
        with self._lock:
            return tuple(self._refused)

    @property
    def failures(self) -> dict[str, str]:
        """Why the last request that failed did, by host."""
        with self._lock:
            return {host: traffic.failure for host, traffic in self._hosts.items() if traffic.failure}

    def lines(self) -> list[str]:
        """For the log: a line for each host, the one with the most bytes first."""
        with self._lock:
            hosts = sorted(self._hosts.items(), key=lambda pair: -pair[1].bytes)
            refused = list(self._refused.items())
        lines = [
            f"downloads: {host}: {traffic.bytes} bytes, {traffic.requests} requests, {traffic.seconds:.1f} s"
            + (f"; last failure: {traffic.failure}" if traffic.failure else "")
            for host, traffic in hosts
        ]
        return lines + [f"downloads: {host}: refused {count} times" for host, count in refused]

    def summary(self) -> str:
        """One line for the person who waits; empty when nothing was fetched."""
        with self._lock:
            hosts = sorted(self._hosts.items(), key=lambda pair: -pair[1].bytes)
        parts = [
            f"{traffic.bytes / 1e6:.1f} MB from {host} in {traffic.seconds:.1f} s"
            for host, traffic in hosts[:3]
        ]
        if len(hosts) > 3:
            rest = sum(traffic.bytes for _, traffic in hosts[3:])
            parts.append(f"{rest / 1e6:.1f} MB from {len(hosts) - 3} more hosts")
        return f"downloads by this computer: {', '.join(parts)}" if parts else ""
