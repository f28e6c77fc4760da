"""The web room over the engine itself, with a real store and a pretended fleet: the seam between the two."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
from support.service.fleet import HOST_KEY
from support.service.rig import KEY, rig

from instant_env.cli.service_client import parsed
from instant_env.service.records import LeaseState
from instant_env.service.web.answers import LeaseAnswer
from instant_env.service.web.app import make_app


def test_a_lease_by_http_from_the_key_to_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(tmp_path / "store.sqlite") as r:
            await r.fill()
            _, secret = await r.new_token()
            transport = httpx2.ASGITransport(app=make_app(r.engine, r.context.settings, log=r.context.log))
            headers = {"Authorization": f"Bearer {secret}"}
            async with httpx2.AsyncClient(
                transport=transport, base_url="http://service", headers=headers
            ) as client:
                await lease_by_http(client)
                (live,) = r.store.live_leases()
                async with asyncio.timeout(60):
                    while r.lease(live.id).state is not LeaseState.ENDED:
                        await r.tower.tick()
                        await asyncio.sleep(0.005)
                await afterwards(client)
            assert secret not in r.logged.getvalue()
            assert KEY.body not in r.logged.getvalue()

    async def lease_by_http(client: httpx2.AsyncClient) -> None:
        ask = {"public_key": f"{KEY} me@here", "labels": {"job": "7"}}
        taken = await client.post(
            "/v1/instances", json=ask, headers={"Prefer": "wait=60", "Idempotency-Key": "a"}
        )
        assert taken.status_code == 201, taken.text
        lease = LeaseAnswer.model_validate(taken.json())
        assert lease.source == "pool"
        assert lease.known_hosts is not None
        assert lease.known_hosts.endswith(HOST_KEY)
        assert lease.timing.t4_ms is not None
        again = await client.post("/v1/instances", json=ask, headers={"Idempotency-Key": "a"})
        assert again.headers["idempotent-replayed"] == "true"
        assert again.status_code == 201
        assert again.json()["timing"] == taken.json()["timing"]
        other = await client.post(
            "/v1/instances", json={"public_key": str(KEY)}, headers={"Idempotency-Key": "a"}
        )
        assert other.json()["code"] == "idempotency-mismatch"
        for body, code in (
            ({"public_key": str(KEY), "technique": "magic"}, "unsupported-technique"),
            ({"public_key": str(KEY), "ttl_seconds": 1}, "ttl-out-of-range"),
        ):
            refused = await client.post("/v1/instances", json=body)
            assert refused.json()["code"] == code, refused.text
        longer = await client.post(f"{lease.url}/ttl", json={"ttl_seconds": 7200})
        assert longer.json()["version"] > lease.version
        assert (await client.get("/v1/instances?cursor=nonsense")).status_code == 422
        assert (await client.delete(lease.url)).json()["state"] == "ending"

    async def afterwards(client: httpx2.AsyncClient) -> None:
        (lease,) = (await client.get("/v1/instances?state=ended")).json()["leases"]
        assert lease["ended"]["reason"] == "deleted"
        stream = await client.get(f"{lease['url']}/events")
        kinds = [event["kind"] for event in parsed(iter(stream.text.splitlines()))]
        assert kinds[:3] == ["requested", "claimed", "ready"]
        assert kinds[-1] == "ended"
        over = await client.get(f"{lease['url']}/events", headers={"Last-Event-ID": "999"})
        assert over.status_code == 204
        for path in (
            "/v1/techniques",
            "/v1/pools",
            "/v1/quota",
            "/v1/tokens",
            "/metrics",
            "/page/board",
            "/",
        ):
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
        assert (await client.get("/v1/instances/ls-0")).json()["code"] == "not-found"

    asyncio.run(scenario())
