"""Prometheus metrics of leases and pools. Units are in names, label sets are small and closed."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from instant_env.service.operations import PoolView
from instant_env.service.records import EndReason, Lease, LeaseState, Timing

_PHASE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class Metrics:
    """One registry per service, so that two in one process do not share counters."""

    def __init__(self, control_plane: str) -> None:
        self.registry = CollectorRegistry()
        info = Gauge("instant_env_info", "The control plane's id", ["control_plane"], registry=self.registry)
        info.labels(control_plane).set(1)
        self._phases = Histogram(
            "instant_env_phase_seconds", "From the request to t1, t2, t3, t4",
            ["phase", "technique", "source"], buckets=_PHASE_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self._claims = Counter(
            "instant_env_claims_total", "Requests that a pool could have served", ["pool", "result"],
            registry=self.registry,
        )  # fmt: skip
        self._ends = Counter(
            "instant_env_lease_ends_total", "Leases that ended", ["reason"], registry=self.registry
        )
        self._launch_failures = Counter(
            "instant_env_launch_failures_total", "Machines that came to nothing", ["technique"],
            registry=self.registry,
        )  # fmt: skip
        self._leases = Gauge("instant_env_leases", "Live leases", ["state"], registry=self.registry)
        self._overdue = Gauge(
            "instant_env_lease_overdue_seconds", "The longest time that a lease has outlived its promise",
            registry=self.registry,
        )  # fmt: skip
        self._slots = Gauge(
            "instant_env_pool_slots", "Machines of a pool", ["pool", "state"], registry=self.registry
        )
        self._target = Gauge("instant_env_pool_target", "Target of a pool", ["pool"], registry=self.registry)
        self._cost = Gauge(
            "instant_env_pool_cost_usd_per_hour", "What a pool's machines cost", ["pool"],
            registry=self.registry,
        )  # fmt: skip
        self._broken = Gauge(
            "instant_env_pool_breaker_open", "1 while a pool is not filled after failures", ["pool"],
            registry=self.registry,
        )  # fmt: skip
        self._fills = Histogram(
            "instant_env_pool_fill_seconds", "Fills of a pool", ["pool", "outcome"],
            buckets=_PHASE_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.sweep = Gauge(
            "instant_env_sweep_last_success_timestamp_seconds", "When EC2 was last compared with the rows",
            registry=self.registry,
        )  # fmt: skip

    def ready(self, technique: str, source: str, timing: Timing) -> None:
        """A lease became ready."""
        for phase in ("t1", "t2", "t3", "t4"):
            value_ms = getattr(timing, f"{phase}_ms")
            if value_ms is not None:
                self._phases.labels(phase, technique, source).observe(value_ms / 1000)

    def claim(self, pool: str, *, hit: bool) -> None:
        self._claims.labels(pool, "hit" if hit else "miss").inc()

    def launch_failed(self, technique: str) -> None:
        self._launch_failures.labels(technique).inc()

    def lease_ended(self, reason: EndReason | None) -> None:
        self._ends.labels(reason.value if reason else "unknown").inc()

    def filled(self, pool: str, took_s: float, *, ok: bool) -> None:
        self._fills.labels(pool, "ok" if ok else "failed").observe(took_s)

    def observe(self, pools: Sequence[PoolView], leases: Sequence[Lease], now: datetime) -> None:
        """Set what is a state and not an event."""
        tally = Tally(lease.state for lease in leases)
        for state in LeaseState:
            if not state.is_terminal:
                self._leases.labels(state.value).set(tally[state])
        overdue = [(now - lease.expires_at).total_seconds() for lease in leases if lease.expires_at]
        self._overdue.set(max([0.0, *overdue]))
        for pool in pools:
            self._slots.labels(pool.name, "ready").set(pool.ready)
            self._slots.labels(pool.name, "filling").set(pool.filling)
            self._target.labels(pool.name).set(pool.target)
            self._cost.labels(pool.name).set(pool.usd_per_hour)
            self._broken.labels(pool.name).set(pool.state == "broken")

    def text(self) -> str:
        return generate_latest(self.registry).decode()
