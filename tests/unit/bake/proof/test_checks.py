"""Checks of a recipe: how they are written, rendered, inherited and run, and what a failure leaves."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from support import ssh_server
from support.pretend_bakery import NOTHING, Bakery, Calls

from instant_env.arch import Arch
from instant_env.bake import recipe_text
from instant_env.bake.bake import estimate
from instant_env.bake.proof import checking
from instant_env.bake.proof.checks import CheckSpec
from instant_env.bake.proof.verdict import VerifyError
from instant_env.bake.recipe import load_recipe, resolve
from instant_env.cli.bake_progress import plan_lines
from instant_env.errors import UsageError

pytest_plugins = ("support.pretend_bakery",)


def write(bakery: Bakery, *checks: dict[str, Any], name: str = "pretend", **keys: Any) -> None:
    path = bakery.settings.recipes_dir / name / "recipe.yml"
    path.parent.mkdir(exist_ok=True)
    before = yaml.safe_load(path.read_text()) if path.exists() else {"recipe": name, "description": "x"}
    path.write_text(yaml.safe_dump(before | {"checks": list(checks)} | keys))


@dataclass
class Site:
    """What a service answers: the statuses in turn, the last one for good; the body so long after them."""

    statuses: list[int]
    body: bytes = b"hello, world"
    body_after_s: float = 0
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def serving(self) -> Iterator[Site]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(f"{self.headers['Host']}{self.path}")
                status = site.statuses.pop(0) if len(site.statuses) > 1 else site.statuses[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(site.body)))
                self.end_headers()
                threading.Event().wait(site.body_after_s)  # the fixture's time.sleep is short
                self.wfile.write(site.body)

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def forwarding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's SSH server lets us reach its loopback, as OpenSSH does unless it is told otherwise."""
    monkeypatch.setattr(ssh_server.TakesAnyKey, "connection_requested", lambda *_: True, raising=False)


def test_a_check_is_tried_until_it_passes_and_recorded(bakery: Bakery) -> None:
    write(bakery, {"name": "docker", "command": "docker info", "as": "login", "expect": "^Driver: over"})
    states = ["", "cannot connect", "Driver: vfs", "Driver: overlay2"]

    ask = bakery.guest.answer

    def answer(command: str) -> tuple[str, int]:
        if "docker info" in command:
            states.pop(0)
            return f"info\n{states[0]}\n", int("connect" in states[0])
        return ask(command)

    bakery.guest.answer = answer  # type: ignore[method-assign]
    lines: list[str] = []
    result = bakery.bake(lines.append)
    assert result.manifest_path is not None
    assert result.log_path is not None
    (record,) = json.loads(result.manifest_path.read_text())["checks"]
    assert (record["name"], record["attempts"]) == ("docker", 3)
    assert any(re.fullmatch(r"check docker: [\d.]+ s \(attempt 3\)", line) for line in lines)
    log = result.log_path.read_text()
    assert "attempt 1: it ended with 1" in log
    assert "attempt 2: nothing in it matches ^Driver: over" in log
    assert "Driver: vfs" in log


def test_who_runs_a_command(bakery: Bakery) -> None:
    write(
        bakery,
        {"name": "by-root", "command": "id one"},
        {"name": "by-login", "command": "id two", "as": "login"},
    )
    bakery.bake()
    (root,) = (one for one in bakery.guest.commands if "id one" in one)
    (login,) = (one for one in bakery.guest.commands if "id two" in one)
    assert root == "sudo -n sh -c 'set -e\nid one'"
    assert login == "sh -lc 'set -e\nid two'"


def test_an_image_that_fails_a_check_does_not_stay(bakery: Bakery) -> None:
    write(bakery, {"name": "docker", "command": "docker info", "timeout_s": 1})
    bakery.guest.answers.append(("docker info", "one\nCannot connect to the Docker daemon\n", 1))
    with pytest.raises(
        VerifyError, match=r"check docker of recipe pretend failed for .* s, \d+ attempt"
    ) as caught:
        bakery.bake()
    assert (
        "it ended with 1; its last output: one / Cannot connect to the Docker daemon" in caught.value.message
    )
    assert ".log" in caught.value.hint
    assert bakery.images() == []
    assert bakery.snapshots() == []
    assert bakery.leftovers() == NOTHING
    assert not [command for command in bakery.guest.commands if " audit " in command]


