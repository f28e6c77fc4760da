"""Techniques, pools, quota and tokens over HTTP."""

from __future__ import annotations

import httpx2
import pytest
from support.patience import until
from support.service.fake import POOL
from support.service.served import KEY, Served

from instant_env.service.records import Scope

pytest_plugins = ("support.service.fixtures",)


def test_techniques_say_what_auto_thinks(client: httpx2.Client) -> None:
    answer = client.get("/v1/techniques", params={"arch": "arm64"}).json()
    first = answer["techniques"][0]
    assert (first["name"], first["rank"], first["arch"], first["available"]) == (
        "warm-running",
        1,
        "arm64",
        True,
    )
    assert answer["percentiles"][-1]["technique"] == "cold"
    client.post("/v1/instances", json={"public_key": KEY})
    assert client.get("/v1/techniques").json()["techniques"][0]["why"] == "pool-empty"
    assert client.get("/v1/techniques", params={"arch": "vax"}).status_code == 422


def test_pools_are_seen_changed_and_their_machines_retired(client: httpx2.Client) -> None:
    (pool,) = client.get("/v1/pools").json()["pools"]
    assert client.get(f"/v1/pools/{POOL}").json()["name"] == pool["name"] == POOL
    assert pool["hit_ratio"] is None
    (machine,) = pool["machines"]
    changed = client.patch(f"/v1/pools/{POOL}", json={"target": 2, "paused": True})
    assert (changed.json()["target"], changed.json()["target_of_settings"]) == (2, 1)
    assert changed.json()["state"] == "paused"
    client.patch(f"/v1/pools/{POOL}", json={"paused": False})
    retired = client.delete(f"/v1/pools/{POOL}/machines/{machine['id']}")
    assert retired.status_code == 200
    assert machine["id"] not in [each["id"] for each in retired.json()["machines"]]
    assert client.delete(f"/v1/pools/{POOL}/machines/{machine['id']}").status_code == 404
    until(lambda: client.get(f"/v1/pools/{POOL}").json()["ready"] == 2)  # filled again


@pytest.mark.parametrize("body", [{}, {"target": -1}, {"target": None}, {"paused": "no"}, {"size": 1}])
def test_a_change_of_a_pool_that_says_nothing_or_too_much_is_refused(
    shared: httpx2.Client, body: dict[str, object]
) -> None:
    answer = shared.patch(f"/v1/pools/{POOL}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert shared.get(f"/v1/pools/{POOL}").json()["target"] == 1


def test_pools_are_the_administrators(served: Served, client: httpx2.Client) -> None:
    assert client.patch("/v1/pools/other", json={"target": 1}).status_code == 404
    assert client.get("/v1/pools/other").status_code == 404
    with served.client(served.fake.add_token("lessee", {Scope.LEASE})) as lessee:
        assert lessee.get("/v1/pools").status_code == 200
        assert lessee.patch(f"/v1/pools/{POOL}", json={"target": 9}).status_code == 403
        assert lessee.get("/v1/tokens").status_code == 403


def test_quota_has_limits_and_what_is_used(client: httpx2.Client) -> None:
    client.post("/v1/instances", json={"public_key": KEY})
    quota = client.get("/v1/quota").json()
    assert (quota["leases"], quota["max_leases"]) == (1, 20)
    assert quota["ttl"] == {"ttl_s": 3600, "min_ttl_s": 60, "max_ttl_s": 86400, "max_lifetime_s": 604800}


def test_a_token_is_shown_once_works_and_is_revoked(served: Served, client: httpx2.Client) -> None:
    answer = client.post(
        "/v1/tokens",
        json={
            "name": " ci ",
            "scopes": ["lease"],
            "max_leases": 1,
            "ttl_seconds": 3600,
            "max_usd_per_hour": 0.5,
        },
    )
    assert answer.status_code == 201
    token, secret = answer.json()["token"], answer.json()["secret"]
    assert answer.headers["location"] == f"/v1/tokens/{token['id']}"
    assert token["name"] == "ci"
    assert "sha256" not in answer.text
    listed = client.get("/v1/tokens")
    assert secret not in listed.text
    assert token in listed.json()["tokens"]
    with served.client(secret) as holder:
        assert holder.post("/v1/instances", json={"public_key": KEY}).status_code == 202
        full = holder.post("/v1/instances", json={"public_key": KEY})
        assert (full.status_code, full.json()["code"], full.json()["limit"]) == (429, "quota", 1)
        assert client.delete(f"/v1/tokens/{token['id']}").json()["revoked_at"]
        assert holder.get("/v1/instances").status_code == 401
    assert client.delete("/v1/tokens/tk-0").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"}, {"name": "", "scopes": ["read"]}, {"name": "a\nb", "scopes": ["read"]},
        {"name": "x", "scopes": []}, {"name": "x", "scopes": ["root"]},
        {"name": "x", "scopes": ["read"], "max_usd_per_hour": "1"},
        {"name": "x", "scopes": ["read"], "ttl_seconds": None},
        {"name": "x", "scopes": ["read"], "owner": "y"},
    ],
)  # fmt: skip
def test_a_token_that_cannot_be_is_refused(shared: httpx2.Client, body: dict[str, object]) -> None:
    answer = shared.post("/v1/tokens", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
