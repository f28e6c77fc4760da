"""/v1/instances over HTTP: taking, waiting, listing, extending and ending."""

from __future__ import annotations

import asyncio
from datetime import datetime

import asyncssh
import httpx2
import pytest
from support.patience import until
from support.service.fake import HOST_KEY
from support.service.served import KEY, Served

from instant_env.public_key import PublicKey
from instant_env.service.records import Scope
from instant_env.service.web.answers import LeaseAnswer

pytest_plugins = ("support.service.fixtures",)


def take(client: httpx2.Client, wait_s: int = 30, **fields: object) -> dict[str, object]:
    answer = client.post(
        "/v1/instances", json={"public_key": KEY, **fields}, headers={"Prefer": f"wait={wait_s}"}
    )
    assert answer.status_code == 201, answer.text
    body: dict[str, object] = answer.json()
    return body


def test_a_machine_is_accepted_and_then_ready(client: httpx2.Client) -> None:
    accepted = client.post("/v1/instances", json={"public_key": f"{KEY} me@here", "labels": {"job": "7"}})
    assert accepted.status_code == 202
    assert accepted.json()["state"] == "provisioning"
    location = accepted.headers["location"]
    assert location == accepted.json()["url"]
    ready = client.get(f"{location}/wait", params={"seconds": 50})
    assert ready.status_code == 200
    lease = LeaseAnswer.model_validate(ready.json())
    assert ready.headers["etag"] == f'W/"{lease.version}"'
    assert lease.state == "ready"
    assert lease.technique_asked == "auto"
    assert lease.technique == "warm-running"
    assert lease.source == "pool"
    assert lease.ssh == "ssh -p 2222 root@127.0.0.1"
    assert lease.known_hosts == f"[127.0.0.1]:2222 {HOST_KEY}"
    assert lease.host_keys_known_by == "console"
    assert lease.timing.t4_ms is not None
    assert lease.timing.t4_by == "pk_ok"
    assert lease.selection is not None
    assert lease.selection.alternatives[0].technique == "cold"
    assert lease.labels == {"job": "7"}
    assert lease.expires_at is not None
    assert lease.ready_at is not None
    assert (lease.expires_at - lease.ready_at).total_seconds() == 3600
    assert "me@here" not in ready.text


def test_prefer_wait_answers_when_it_is_ready(client: httpx2.Client) -> None:
    answer = client.post(
        "/v1/instances", json={"public_key": KEY}, headers={"Prefer": "respond-async, wait=900"}
    )
    assert answer.status_code == 201
    assert answer.headers["preference-applied"] == "wait=60"
    assert answer.json()["state"] == "ready"


