"""The page, its style and script, and the board that the script asks for again and again."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, Request
from starlette.responses import Response

from instant_env.service.operations import Code, Refusal
from instant_env.service.records import LeaseState
from instant_env.service.web.context import App, Caller
from instant_env.service.web.page import view

router = APIRouter(include_in_schema=False)

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {"page.css": "text/css", "page.js": "text/javascript"}
#: Leases on the page; `invoke lease.list` has all.
_MOST_LEASES = 50
_TIMES_S = (300, 900, 3600, 4 * 3600, 8 * 3600, 24 * 3600)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _file(name: str) -> tuple[bytes, str]:
    """A static file and its version, which is in its address, so that it may be kept for ever."""
    content = (_HERE / "static" / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


def span(seconds: float) -> str:
    """``15 min``, ``4 h``."""
    minutes = int(seconds) // 60
    return f"{minutes // 60} h" if minutes >= 60 and minutes % 60 == 0 else f"{minutes} min"


@router.get("/")
async def page(web: App) -> Response:
    facts = web.operations.server_facts()
    default_s = int(facts["ttl_s"])
    times = sorted({default_s, *(t for t in _TIMES_S if facts["min_ttl_s"] <= t <= facts["max_ttl_s"])})
    text = _templates().get_template("page.html.j2").render(
        facts=facts,
        times=[(t, span(t) if t % 60 == 0 else f"{t} s", t == default_s) for t in times],
        style=f"/page/page.css?{_file('page.css')[1]}",
        script=f"/page/page.js?{_file('page.js')[1]}",
    )  # fmt: skip
    return _html(text)


def _html(text: str) -> Response:
    return Response(
        text, media_type="text/html; charset=utf-8",
        headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store", "X-Frame-Options": "DENY"},
    )  # fmt: skip


@router.get("/page/board")
async def board(web: App, token: Caller) -> Response:
    """Three sections of HTML in one JSON object, so that the script changes only what has changed."""
    operations = web.operations
    found = (await operations.leases(token, limit=_MOST_LEASES)).leases
    pools = await operations.pools(token)
    percentiles = await operations.percentiles(token)
    leases = [view.lease_view(lease) for lease in found]
    parts: dict[str, dict[str, Any]] = {
        "pools": {"pools": view.pool_rows(pools)},
        "leases": {
            "live": [lease for lease in leases if lease.is_live],
            "over": [lease for lease in leases if not lease.is_live],
            "quota": await operations.quota(token),
        },
        "latency": {"rows": view.latency_rows(percentiles)},
    }
    sections = {
        name: _templates().get_template(f"{name}.html.j2").render(bar=view.BAR, usd=view.usd, **values)
        for name, values in parts.items()
    }
    waiting = [lease.id for lease in found if lease.state in (LeaseState.REQUESTED, LeaseState.PROVISIONING)]
    others = [lease.id for lease in leases if lease.is_live and lease.id not in waiting]
    text = json.dumps({"now": view.at(operations.now()), "watch": waiting + others, "sections": sections})
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/page/{name}")
async def static(name: str, request: Request) -> Response:
    if name not in _KINDS:
        raise Refusal(Code.NOT_FOUND, f"there is nothing at {request.method} {request.url.path}")
    content, version = _file(name)
    kept = "public, max-age=31536000, immutable" if request.url.query == version else "no-cache"
    return Response(content, media_type=_KINDS[name], headers={"Cache-Control": kept})
