"""Who fetches for a bake, and what is said about it."""

from __future__ import annotations

import io
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fabric
import pytest
from support import ssh_server

from instant_env.arch import Arch
from instant_env.bake.downloads import offer
from instant_env.bake.downloads.hosts import AllowedHosts, allowed_hosts
from instant_env.bake.downloads.offer import Packages, offered
from instant_env.bake.downloads.upstreams import Route, Upstreams
from instant_env.bake.execute import StepError
from instant_env.bake.parameters import Kind, Parameter
from instant_env.bake.plan import BakePlan, make_plan
from instant_env.bake.recipe import load_base, resolve
from instant_env.cloud.keys import KeyPair
from instant_env.errors import UsageError
from instant_env.progress import quiet
from instant_env.settings import ROOT, CloudName
from instant_env.ssh import connection as ssh


@pytest.mark.parametrize(
    ("packages", "cloud", "private", "by"),
    [
        ("auto", CloudName.LOCAL, False, "caller"),
        ("auto", CloudName.AWS, False, "direct"),
        ("auto", CloudName.AWS, True, "caller"),
        ("direct", CloudName.LOCAL, True, "direct"),
        ("caller", CloudName.AWS, False, "caller"),
    ],
)
def test_who_fetches(packages: str, cloud: CloudName, private: bool, by: str) -> None:
    assert Packages(packages).settled(cloud, private=private) == by


def test_hosts_of_parameters_are_allowed_at_their_port() -> None:
    url = Parameter(type=Kind.URL, description="a file", default="")
    text = Parameter(description="a text", default="")
    allowed = allowed_hosts(
        ["*.example.com"],
        {"a": url, "b": url, "c": url, "d": text},
        {
            "a": "https://Files.example.org/x",
            "b": "http://10.0.0.5:8080/x",
            "c": "",
            "d": "https://no.example/",
        },
    )
    assert allowed.permits("files.example.org", 443)
    assert not allowed.permits("files.example.org", 80)
    assert not allowed.permits("no.example", 443)
    assert allowed.addresses == ("10.0.0.5",)


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("a.example.com", "a.example.com", True),
        ("a.example.com", "b.a.example.com", False),
        ("a.example.com", "a.example.com.evil.org", False),
        ("a.example.com", "axexample.com", False),
        ("*.example.com", "b.example.com", True),
        ("*.example.com", "c.b.example.com", False),
        ("repos-*-x.s3.*.example.com", "repos-eu-1-x.s3.eu-1.example.com", True),
        ("repos-*-x.s3.*.example.com", "repos-eu-1-y.s3.eu-1.example.com", False),
    ],
)
def test_a_star_stands_for_a_part_of_one_label(pattern: str, host: str, fits: bool) -> None:
    assert AllowedHosts((pattern,)).permits(host, 443) == fits


@pytest.mark.parametrize(
    "pattern", ["*.com", "a.*", "https://a.example", "a.example:80", "A.example", "localhost"]
)
def test_a_recipe_with_a_host_that_is_none_is_refused(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/recipe.yml").write_text(f"recipe: one\ndescription: x\nhosts:\n  '{pattern}': why\n")
    with pytest.raises(UsageError, match="is no name of a host"):
        resolve(tmp_path, "one", "apt")


def plan() -> BakePlan:
    recipes = ROOT / "recipes"
    base = load_base(recipes, "debian-12")
    nothing = dict.fromkeys(("instant-init", "instant-ssm", "imagetool", "efi-stub"), Path(os.devnull))
    return make_plan(resolve(recipes, "minimal", "apt"), base, "ami-1", Arch.X86_64, nothing)


@contextmanager
def builder() -> Iterator[fabric.Connection]:
    with (
        ssh_server.listening(server_factory=ssh_server.TakesAnyKey) as port,
        ssh.wait_for_login("127.0.0.1", port, "admin", KeyPair.generate(), timeout_s=30) as connection,
    ):
        yield connection


def test_a_step_that_fails_says_which_hosts_were_refused_and_which_did_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    route = Route("https://registry.example/", closed)
    monkeypatch.setattr(offer, "callers_upstreams", lambda: Upstreams((route,), lambda _, __: ""))
    monkeypatch.setattr(offer, "allowed_hosts", lambda *_: AllowedHosts(("registry.example",)))
    log, lines = io.StringIO(), list[str]()

    def fail_after_two_downloads(connection: fabric.Connection) -> None:
        with offered(Packages.CALLER, connection, plan(), log, lines.append) as variables:
            for host in ("other.example", "registry.example"):
                with pytest.raises(urllib.error.HTTPError):
                    urllib.request.urlopen(f"{variables['INSTANT_ENV_DOWNLOADS']}/{host}/x")  # noqa: S310
            raise StepError("step x ended with 1", hint="the whole output is in LOG")

    with builder() as connection, pytest.raises(StepError, match=r"^step x ended with 1$") as caught:
        fail_after_two_downloads(connection)
    hint = caught.value.hint
    assert "refused: other.example (not in the key hosts of recipe minimal)" in hint
    assert "registry.example could not be had: Connection refused" in hint
    assert hint.endswith("; the whole output is in LOG")
    assert "downloads: other.example: refused 1 times\n" in log.getvalue()
    assert "downloads: registry.example: 0 bytes, 1 requests" in log.getvalue()


def test_a_builder_that_fetches_itself_gets_nothing() -> None:
    with (
        builder() as connection,
        offered(Packages.DIRECT, connection, plan(), io.StringIO(), quiet) as variables,
    ):
        assert variables == {}
