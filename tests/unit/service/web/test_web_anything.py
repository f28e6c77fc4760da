"""Whatever is sent, the answer is one of the service's, and none is a mistake of ours."""

from __future__ import annotations

import asyncio
import io
import json
import random
from typing import Any

import httpx2
from support.service.fake import POOL, FakeOperations
from support.service.served import KEY

from instant_env.service.logs import make_logger
from instant_env.service.web.app import make_app
from instant_env.service_settings import ServiceSettings

_SEED = 9457
_REQUESTS = 600
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 60, 1e308, 10**40, "", "auto", KEY, f"{KEY}\n{KEY}", "\u0000", "\ud800", "é" * 500, [],
    {}, [[]], {"a": {}}, "١", "arm64", "a" * 20_000,
)  # fmt: skip
_FIELDS = (
    "public_key", "technique", "arch", "instance_type", "market", "ttl_seconds", "fallback", "labels", "name",
    "scopes", "target", "paused", "shorten", "max_leases", "max_usd_per_hour", "instance_types", "\ud800",
)  # fmt: skip
_PATHS = (
    "/v1/instances", "/v1/instances/{id}", "/v1/instances/{id}/wait", "/v1/instances/{id}/ttl", "/v1/pools",
    f"/v1/pools/{POOL}", f"/v1/pools/{POOL}/machines/y", "/v1/tokens", "/v1/tokens/x", "/v1/quota", "//",
    "/%00",
    "/v1/techniques?arch=arm64&instance_type=%00", "/page/board", "/page/x", "/v1/instances/%ff",
    "/v1/instances?limit=1&limit=2", "/v1/instances?cursor=%00", "/v1/instances?state=%ff", "/metrics",
)  # fmt: skip
_HEADERS: dict[str, tuple[str | bytes, ...]] = {
    "Prefer": ("wait=0", "wait=-1", "wait=", "wait=1;x, wait=0"),
    "Idempotency-Key": ("a", "b" * 300, '"', '""', "é".encode("latin-1")),
    "If-None-Match": ('"1"', "*", ",,,"),
    "X-Request-Id": ("a" * 65, b"\xff"),
    "Authorization": ("", "Bearer", b"Bearer \xe9", "Basic x", "Bearer  "),
}


def anything(dice: random.Random, lease_id: str) -> tuple[str, str, dict[str, str | bytes], bytes | None]:
    path = dice.choice(_PATHS).replace("{id}", lease_id if dice.random() < 0.7 else "none")
    method = dice.choice(("GET", "POST", "POST", "PATCH", "DELETE", "PUT"))
    headers = {name: dice.choice(values) for name, values in _HEADERS.items() if dice.random() < 0.15}
    if method in ("GET", "DELETE"):
        return method, path, headers, None
    fields = {dice.choice(_FIELDS): dice.choice(_VALUES) for _ in range(dice.randint(0, 4))}
    if dice.random() < 0.5:
        fields["public_key"] = KEY
    body = json.dumps(fields if dice.random() < 0.9 else dice.choice(_VALUES)).encode()
    if dice.random() < 0.1:
        body = dice.choice((dice.randbytes(30), body.replace(b"1", b"NaN"), b"[" * 9000))
    headers["Content-Type"] = dice.choice(
        (*["application/json"] * 8, "text/plain", "application/json; charset=utf-16", "multipart/form-data")
    )
    return method, path, headers, body


def test_no_request_is_a_mistake_of_ours() -> None:
    async def scenario() -> None:
        settings = ServiceSettings(max_leases=10_000, requests_per_minute=10**9)
        fake = FakeOperations(settings, speed=1000)
        log = io.StringIO()
        app = make_app(fake, settings, log=make_logger(log), peer_requests_per_minute=10**9)
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://service", timeout=60,
            headers={"Authorization": f"Bearer {fake.admin_secret}"},
        )  # fmt: skip
        dice = random.Random(_SEED)  # noqa: S311 - the same requests each time
        seen = set()
        async with client:
            lease = await client.post("/v1/instances", json={"public_key": KEY})
            for _ in range(_REQUESTS):
                method, path, headers, body = anything(dice, lease.json()["id"])
                answer = await client.request(method, path, headers=headers, content=body)  # type: ignore[arg-type]
                what = (method, path, headers, body, answer.text)
                assert answer.status_code < 500, what
                if answer.status_code >= 400:
                    assert answer.headers["content-type"] == "application/problem+json", what
                seen.add(answer.status_code)
        assert {200, 202, 400, 401, 404, 405, 422} <= seen
        assert "request failed" not in log.getvalue()
        assert fake.admin_secret not in log.getvalue()

    asyncio.run(scenario())