@pytest.mark.usefixtures("forwarding")
@pytest.mark.parametrize("origin", ["machine", "outside"])
def test_a_service_is_asked_over_http_until_it_answers(bakery: Bakery, origin: str) -> None:
    with Site([503, 404, 204, 200]).serving() as site:
        wish = {"port": site.port, "path": "/ready?a=b", "status": 200, "from": origin}
        write(bakery, {"name": "answers", "http": wish, "expect": "hello, w.*d"})
        calls = Calls(bakery.cloud)
        result = bakery.bake()
    assert result.manifest_path is not None
    (record,) = json.loads(result.manifest_path.read_text())["checks"]
    assert record["attempts"] == 4
    assert set(site.asked) == {f"127.0.0.1:{site.port}/ready?a=b"}
    admitted = [
        permission["FromPort"]
        for action, asked in calls.requests
        if action == "AuthorizeSecurityGroupIngress"
        for permission in asked["IpPermissions"]
    ]
    # The builder's group, then the verifying machine's.
    assert admitted == ([22, 22, site.port] if origin == "outside" else [22, 22])


@pytest.mark.usefixtures("forwarding")
@pytest.mark.parametrize("origin", ["machine", "outside"])
def test_a_body_that_comes_late_is_waited_for(bakery: Bakery, origin: str) -> None:
    with Site([200], body_after_s=0.3).serving() as site:
        wish = {"port": site.port, "from": origin}
        write(bakery, {"name": "answers", "http": wish, "expect": "hello, world", "timeout_s": 1})
        bakery.bake()
    assert len(site.asked) == 1


@pytest.mark.usefixtures("forwarding")
@pytest.mark.parametrize("origin", ["machine", "outside"])
def test_a_port_where_nobody_listens_and_a_wrong_answer_are_told_apart(bakery: Bakery, origin: str) -> None:
    with Site([500], b"no database").serving() as site:
        wish = {"port": site.port, "from": origin}
        write(bakery, {"name": "answers", "http": wish, "timeout_s": 1})
        with pytest.raises(VerifyError, match=r"it answered 500 .*; its last output: no database"):
            bakery.bake()
    with pytest.raises(VerifyError, match=f"no answer from 127.0.0.1:{site.port}: "):
        bakery.bake()
    assert bakery.images() == []


def test_an_ssh_server_that_forwards_nothing_fails_the_check_and_not_the_tool(bakery: Bakery) -> None:
    write(bakery, {"name": "answers", "http": {"port": 80}, "timeout_s": 1})
    with pytest.raises(VerifyError, match=r"no answer from 127\.0\.0\.1:80: ") as caught:
        bakery.bake()
    assert "ChannelException" in caught.value.message


def test_a_body_is_read_up_to_a_bound(bakery: Bakery) -> None:
    with Site([200], b"x" * 3 * checking._MOST_BODY + b"needle").serving() as site:
        wish = {"port": site.port, "from": "outside"}
        write(bakery, {"name": "answers", "http": wish, "timeout_s": 1, "expect": "needle"})
        with pytest.raises(VerifyError, match="nothing in it matches needle"):
            bakery.bake()


def test_low_ports_are_where_ssh_is_in_localec2_and_their_own_on_aws(bakery: Bakery) -> None:
    local = replace(bakery.cloud, ssh_port=10022)
    assert [local.port_of(port) for port in (22, 80, 1023, 1024, 8080)] == [10022, 10080, 11023, 1024, 8080]
    assert replace(bakery.aws(), ssh_port=22).port_of(80) == 80
    assert replace(bakery.aws(), ssh_port=2222).port_of(80) == 80  # sshd listens elsewhere, nothing else does


def test_parameters_are_quoted_and_a_check_may_render_to_nothing(bakery: Bakery) -> None:
    parameters = {
        "page": {"description": "x", "default": "it's"},
        "port": {"description": "x", "default": ""},
    }
    write(
        bakery,
        {"name": "page", "command": "grep {{ parameters.page | quote }} /etc/motd"},
        {"name": "served", "http": {"port": "{{ parameters.port }}"}},
        {"name": "none", "command": "{% if parameters.port %}true{% endif %}"},
        parameters=parameters,
    )
    plan = estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None).plan
    assert [check.command for check in plan.checks] == ["grep 'it'\"'\"'s' /etc/motd"]
    request = bakery.request(parameters={"port": "8080"})
    plan = estimate(bakery.cloud, bakery.settings, request, lambda _: None).plan
    assert [check.name for check in plan.checks] == ["page", "served", "none"]
    for port in ("0", "65536", "http", "-1"):
        with pytest.raises(UsageError, match="check served of recipe pretend: port"):
            estimate(bakery.cloud, bakery.settings, bakery.request(parameters={"port": port}), lambda _: None)


