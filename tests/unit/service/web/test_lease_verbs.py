"""The verbs lease.* and token.*, in processes of their own, against a service on loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import httpx2
import pytest
from invoke.main import program
from support.patience import until
from support.service.fake import HOST_KEY
from support.service.served import KEY, Served
from support.terminal import Terminal

from instant_env.cli import lease_login, lease_tables, service_client
from instant_env.cli.service_client import Place, ServiceClient, ServiceError
from instant_env.errors import UsageError
from instant_env.settings import ROOT, Settings

pytest_plugins = ("support.service.fixtures",)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path, served: Served) -> Path:
    """A home with a key pair, and a state directory as `invoke serve` leaves it."""
    ssh = tmp_path / ".ssh"
    ssh.mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(ssh / "id_ed25519")
    key.write_public_key(ssh / "id_ed25519.pub")
    state = tmp_path / "state" / "service"
    state.mkdir(parents=True)
    (state / "url").write_text(served.url + "\n")
    (state / "token").write_text(served.fake.admin_secret + "\n")
    return tmp_path


@pytest.fixture(autouse=True)
def _environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("INSTANT_ENV_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("INSTANT_ENV_STATE_DIR", str(home / "state"))
    # A proxy that leads nowhere: between the verbs and loopback there is none.
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """In this process, as there are many; one verb has a process of its own below."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        code = 0
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            try:
                program.run(["invoke", "--search-root", str(ROOT), *arguments])
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


