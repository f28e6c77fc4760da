"""A lease's events: replay, signs of life, limits, and the end of the stream."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from support.patience import until
from support.service.served import KEY, Served, serving

from instant_env.cli.service_client import parsed
from instant_env.service.records import Scope
from instant_env.service_settings import ServiceSettings

pytest_plugins = ("support.service.fixtures",)

KINDS = ["requested", "claimed", "running", "ssh", "ready", "ending", "ended"]


def ended_lease(client: httpx2.Client) -> str:
    taken = client.post("/v1/instances", json={"public_key": KEY}, headers={"Prefer": "wait=60"})
    path = str(taken.json()["url"])
    client.delete(path)
    return path


def test_the_events_of_a_lease_come_in_order_and_end_with_the_last(client: httpx2.Client) -> None:
    path = ended_lease(client)
    with client.stream("GET", f"{path}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        assert "no-cache" in answer.headers["cache-control"]
        text = "".join(answer.iter_text())
    assert "retry: 1000" in text
    events = list(parsed(iter(text.splitlines())))
    assert [event["kind"] for event in events] == KINDS
    assert [event["sequence"] for event in events] == list(range(1, 8))
    assert events[4]["data"] == {"t4_ms": 400.0}
    names = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("event: ")]
    assert names == KINDS


def test_a_stream_goes_on_behind_the_last_event_that_was_seen(client: httpx2.Client) -> None:
    path = ended_lease(client)
    until(lambda: client.get(path).json()["state"] == "ended")
    again = client.get(f"{path}/events", headers={"Last-Event-ID": "5"})
    assert [event["sequence"] for event in parsed(iter(again.text.splitlines()))] == [6, 7]
    # An EventSource would come back for ever: after 204 it does not.
    assert client.get(f"{path}/events", headers={"Last-Event-ID": "7"}).status_code == 204
    assert client.get(f"{path}/events", headers={"Last-Event-ID": "400"}).status_code == 204
    wrong = client.get(f"{path}/events", headers={"Last-Event-ID": "x"})
    assert wrong.json()["code"] == "invalid-request"
    assert client.get("/v1/instances/ls-0/events").status_code == 404  # and no stream of nothing


def test_a_silent_stream_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    with serving(beat_s=0.02) as service, service.client() as client:
        service.call(lambda: setattr(service.fake, "hold", asyncio.Event()))
        path = client.post("/v1/instances", json={"public_key": KEY}).json()["url"]
        with client.stream("GET", f"{path}/events") as answer:
            lines = answer.iter_lines()
            pings = (line for line in lines if line == ": ping")
            assert next(pings)
            assert next(pings)


def opened(client: httpx2.Client, path: str) -> Iterator[str]:
    """The lines of a stream that is left open; the first is awaited."""
    request = client.build_request("GET", f"{path}/events")
    answer = client.send(request, stream=True)
    assert answer.status_code == 200, answer.read()
    lines = answer.iter_lines()
    next(lines)
    return lines


def test_a_token_has_a_limit_of_open_streams_and_closing_one_frees_its_place() -> None:
    with serving(ServiceSettings(event_streams=2), speed=10) as service, service.client() as client:
        path = client.post("/v1/instances", json={"public_key": KEY}, headers={"Prefer": "wait=60"}).json()[
            "url"
        ]
        holders = [service.client() for _ in range(2)]
        held = [opened(holder, path) for holder in holders]
        refused = client.get(f"{path}/events")
        assert refused.status_code == 429
        assert refused.json()["code"] == "quota"
        assert refused.json()["limit"] == 2
        assert "instant_env_sse_streams 2.0" in client.get("/metrics").text
        other = service.fake.add_token("other", {Scope.ADMIN})
        with service.client(other) as another:
            opened(another, path)  # a limit of each token
        del held[0]
        holders[0].close()
        until(lambda: "instant_env_sse_streams 1.0" in client.get("/metrics").text)
        opened(client, path)
        for holder in holders:
            holder.close()


def test_a_stop_says_farewell_to_streams_and_answers_those_who_wait(served: Served) -> None:
    served.call(lambda: setattr(served.fake, "hold", asyncio.Event()))
    results: list[object] = []
    with served.client() as client:
        path = client.post("/v1/instances", json={"public_key": KEY}).json()["url"]

        def stream() -> None:
            with served.client() as mine:
                results.append(list(opened(mine, path)))

        def wait(method: str, place: str, **options: object) -> None:
            with served.client() as mine:
                results.append(mine.request(method, place, **options).json()["state"])  # type: ignore[arg-type]

        threads = [
            threading.Thread(target=stream),
            threading.Thread(target=wait, args=("GET", f"{path}/wait?seconds=60")),
            threading.Thread(
                target=wait, args=("POST", "/v1/instances"),
                kwargs={"json": {"public_key": KEY}, "headers": {"Prefer": "wait=60"}},
            ),
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        until(lambda: "instant_env_sse_streams 1.0" in client.get("/metrics").text)
        until(lambda: served.fake.waiting == 2)
        before = time.monotonic()
        served.stop()
        took_s = time.monotonic() - before
        for thread in threads:
            thread.join(30)
    assert took_s < 20  # it waits for nobody: they would stay for a minute
    lines = next(result for result in results if isinstance(result, list))
    assert "event: farewell" in lines
    farewell = json.loads(lines[lines.index("event: farewell") + 1].removeprefix("data: "))
    assert farewell == {"reason": "the service stops"}
    assert [result for result in results if isinstance(result, str)] == ["provisioning", "provisioning"]