def test_a_check_is_part_of_the_plan_and_how_long_it_may_take_is_not(bakery: Bakery) -> None:
    def plan_hash() -> str:
        return estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None).plan.hash

    plain = plan_hash()
    write(bakery)
    assert plan_hash() == plain
    write(bakery, {"name": "a", "command": "true"})
    with_check = plan_hash()
    assert with_check != plain
    write(bakery, {"name": "a", "command": "true", "timeout_s": 99})
    assert plan_hash() == with_check
    write(bakery, {"name": "a", "command": "true", "expect": "x"})
    assert plan_hash() != with_check


def test_a_child_inherits_checks_and_replaces_its_namesakes(bakery: Bakery) -> None:
    write(bakery, {"name": "a", "command": "true"}, {"name": "b", "command": "true"})
    write(
        bakery,
        {"name": "c", "command": "ls"},
        {"name": "a", "command": "false"},
        name="child",
        extends="pretend",
    )
    resolved = resolve(bakery.settings.recipes_dir, "child", "apt")
    assert [(one.name, one.command) for one in resolved.checks] == [
        ("a", "false"),
        ("b", "true"),
        ("c", "ls"),
    ]


def test_checks_are_shown_before_a_bake(bakery: Bakery) -> None:
    outside = {"port": 80, "path": "/x", "status": 301, "from": "outside"}
    write(
        bakery,
        {"name": "docker", "command": "docker info", "as": "login", "timeout_s": 120},
        {"name": "answers", "http": outside, "expect": "moved"},
    )
    shown = "\n".join(
        recipe_text.as_text(
            recipe_text.rendered(bakery.settings.recipes_dir, "pretend", "pretend", Arch.X86_64, {})
        )
    )
    assert "docker, for 120 s at most: docker info (as the login user)" in shown
    assert "answers, for 60 s at most: GET port 80 /x from outside answers 301, with moved" in shown
    forecast = estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    lines = list(plan_lines(forecast))
    assert "  check   docker: docker info (as the login user)" in lines
    groups = [one.what for one in forecast.resources if one.kind == "security-group"]
    assert groups == ["SSH from the caller's address only", "SSH and TCP 80 from the caller's address only"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"name": "a"}, "needs one of command and http"),
        ({"name": "a", "command": "x", "http": {"port": 80}}, "needs one of command and http"),
        ({"name": "a", "http": {"port": 80}, "as": "root"}, "as goes with command"),
        ({"name": "a", "command": "x", "expect": "("}, "is not a regular expression"),
        ({"name": "A b", "command": "x"}, "name"),
        ({"name": "a", "command": "x", "timeout_s": 0}, "timeout_s"),
        ({"name": "a", "command": "x", "timeout_s": 3600}, "timeout_s"),
        ({"name": "a", "http": {"port": 80, "from": "moon"}}, "from"),
        ({"name": "a", "http": {"port": 80, "status": 99}}, "status"),
        ({"name": "a", "command": "x", "expected": "y"}, "Extra inputs"),
    ],
)
def test_a_check_that_is_none_is_refused(bakery: Bakery, spec: dict[str, Any], reason: str) -> None:
    write(bakery, spec)
    with pytest.raises(UsageError, match=reason):
        load_recipe(bakery.settings.recipes_dir, "pretend")


@pytest.mark.parametrize("path", ["x", "", "/a b", "/a\r\nX: y", "/é"])
def test_a_path_is_one_of_a_request_line(bakery: Bakery, path: str) -> None:
    write(bakery, {"name": "a", "http": {"port": 80, "path": path}})
    assert CheckSpec.model_validate({"name": "a", "http": {"port": 80, "path": path}})
    with pytest.raises(UsageError, match=r"check a of recipe pretend: path .* must begin with /"):
        estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