def test_a_wait_that_is_too_short_answers_202(served: Served, client: httpx2.Client) -> None:
    served.call(lambda: setattr(served.fake, "hold", asyncio.Event()))
    answer = client.post("/v1/instances", json={"public_key": KEY}, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    for seconds in ("0", "-3", "nan", "0.01", "-inf"):
        waited = client.get(f"{answer.headers['location']}/wait", params={"seconds": seconds})
        assert waited.status_code == 200
        assert waited.json()["state"] == "provisioning"
    # Any number is taken: one that is too large is capped, and the lease's end ends the wait.
    lease_id = answer.json()["id"]
    fail = served.fake.fail(lease_id, "no machine came")
    served.call(lambda: asyncio.ensure_future(fail))
    waited = client.get(f"/v1/instances/{lease_id}/wait", params={"seconds": "1e300"})
    assert waited.json()["state"] == "failed"
    assert waited.json()["ended"] == {"reason": "failed-to-start", "detail": "no machine came"}


def test_an_idempotency_key_is_one_lease(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "a7b1", "Prefer": "wait=30"}
    first = client.post("/v1/instances", json={"public_key": KEY, "ttl_seconds": 600}, headers=headers)
    again = client.post(
        "/v1/instances", json={"ttl_seconds": 600, "public_key": KEY},
        headers={"Idempotency-Key": '"a7b1"'},
    )  # fmt: skip
    assert first.headers.get("idempotent-replayed") is None
    assert again.headers["idempotent-replayed"] == "true"
    assert again.status_code == 201  # it is ready, and the answer that was lost comes again
    for field in ("id", "address", "port", "timing", "known_hosts"):
        assert again.json()[field] == first.json()[field]
    other = client.post("/v1/instances", json={"public_key": KEY, "ttl_seconds": 601}, headers=headers)
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency-mismatch"
    assert client.post(
        "/v1/instances", json={"public_key": KEY}, headers={"Idempotency-Key": "two words"}
    ).json()["code"] == "invalid-request"  # fmt: skip
    assert len(client.get("/v1/instances").json()["leases"]) == 1


def test_lists_have_pages_and_filters(client: httpx2.Client) -> None:
    ids = [take(client)["id"] for _ in range(3)]
    client.delete(f"/v1/instances/{ids[0]}")
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/instances", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += [lease["id"] for lease in page.json()["leases"]]
        if (cursor := page.json()["cursor"]) is None:
            break
    assert seen == ids[::-1]
    ready = client.get("/v1/instances", params={"state": "ready, provisioning"}).json()["leases"]
    assert [lease["id"] for lease in ready] == ids[:0:-1]


def test_leases_of_others_are_not_found(served: Served, client: httpx2.Client) -> None:
    theirs = take(client)["id"]
    with served.client(served.fake.add_token("lessee", {Scope.LEASE})) as other:
        for path in ("", "/wait", "/events"):
            assert other.get(f"/v1/instances/{theirs}{path}").status_code == 404
        assert other.delete(f"/v1/instances/{theirs}").status_code == 404
        assert other.get("/v1/instances").json()["leases"] == []
        assert other.get("/v1/instances", params={"all": "true"}).status_code == 403
        mine = take(other, technique="cold")["id"]
    everybodys = client.get("/v1/instances", params={"all": "true"}).json()["leases"]
    assert [lease["id"] for lease in everybodys] == [mine, theirs]
    assert [lease["id"] for lease in client.get("/v1/instances").json()["leases"]] == [theirs]


@pytest.mark.parametrize("name", ["nope", "ls-%00", "..", "x" * 65, "%2e%2e%2fetc"])
def test_an_id_of_nothing_is_not_found(shared: httpx2.Client, name: str) -> None:
    answer = shared.get(f"/v1/instances/{name}")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"


def test_a_lease_is_extended_shortened_and_ended(client: httpx2.Client) -> None:
    path = take(client)["url"]
    longer = client.post(f"{path}/ttl", json={"ttl_seconds": 7200})
    assert longer.status_code == 200
    assert until_s(longer.json()) > 7000
    shorter = client.post(f"{path}/ttl", json={"ttl_seconds": 60})
    assert shorter.json()["code"] == "ttl-out-of-range"
    assert client.post(f"{path}/ttl", json={"ttl_seconds": 70, "shorten": True}).status_code == 200
    for _ in range(2):
        ended = client.delete(f"{path}")
        assert ended.status_code == 202
        assert ended.json()["state"] in ("ending", "ended")
    over = until(lambda: (lease := client.get(str(path)).json())["state"] == "ended" and lease)
    assert isinstance(over, dict)
    assert over["ended"]["reason"] == "deleted"
    assert over["ended_at"]
    refused = client.post(f"{path}/ttl", json={"ttl_seconds": 600})
    assert refused.status_code == 409
    assert refused.json()["code"] == "lease-ended"


def until_s(lease: dict[str, str]) -> float:
    """How long a lease has, by the service's own clock."""
    return (
        datetime.fromisoformat(lease["expires_at"]) - datetime.fromisoformat(lease["now"])
    ).total_seconds()


def test_a_version_that_is_known_is_not_sent_again(client: httpx2.Client) -> None:
    path = str(take(client)["url"])
    etag = client.get(path).headers["etag"]
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    client.post(f"{path}/ttl", json={"ttl_seconds": 7200})
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_fingerprints_are_those_of_openssh(algorithm: str) -> None:
    key = asyncssh.generate_private_key(algorithm)
    public = PublicKey.parse(key.export_public_key().decode())
    assert public.fingerprint == key.get_fingerprint()
