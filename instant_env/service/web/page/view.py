"""What the page shows of leases, pools and latencies, as text and numbers for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from instant_env.public_key import PublicKey
from instant_env.service.operations import PercentilesView, PoolView
from instant_env.service.records import EndReason, Lease, LeaseState, Source
from instant_env.service.web.answers import ssh_command

_MARKS = (
    ("t1", "claim", "a machine was claimed, or EC2 named one"),
    ("t2", "boot", "the machine runs"),
    ("t3", "sshd", "sshd answers"),
    ("t4", "login", "sshd lets the key in"),
)
_REASONS = {
    EndReason.TTL: "its time was over",
    EndReason.DELETED: "ended by its lessee",
    EndReason.OPERATOR: "ended by the operator",
    EndReason.SPOT_INTERRUPTED: "EC2 took the spot machine back",
    EndReason.DIED: "the machine died",
    EndReason.FAILED_TO_START: "no machine came up",
}
_SOURCES = {Source.POOL: "from a pool", Source.COLD: "launched for this"}
#: Width of a phase bar in the units of its viewBox.
BAR = 1000


@dataclass(frozen=True)
class Segment:
    """One phase of a bar: milliseconds from the request, and where that is in the bar."""

    name: str
    title: str
    from_ms: float
    to_ms: float
    x: float
    width: float


@dataclass(frozen=True)
class LeaseView:
    """A lease as a card. ``predicted_ms``: how long the bar of one that is not ready is at first."""

    id: str
    state: str
    is_live: bool
    is_ready: bool
    how: str
    machine: str
    price: str
    ssh: str
    host_keys: tuple[str, ...]
    known_by: str
    segments: tuple[Segment, ...]
    times: str
    predicted_ms: float
    created: str
    expires: str
    ended: str

    @property
    def short(self) -> str:
        """Ids begin with the time, so what tells two of them apart is their end."""
        return self.id[-8:]


def milliseconds(value: float | None) -> str:
    """``412 ms``, ``15.2 s``."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def usd(value: float) -> str:
    return f"${value:.3f}" if value < 1 else f"${value:.2f}"


def at(moment: datetime | None) -> str:
    """A time that JavaScript reads; empty for none."""
    return moment.isoformat(timespec="milliseconds") if moment else ""


def _segments(lease: Lease) -> tuple[Segment, ...]:
    timing = lease.timing
    marks = (timing.t1_ms, timing.t2_ms, timing.t3_ms, timing.t4_ms)
    whole = max((mark for mark in marks if mark is not None), default=0.0) or 1.0
    segments = []
    before = 0.0
    for (mark, name, title), value in zip(_MARKS, marks, strict=True):
        if value is None:
            break
        x, width = (round(part / whole * BAR, 2) for part in (before, max(0.0, value - before)))
        what = f"{mark}: {title}, {milliseconds(value)} after the request"
        segments.append(Segment(name, what, before, value, x, width))
        before = max(before, value)
    return tuple(segments)


def _times(lease: Lease) -> str:
    marks = (lease.timing.t1_ms, lease.timing.t2_ms, lease.timing.t3_ms, lease.timing.t4_ms)
    pairs = zip(_MARKS, marks, strict=True)
    return " · ".join(f"{mark} {milliseconds(value)}" for (mark, _, _), value in pairs if value is not None)


def _ended(lease: Lease) -> str:
    if lease.reason is None:
        return lease.detail
    words = [_REASONS[lease.reason], lease.detail]
    return ": ".join(word for word in words if word)


def _host_key(line: str) -> str:
    kind, body = line.split()[:2]
    return f"{kind} {PublicKey(kind, body).fingerprint}"


def lease_view(lease: Lease) -> LeaseView:
    source = f", {_SOURCES[lease.source]}" if lease.source else ""
    request = lease.request
    return LeaseView(
        id=lease.id,
        state=lease.state.value,
        is_live=not lease.state.is_terminal,
        is_ready=lease.state is LeaseState.READY,
        how=f"{lease.technique or request.technique}{source}",
        machine=f"{request.instance_type} {request.arch}",
        price=f"{usd(lease.usd_per_hour)}/h",
        ssh=(ssh_command(lease) or "") if lease.state is LeaseState.READY else "",
        host_keys=tuple(_host_key(line) for line in lease.host_keys),
        known_by=lease.host_keys_known_by,
        segments=_segments(lease),
        times=_times(lease),
        predicted_ms=(lease.selection.predicted_ms if lease.selection else None) or 1000.0,
        created=at(lease.created_at),
        expires=at(lease.expires_at) if lease.state is LeaseState.READY else "",
        ended=_ended(lease),
    )


def pool_rows(pools: Sequence[PoolView]) -> list[dict[str, str]]:
    """A row for each pool, with the state's reason where there is one."""
    rows = []
    for pool in pools:
        asked = pool.hits + pool.misses
        ratio = "no request yet" if pool.hit_ratio is None else f"{pool.hit_ratio:.0%} of {asked}"
        rows.append({
            "name": pool.name,
            "state": pool.state,
            "target": str(pool.target),
            "ready": str(pool.ready),
            "filling": str(pool.filling),
            "cost": f"{usd(pool.usd_per_hour)}/h",
            "hits": ratio,
            "error": pool.last_error if pool.state in ("broken", "no-image") else "",
        })  # fmt: skip
    return rows


def latency_rows(percentiles: Sequence[PercentilesView]) -> list[dict[str, str]]:
    """Fastest first, each against cold."""
    cold = next((row.p50_ms for row in percentiles if row.technique == "cold"), None)
    rows = []
    for row in sorted(percentiles, key=lambda each: each.p50_ms):
        against = (
            "" if cold is None or row.technique == "cold" else f"{cold / max(row.p50_ms, 0.001):.1f}× faster"
        )
        if cold is not None and row.technique != "cold" and row.p50_ms > cold:
            against = f"{row.p50_ms / cold:.1f}× slower"
        rows.append({
            "technique": row.technique,
            "n": str(row.n),
            "p50": milliseconds(row.p50_ms),
            "p90": milliseconds(row.p90_ms),
            "p99": milliseconds(row.p99_ms),
            "against": against,
            "share": f"{min(1.0, row.p50_ms / max(each.p50_ms for each in percentiles)) * BAR:.1f}",
        })  # fmt: skip
    return rows
