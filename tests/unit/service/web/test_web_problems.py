"""Every refusal is an RFC 9457 problem of the closed list, and none tells what it should not."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest
from support.service.served import KEY, Served, serving

from instant_env.service.operations import RETRYABLE, Code, Refusal
from instant_env.service.records import Scope
from instant_env.service.web.problems import STATUS, TITLES, Problem

pytest_plugins = ("support.service.fixtures",)


def problem_of(answer: httpx2.Response, status: int, code: str) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = Problem.model_validate(answer.json())
    assert (answer.status_code, problem.status, problem.code) == (status, status, code), answer.text
    assert problem.type == f"/docs/service.md#{code}"
    assert problem.request_id == answer.headers["x-request-id"]
    assert problem.retryable == (problem.code in RETRYABLE)
    assert ("retry-after" in answer.headers) == problem.retryable
    return problem


def test_every_code_has_a_status_and_a_title() -> None:
    assert set(STATUS) == set(TITLES) == set(Code)


def test_a_refusal_of_the_operations_is_a_problem(served: Served, client: httpx2.Client) -> None:
    for code in Code:
        fields = ({"field": "a", "rule": "b"},)
        served.fake.mistakes = [
            Refusal(code, "the rule", hint="do this", retry_after_s=7.2, limit=3, errors=fields)
        ]
        answer = client.get("/v1/quota")
        problem = problem_of(answer, STATUS[code], code)
        assert (problem.detail, problem.hint, problem.limit) == ("the rule", "do this", 3)
        assert problem.errors is not None
        assert problem.errors[0].field == "a"
        assert answer.headers.get("retry-after") == ("8" if code in RETRYABLE else None)


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({}, "public_key", "required"),
        ({"public_key": KEY, "ttl": 60}, "ttl", "unknown field"),
        ({"public_key": KEY, "ttl_seconds": None}, "ttl_seconds", "leave the field out"),
        ({"public_key": KEY, "ttl_seconds": "600"}, "ttl_seconds", "integer"),
        ({"public_key": KEY, "ttl_seconds": 600.5}, "ttl_seconds", "integer"),
        ({"public_key": KEY, "ttl_seconds": True}, "ttl_seconds", "integer"),
        ({"public_key": KEY, "ttl_seconds": 10**30}, "ttl_seconds", "less than"),
        ({"public_key": KEY, "arch": "vax"}, "arch", "x86_64"),
        ({"public_key": KEY, "market": None}, "market", "leave the field out"),
        ({"public_key": KEY, "fallback": "yes"}, "fallback", "boolean"),
        ({"public_key": KEY, "technique": "$(id)"}, "technique", "pattern"),
        ({"public_key": KEY, "instance_type": "m7i large"}, "instance_type", "pattern"),
        ({"public_key": KEY, "labels": {"a\n": "b"}}, "labels", "control characters"),
        ({"public_key": KEY, "labels": {"a": 1}}, "labels.a", "string"),
        ({"public_key": KEY, "labels": {str(n): "" for n in range(40)}}, "labels", "at most 32"),
        ([], "", "object"),
        ("text", "", "object"),
    ],
)  # fmt: skip
def test_a_body_that_breaks_a_rule_names_field_and_rule(
    shared: httpx2.Client, body: Any, field: str, rule: str
) -> None:
    problem = problem_of(shared.post("/v1/instances", json=body), 422, "invalid-request")
    assert problem.errors is not None
    assert problem.errors[0].field == field
    assert rule in problem.errors[0].rule


@pytest.mark.parametrize(
    "key",
    ["", "hello", f'command="id" {KEY}', f"{KEY}\n{KEY}", "ssh-ed25519 AAAA", KEY.replace("ed25519", "rsa")],
)
def test_a_key_that_is_none_is_invalid(shared: httpx2.Client, key: str) -> None:
    problem = problem_of(shared.post("/v1/instances", json={"public_key": key}), 422, "invalid-key")
    assert problem.errors is not None
    assert problem.errors[0].field == "public_key"


def test_bodies_that_are_no_json(client: httpx2.Client) -> None:
    json_type = {"Content-Type": "application/json"}
    broken = client.post("/v1/instances", content=b'{"a"', headers=json_type)
    assert "not JSON" in problem_of(broken, 400, "invalid-request").detail
    form = client.post("/v1/instances", content=b'{"a":1}')
    assert "Content-Type" in str(problem_of(form, 422, "invalid-request").hint)
    deep = client.post("/v1/instances", content=b"[" * 5000 + b"]" * 5000, headers=json_type)
    assert "levels" in problem_of(deep, 400, "invalid-request").detail
    quoted = b'{"public_key": "' + b"[" * 500 + b'"}'  # brackets in a string are no levels
    problem_of(client.post("/v1/instances", content=quoted, headers=json_type), 422, "invalid-key")
    latin = client.post("/v1/instances", content=b'{"public_key": "\xff"}', headers=json_type)
    problem_of(latin, 400, "invalid-request")


def test_what_the_framework_refuses_has_the_same_form(client: httpx2.Client) -> None:
    problem_of(client.get("/nope"), 404, "not-found")
    problem_of(client.get("/v1/instances/"), 404, "not-found")
    answer = client.put("/v1/instances")
    problem_of(answer, 405, "invalid-request")
    assert answer.headers["allow"] == "GET, POST"
    problem_of(client.get("/v1/instances", params={"sate": "ready"}), 422, "invalid-request")
    problem_of(client.get("/v1/instances", params={"state": "redy"}), 422, "invalid-request")
    problem_of(client.get("/v1/instances", params={"limit": 0}), 422, "invalid-request")
    problem_of(client.get("/v1/instances", params={"cursor": "x"}), 422, "invalid-request")


def test_tokens_are_asked_for_and_scopes_count(served: Served, client: httpx2.Client) -> None:
    for secret in ("", "ie_wrong"):
        with served.client(secret) as stranger:
            answer = stranger.get("/v1/instances")
            problem_of(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            # A body that is wrong too says nothing to a stranger.
            problem_of(stranger.post("/v1/instances", json={}), 401, "unauthorized")
    basic = client.get("/v1/instances", headers={"Authorization": "Basic YTpi"})
    problem_of(basic, 401, "unauthorized")
    with served.client(served.fake.add_token("reader", {Scope.READ})) as reader:
        assert reader.get("/v1/instances").status_code == 200
        problem_of(reader.post("/v1/instances", json={"public_key": KEY}), 403, "forbidden")


def test_a_mistake_of_ours_tells_nothing_but_its_id(served: Served, client: httpx2.Client) -> None:
    served.fake.mistakes = [RuntimeError(f"boto3 says: {KEY} at /root/secret")]
    answer = client.get("/v1/quota")
    problem = problem_of(answer, 500, "internal")
    assert "boto3" not in answer.text
    assert problem.request_id in problem.detail
    line = next(line for line in served.lines if line["event"] == "request failed")
    assert line["request_id"] == problem.request_id
    assert line["error"] == "RuntimeError"
    assert KEY.split()[1] not in served.log.getvalue()


def test_the_openapi_document_has_every_code_that_a_route_may_answer(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    responses = {
        (path, method): operation["responses"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert ("/v1/instances", "post") in responses
    for (path, _), answers in responses.items():
        if path.startswith("/v1/"):
            assert {"401", "403", "422", "429", "500", "503"} <= set(answers), path
            assert any(status < "400" for status in answers)
            for status, answer in answers.items():
                if status >= "400":
                    assert list(answer["content"]) == ["application/problem+json"]
    post = responses["/v1/instances", "post"]
    assert {"201", "202", "409"} <= set(post)
    assert "`invalid-key`" in post["422"]["description"]
    assert "`pool-empty`" in post["503"]["description"]
    ask = document["components"]["schemas"]["InstanceAsk"]
    assert ask["additionalProperties"] is False
    assert ask["required"] == ["public_key"]
    assert ask["properties"]["ttl_seconds"]["type"] == "integer"  # null is not among what it may be
    events = document["paths"]["/v1/instances/{lease_id}/events"]["get"]["responses"]["200"]["content"]
    assert events == {"text/event-stream": {"schema": {"type": "string"}}}  # no word of a later OpenAPI
    names = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert names <= set(document["components"]["schemas"])


def test_a_body_is_bounded_before_it_is_read(served: Served, client: httpx2.Client) -> None:
    big = client.post("/v1/instances", content=b"x" * 40_000)
    problem_of(big, 413, "invalid-request")

    def chunks() -> Any:
        for _ in range(50):
            yield b" " * 1000

    problem_of(client.post("/v1/instances", content=chunks()), 413, "invalid-request")


def test_a_body_that_does_not_come_is_given_up() -> None:
    import socket

    with serving(body_timeout_s=0.2) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            slow.settimeout(60)
            assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        with served.client() as client:
            assert client.get("/healthz").status_code == 200


def test_the_page_that_problems_point_to_is_served(served: Served) -> None:
    with served.client("") as client:
        text = client.get("/docs/service.md").text
    for code in Code:
        assert re.search(rf"^#+ {code}$", text, re.MULTILINE), code
