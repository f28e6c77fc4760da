"""Leases and tokens for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from instant_env.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d{1,7})([smhd])")
_PHASES = {
    "requested": "asked for",
    "claimed": "a machine that waited is claimed (t1)",
    "launched": "EC2 has named a machine (t1)",
    "running": "it runs (t2)",
    "ssh": "sshd answers (t3)",
    "ready": "sshd lets the key in (t4)",
    "interrupted": "EC2 will take the spot machine back",
    "ending": "it ends",
    "ended": "it has ended",
    "failed": "it came to nothing",
}


def seconds_of(text: str, flag: str) -> int:
    """``90s``, ``15m``, ``1h``, ``1d`` in seconds. Raises UsageError."""
    match = _SPAN.fullmatch(text.strip().lower()) if text.isascii() else None
    if match is None or not int(match[1]):
        raise UsageError(f"{flag} {text} is no time", hint="for example: 90s, 15m, 1h, 1d")
    return int(match[1]) * _UNITS[match[2]]


def span(seconds: float) -> str:
    """A short time: ``45 s``, ``12 min``, ``3 h 05 min``."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def left(lease: Mapping[str, Any]) -> str:
    """How long a lease has, by the service's clock; empty when that is not decided."""
    if not lease["expires_at"] or lease["state"] != "ready":
        return ""
    end, now = (datetime.fromisoformat(lease[name]) for name in ("expires_at", "now"))
    return span((end - now).total_seconds())


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def phase(event: Mapping[str, Any]) -> str:
    """One event for people: ``it runs (t2): 812 ms``."""
    data = event.get("data") or {}
    marks = [
        milliseconds(value) for name, value in data.items() if re.fullmatch(r"t\d_ms", str(name)) and value
    ]
    detail = str(data.get("detail") or data.get("reason") or "")
    return ": ".join(
        part for part in (_PHASES.get(event["kind"], event["kind"]), " ".join(marks) or detail) if part
    )


def lease_table(leases: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None)
    for heading in ("lease", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("technique", "address", "login after", "ends in", "reason"):
        table.add_column(heading)
    for lease in leases:
        table.add_row(
            lease["id"], lease["state"], _technique(lease), lease["address"] or "",
            milliseconds(lease["timing"]["t4_ms"]), left(lease),
            (lease["ended"] or {}).get("reason", ""),
        )  # fmt: skip
    return table


def _technique(lease: Mapping[str, Any]) -> str:
    used = lease["technique"] or ""
    return f"{used} ({lease['source']})" if used and lease["source"] else used


def lease_lines(lease: Mapping[str, Any]) -> list[str]:
    """One lease, as `lease.show` prints it."""
    timing = lease["timing"]
    phases = [f"{mark} {milliseconds(timing[f'{mark}_ms'])}" for mark in ("t1", "t2", "t3", "t4")
              if timing[f"{mark}_ms"] is not None]  # fmt: skip
    rows = [
        ("state", lease["state"]),
        ("technique", " ".join([_technique(lease) or "-", f"(asked: {lease['technique_asked']})"])),
        ("machine", f"{lease['instance_type']} {lease['arch']} {lease['instance_id'] or ''}".strip()),
        ("price", f"{lease['usd_per_hour']:.4f} USD/h {lease['market'] or ''}".strip()),
        ("address", f"{lease['address']} port {lease['port']}" if lease["address"] else ""),
        ("host keys", _known_by(lease)),
        ("times", ", ".join(phases)),
        ("ends", f"{lease['expires_at']} (in {left(lease)})" if left(lease) else ""),
        ("ended", " ".join([lease["ended_at"] or "", (lease["ended"] or {}).get("reason", "")]).strip()),
        ("detail", lease["detail"]),
    ]
    return [lease["id"], *(f"  {name:<10} {value}" for name, value in rows if value)]


def _known_by(lease: Mapping[str, Any]) -> str:
    kinds = ", ".join(key["type"] for key in lease["host_keys"])
    return f"{kinds}, known by {lease['host_keys_known_by']}" if kinds else ""


def token_table(tokens: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("token", no_wrap=True)
    for heading in ("name", "scopes", "leases", "USD/h", "state"):
        table.add_column(heading)
    for token in tokens:
        most, usd = token["max_leases"], token["max_usd_per_hour"]
        state = (
            "revoked"
            if token["revoked_at"]
            else f"until {token['expires_at']}"
            if token["expires_at"]
            else "valid"
        )
        table.add_row(
            token["id"], token["name"], ", ".join(token["scopes"]), "" if most is None else str(most),
            "" if usd is None else f"{usd:g}", state,
        )  # fmt: skip
    return table
