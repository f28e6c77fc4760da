"""Prometheus metrics of the HTTP side; the engine's are in Operations.metrics()."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE"})


class HttpMetrics:
    """Labels are route templates, never paths, so that their number is bounded."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "instant_env_http_requests", "Requests by route and status.", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "instant_env_http_request_seconds", "From the request's head to the answer's end.",
            ["method", "route"], buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._problems = Counter(
            "instant_env_http_problems", "Refusals by code.", ["code"], registry=self._registry
        )
        self._replays = Counter(
            "instant_env_idempotent_replays",
            "POSTs whose lease was known by its key.",
            registry=self._registry,
        )
        self.streams = Gauge("instant_env_sse_streams", "Open event streams.", registry=self._registry)

    def request(self, method: str, route: str, status: int, seconds: float | None, problem: str) -> None:
        """Count one; ``seconds`` None for streams, whose length says nothing."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)
        if problem:
            self._problems.labels(problem).inc()

    def replay(self) -> None:
        self._replays.inc()

    def text(self) -> str:
        return generate_latest(self._registry).decode()