def result(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_lease_from_its_key_to_its_end(invoke: Run, home: Path) -> None:
    lease = result(invoke("lease.new", "--ttl", "15m", "--label", "job=17", "--json"))
    assert lease["state"] == "ready"
    assert lease["ttl_seconds"] == 900
    assert lease["labels"] == {"job": "17"}
    words = lease["login"]["arguments"]
    known_hosts = home / "state" / "service" / "known_hosts" / lease["id"]
    assert known_hosts.read_text() == f"[127.0.0.1]:2222 {HOST_KEY}\n"
    assert known_hosts.stat().st_mode & 0o077 == 0
    assert f"UserKnownHostsFile={known_hosts}" in words
    assert "StrictHostKeyChecking=yes" in words
    assert words[words.index("-i") + 1] == str(home / ".ssh" / "id_ed25519")
    assert words[-1] == "root@127.0.0.1"
    listed = invoke("lease.list")
    assert lease["id"] in listed.stdout
    assert "warm-running (pool)" in listed.stdout
    assert [each["id"] for each in result(invoke("lease.list", "--json"))["leases"]] == [lease["id"]]
    shown = invoke("lease.show", lease["id"])
    assert "known by console" in shown.stdout
    assert lease["login"]["command"] in shown.stdout
    extended = result(invoke("lease.extend", lease["id"], "--ttl", "2h", "--json"))
    assert extended["expires_at"] > lease["expires_at"]
    ended = invoke("lease.end", lease["id"])
    assert re.fullmatch(rf"{lease['id']} is end(ing|ed)\n", ended.stdout)
    assert not known_hosts.exists()
    assert until(lambda: "no leases" in invoke("lease.list").stdout)
    assert result(invoke("lease.show", lease["id"], "--json"))["ended"]["reason"] == "deleted"


def test_phases_are_lines_and_the_result_is_the_command(invoke: Run) -> None:
    done = invoke("lease.new", "--technique", "cold")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.search(r"^ls-\w+ is ready in 15\.0 s: cold \(cold\), ends in 59 min$", lines[0])
    assert lines[1].startswith("ssh -o UserKnownHostsFile=")
    for mark in ("(t1)", "(t2)", "(t3)", "(t4)"):
        assert mark in done.stderr


@pytest.mark.slow
def test_on_a_terminal_the_phases_are_live_and_ssh_takes_over(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = home / "bin"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/sh\necho "ssh got: $*"\nexit 7\n')
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    command = [str(ROOT / ".venv/bin/invoke"), "--search-root", str(ROOT), "lease.new", "--ssh"]
    with Terminal(command, rows=30, columns=200) as terminal:
        terminal.expect(r"\(t4\)")
        terminal.expect(r"ssh got: -o UserKnownHostsFile=\S+ .*-p 2222 root@127\.0\.0\.1")
        assert terminal.wait() == 7  # the exit code is ssh's


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lease.new", "--ttl", "10"], ("--ttl 10", "90s, 15m, 1h, 1d")),
        (["lease.new", "--ttl", "30d"], ("ttl-out-of-range", "86400")),
        (["lease.new", "--technique", "magic"], ("unsupported-technique", "warm-running")),
        (["lease.new", "--arch", "vax"], ("vax", "x86_64 or arm64")),
        (["lease.new", "--label", "job"], ("--label job", "name=value")),
        (["lease.new", "--key", "nowhere.pub"], ("nowhere.pub",)),
        (["lease.new", "--key", ".ssh/id_ed25519"], ("private key", ".ssh/id_ed25519.pub")),
        (["lease.show", "../tokens"], ("no lease's id", "lease.list")),
        (["lease.show", "ls-1"], ("not-found",)),
        (["lease.list", "--state", "asleep"], ("state", "provisioning")),
        (["lease.list", "--url", "http://example.com"], ("in the clear", "https://")),
        (["lease.list", "--url", "https://example.com"], ("no token", "INSTANT_ENV_SERVICE_TOKEN")),
        (["token.new", "--name", "x", "--scopes", "god"], ("scopes", "admin")),
        (["token.revoke", "tk-1"], ("not-found", "tokens")),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_one_line(
    invoke: Run, arguments: list[str], words: tuple[str, ...]
) -> None:
    done = invoke(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line
    assert "Traceback" not in done.stderr


def test_without_a_key_file_the_line_names_those_looked_for(invoke: Run, home: Path) -> None:
    (home / ".ssh" / "id_ed25519.pub").unlink()
    done = invoke("lease.new")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for name in lease_login.KEY_NAMES:
        assert name in done.stderr


def test_without_a_service_the_line_says_how_to_start_it(invoke: Run, home: Path, served: Served) -> None:
    served.stop()
    gone = invoke("lease.list")
    assert gone.returncode == 1
    (home / "state" / "service" / "url").unlink()
    never = invoke("lease.list")
    assert never.returncode == 2
    for done in (gone, never):
        assert len(done.stderr.splitlines()) == 1
        assert "invoke serve" in done.stderr


def test_tokens_are_made_used_and_revoked(invoke: Run, served: Served) -> None:
    secret = invoke("token.new", "--name", "ci", "--max-leases", "1").stdout.strip()
    assert secret.startswith("ie_")
    as_ci = {"INSTANT_ENV_SERVICE_TOKEN": secret, "INSTANT_ENV_SERVICE_URL": served.url}
    result(invoke("lease.new", "--json", **as_ci))
    full = invoke("lease.new", **as_ci)
    assert "quota" in full.stderr
    assert full.returncode == 1
    assert invoke("token.list", **as_ci).returncode == 1  # admins only
    listed = result(invoke("token.list", "--json"))["tokens"]
    assert secret not in json.dumps(listed)
    token = next(each for each in listed if each["name"] == "ci")
    assert token["max_leases"] == 1
    assert "ci" in invoke("token.list").stdout
    assert "is revoked" in invoke("token.revoke", token["id"]).stdout
    assert "unauthorized" in invoke("lease.list", **as_ci).stderr


def test_a_lost_answer_is_asked_for_again_with_the_same_key(served: Served) -> None:
    """The first answer is thrown away on its way back: two requests, one lease."""
    keys: list[str] = []
    inner = httpx2.HTTPTransport()

    class Lossy(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            answer = inner.handle_request(request)
            if request.method == "POST":
                keys.append(request.headers["idempotency-key"])
                if len(keys) == 1:
                    answer.read()
                    raise httpx2.ReadError("the connection broke")
            return answer

    place = Place(served.url, served.fake.admin_secret)
    with ServiceClient(place, transport=Lossy(), sleep=lambda _: None) as client:
        lease = client.take({"public_key": KEY})
        assert client.request("GET", "/v1/instances")["leases"][0]["id"] == lease["id"]
        assert len(client.request("GET", "/v1/instances")["leases"]) == 1
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_a_broken_stream_goes_on_behind_the_last_event(served: Served) -> None:
    inner = httpx2.HTTPTransport()
    seen_ids: list[str | None] = []

    class Breaking(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if not request.url.path.endswith("/events"):
                return inner.handle_request(request)
            seen_ids.append(request.headers.get("last-event-id"))
            if len(seen_ids) > 1:
                return inner.handle_request(request)
            text = (
                'id: 1\nevent: requested\ndata: {"sequence": 1, "kind": "requested"}\n\n: ping\n\nid: 2\nda'
            )
            return httpx2.Response(200, text=text)

    place = Place(served.url, served.fake.admin_secret)
    with ServiceClient(place, transport=Breaking(), sleep=lambda _: None) as client:
        lease = client.take({"public_key": KEY}, wait_s=30)
        client.request("DELETE", f"/v1/instances/{lease['id']}")
        events = list(client.events(lease["id"]))
    assert seen_ids == [None, "1"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "ended"


def test_something_else_at_the_address_is_named() -> None:
    other = httpx2.MockTransport(lambda _: httpx2.Response(200, text="<html>login</html>"))
    place = Place("https://example.com", "ie_x")
    with ServiceClient(place, transport=other) as client, pytest.raises(ServiceError) as failed:
        client.request("GET", "/v1/quota")
    assert "https://example.com answered 200" in failed.value.message


def test_the_token_of_this_host_goes_to_no_other(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    settings.service_dir.mkdir()
    (settings.service_dir / "url").write_text("http://127.0.0.1:8000\n")
    (settings.service_dir / "token").write_text("ie_here\n")
    assert service_client.locate(settings) == Place("http://127.0.0.1:8000", "ie_here")
    with pytest.raises(UsageError, match="no token"):
        service_client.locate(settings, "https://elsewhere.example")
    with pytest.raises(UsageError, match="not the address"):
        service_client.locate(settings, "https://user@elsewhere.example/path")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2D", 172800)])
def test_times_have_units(text: str, seconds: int) -> None:
    assert lease_tables.seconds_of(text, "--ttl") == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1.5h", "-1h", "0s", "1h30m", "١h"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        lease_tables.seconds_of(text, "--ttl")


def test_an_answer_that_is_not_of_this_service_starts_no_ssh(tmp_path: Path) -> None:
    lease = {"id": "ls-1", "state": "ready", "address": "-oProxyCommand=id", "user": "root", "port": 22}
    with pytest.raises(Exception, match="not one of this service"):
        lease_login.command(Settings(state_dir=tmp_path), lease, None)
    with pytest.raises(Exception, match="not one of this service"):
        lease_login.command(Settings(state_dir=tmp_path), {**lease, "id": "../x", "address": "a"}, None)


def test_ctrl_c_before_it_is_ready_ends_the_lease(
    invoke: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(client: ServiceClient, lease_id: str) -> Any:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ServiceClient, "events", interrupted)
    done = invoke("lease.new", "--technique", "cold")
    assert done.returncode == 130
    with served.client() as client:
        (lease,) = client.get("/v1/instances").json()["leases"]
        assert lease["state"] in ("ending", "ended")


def test_a_stream_that_brings_nothing_is_given_up_and_one_that_does_is_not() -> None:
    """Six connections that are cut after one event each are six events; four without any are an error."""
    connections = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal connections
        connections += 1
        if connections > 6:
            return httpx2.Response(200, text=": ping\n\n")
        text = f'id: {connections}\ndata: {{"sequence": {connections}, "kind": "extended"}}\n\n'
        return httpx2.Response(200, text=text)

    place = Place("https://example.com", "ie_x")
    seen: list[int] = []
    with ServiceClient(place, transport=httpx2.MockTransport(answer), sleep=lambda _: None) as client:
        events = client.events("ls-1")
        seen += [next(events)["sequence"] for _ in range(6)]
        with pytest.raises(ServiceError, match="ends at once"):
            next(events)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert connections == 10


def test_the_owner_and_the_attempts_are_told(served: Served) -> None:
    with ServiceClient(Place(served.url, served.fake.admin_secret)) as client:
        lease = client.take({"public_key": KEY})
        (token,) = client.request("GET", "/v1/tokens")["tokens"]
        assert (lease["owner"], lease["attempt"]) == (token["id"], 1)
