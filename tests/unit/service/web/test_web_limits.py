"""Rates, tables with bounds, logs without secrets, and metrics whose labels are few."""

from __future__ import annotations

import io
import json
import re

import httpx2
import pytest
from support.patience import until
from support.service.served import KEY, Served, serving

from instant_env.service.logs import bound, make_logger
from instant_env.service.web.buckets import Buckets, peer_name
from instant_env.service_settings import ServiceSettings

pytest_plugins = ("support.service.fixtures",)


def test_a_bucket_is_full_at_first_and_fills_evenly() -> None:
    now = 0.0
    buckets = Buckets(60, clock=lambda: now)
    taken = [buckets.take("a") for _ in range(61)]
    assert [each.admitted for each in taken] == [True] * 60 + [False]
    assert [each.remaining for each in taken[:3]] == [59, 58, 57]
    assert taken[-1].reset_s == 1
    assert buckets.take("b").admitted
    now = 1.0
    assert buckets.take("a").admitted
    assert not buckets.take("a").admitted
    now = 1000.0
    assert buckets.take("a").remaining == 59  # never more than full


def test_a_table_of_buckets_has_a_bound() -> None:
    buckets = Buckets(60, most=100)
    for number in range(1000):
        buckets.take(str(number))
    assert len(buckets) == 100


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_peer_is_an_address_and_of_ipv6_a_network(address: str, name: str) -> None:
    assert peer_name(address) == name


def test_a_token_that_asks_too_often_is_told_when_to_come_back() -> None:
    with serving(ServiceSettings(requests_per_minute=5)) as service, service.client() as client:
        answers = [client.get("/v1/quota") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert answers[0].headers["ratelimit-policy"] == '"token";q=5;w=60'
        assert re.fullmatch(r'"token";r=4;t=\d+', answers[0].headers["ratelimit"])
        refused = answers[-1]
        assert refused.json()["code"] == "throttled"
        assert refused.json()["retryable"] is True
        assert 1 <= int(refused.headers["retry-after"]) <= 12
        assert refused.headers["ratelimit"].startswith('"token";r=0;')
        with service.client(service.fake.add_token("other", set())) as other:
            assert other.get("/v1/techniques").status_code == 403  # not 429: a bucket of its own


def test_strangers_are_counted_by_address_and_hinder_nobody_with_a_token() -> None:
    with serving(peer_requests_per_minute=5) as service:
        with service.client("ie_guess") as stranger:
            codes = [stranger.get("/v1/quota").status_code for _ in range(7)]
        assert codes == [401] * 5 + [429] * 2
        with service.client("") as stranger:
            assert stranger.get("/healthz").status_code == 429
            assert stranger.get("/nope").status_code == 429
        with service.client() as client:
            assert client.get("/v1/quota").status_code == 200


def test_the_log_has_ids_and_no_secrets(served: Served, client: httpx2.Client) -> None:
    answer = client.post(
        "/v1/instances",
        json={"public_key": f"{KEY} somebody@host", "labels": {"customer": "a-secret-customer"}},
        headers={"X-Request-Id": "my-request-7", "Idempotency-Key": "a-secret-key"},
    )
    assert answer.headers["x-request-id"] == "my-request-7"
    lease_id = answer.json()["id"]
    client.get(f"/v1/instances/{lease_id}", params={"x": "a-secret-parameter"})
    odd = client.get(f"/v1/instances/{lease_id}", headers={"X-Request-Id": "two words"})
    assert re.fullmatch(r"[0-9a-f]{32}", odd.headers["x-request-id"])
    with served.client("ie_guessed0000000000000000") as stranger:
        stranger.get("/v1/quota")
    made = client.post("/v1/tokens", json={"name": "ci", "scopes": ["lease"]}).json()
    served.fake.mistakes = [RuntimeError(f"Authorization: Bearer {made['secret']}")]
    client.get("/v1/quota")
    until(lambda: sum(line["event"] == "request" for line in served.lines) >= 6)
    text = served.log.getvalue()
    for secret in (
        served.fake.admin_secret, made["secret"], "ie_guessed", KEY.split()[1], "somebody@host", "a-secret",
    ):  # fmt: skip
        assert secret not in text
    first = next(line for line in served.lines if line.get("request_id") == "my-request-7")
    assert first["lease_id"] == lease_id
    assert first["route"] == "/v1/instances"
    assert first["status"] == 202
    assert first["token_id"]
    assert first["level"] == "info"
    failed = next(line for line in served.lines if line["event"] == "request failed")
    assert failed["error"] == "RuntimeError"
    assert "quota" in failed["exception"]  # where it happened
    assert "[withheld]" in failed["exception"]


def test_a_logger_binds_ids_and_withholds_by_name_and_form() -> None:
    stream = io.StringIO()
    log = make_logger(stream, service="one")
    with bound(lease_id="ls-1"):
        log.info(
            "told", labels={"a": "b"}, deep=[{"token": "x"}, KEY], authorization="Bearer abc", at_all=1.5
        )
    log.info("after")
    told, after = (json.loads(line) for line in stream.getvalue().splitlines())
    assert told["lease_id"] == "ls-1"
    assert told["service"] == "one"
    assert (told["labels"], told["authorization"]) == ("[withheld]", "[withheld]")
    assert told["deep"] == [{"token": "[withheld]"}, "ssh-ed25519 [withheld]"]
    assert told["at_all"] == 1.5
    assert "lease_id" not in after


def test_metrics_are_by_route_and_need_a_token(served: Served, client: httpx2.Client) -> None:
    lease_id = client.post("/v1/instances", json={"public_key": KEY}).json()["id"]
    client.get(f"/v1/instances/{lease_id}")
    client.get("/somewhere/else")
    client.request("BREW", "/v1/instances")
    text = client.get("/metrics").text
    assert 'instant_env_http_requests_total{method="POST",route="/v1/instances",status="202"} 1.0' in text
    assert 'route="/v1/instances/{lease_id}",status="200"} 1.0' in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert 'method="other"' in text
    assert 'instant_env_http_problems_total{code="not-found"} 1.0' in text
    assert "instant_env_leases" in text  # the engine's stand beside them
    assert lease_id not in text
    assert "else" not in text
    with served.client("") as stranger:
        assert stranger.get("/metrics").status_code == 401
        assert stranger.get("/healthz").json() == {"status": "ok"}
        assert stranger.get("/readyz").status_code == 200
        served.fake.is_ready = False
        unready = stranger.get("/readyz")
        assert unready.status_code == 503
        assert unready.json()["checks"]["cloud"] == "does not answer"


def test_no_request_takes_a_thread(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI gives plain functions to threads: 0.9 ms for each request, and no exit before they are done."""

    def refuse(*_: object) -> None:
        raise AssertionError("a thread")

    for module in ("fastapi.dependencies.utils", "fastapi.routing", "starlette.routing"):
        monkeypatch.setattr(f"{module}.run_in_threadpool", refuse)
    lease = client.post("/v1/instances", json={"public_key": KEY}, headers={"Prefer": "wait=60"})
    assert lease.status_code == 201
    path = lease.json()["url"]
    client.delete(path)
    for place in (
        "/", "/page/page.js", "/page/board", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/pools",
        "/v1/techniques", "/v1/quota", "/v1/tokens", "/v1/instances", path, f"{path}/wait", f"{path}/events",
        "/docs/service.md",
    ):  # fmt: skip
        assert client.get(place).status_code == 200, place
