"""The switches themselves: where they are set, listed and explained."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from support.localec2_cloud import NOT_RUN_YET, STRICT, LocalCloud

from instant_env.cli import tables
from instant_env.errors import UsageError
from instant_env.localec2 import starter
from instant_env.localec2.api import server
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.settings import ROOT, Settings, load

if TYPE_CHECKING:
    from pathlib import Path

    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def ask(served: Served, body: Any = None, method: str | None = None) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{served.server.url}/_localec2/strictness", method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-Localec2-Token": served.state.server.admin_token},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
        result: dict[str, Any] = json.load(answer)
        return result


def test_switches_are_set_one_by_one_over_http(served: Served) -> None:
    assert ask(served)["strictness"] == LocalEc2Settings().model_dump()
    assert ask(served, {"late_ms": 300})["strictness"]["late_ms"] == 300
    changed = ask(served, {"default_vpc": "false"})["strictness"]  # as a command line has it
    assert (changed["late_ms"], changed["default_vpc"]) == (300, False)
    assert served.ec2.describe_vpcs()["Vpcs"] == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"lat_ms": 1}, "lat_ms"),
        ({"late_ms": -1}, "late_ms"),
        ({"late_ms": "soon"}, "late_ms"),
        ([], "object"),
    ],
)
def test_what_is_no_switch_is_refused_and_changes_nothing(served: Served, body: Any, word: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(served, body)
    assert error.value.code == 400
    assert word in json.load(error.value)["error"]
    assert served.state.strictness.switches == LocalEc2Settings()


def test_only_the_administrator_sets_them(served: Served) -> None:
    request = urllib.request.Request(f"{served.server.url}/_localec2/strictness", data=b"{}")  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)  # noqa: S310 - loopback
    with pytest.raises(urllib.error.HTTPError, match="405"):
        ask(served, method="DELETE")


def test_every_call_is_late_by_the_delay(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    delays_s: list[float] = []
    monkeypatch.setattr(server, "time", SimpleNamespace(sleep=delays_s.append))
    ask(served, {"call_delay_ms": 250})
    served.ec2.describe_vpcs()
    served.client("sts").get_caller_identity()
    assert delays_s == [0.25, 0.25]


def test_the_settings_file_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instant-env.yml").write_text("localec2:\n  late_ms: 300\n  spot_role: false\n")
    switches = load(environ={}).localec2
    assert (switches.late_ms, switches.spot_role, switches.public_subnets) == (300, False, True)
    assert load(environ={"INSTANT_ENV_LOCALEC2": '{"late_ms": 7}'}).localec2.late_ms == 7
    with pytest.raises(UsageError, match="LOCALEC2"):
        load(environ={"INSTANT_ENV_LOCALEC2": '{"lat_ms": 7}'})
    with pytest.raises(UsageError, match="localec2") as error:
        load(environ={"INSTANT_ENV_LOCALEC2": "late_ms=7"})
    assert "JSON" in error.value.hint


def test_what_is_typed_after_set() -> None:
    assert tables.switch_values("") == {}
    assert tables.switch_values("late_ms=3, spot_role=false,") == {"late_ms": "3", "spot_role": "false"}
    with pytest.raises(UsageError, match="late_ms"):
        tables.switch_values("late_ms")


def test_every_switch_is_listed_with_its_explanation_and_is_in_the_documentation() -> None:
    columns = tables.switches(LocalEc2Settings(late_ms=7)).columns
    assert next(iter(columns[1].cells)) == "7*", "marked: it is no user's default"
    assert list(columns[0].cells) == list(LocalEc2Settings.model_fields)
    assert all(columns[2].cells)
    section = (ROOT / "instant_env/localec2/README.md").read_text().partition("\n## Strictness\n")[2]
    rows = re.findall(r"^\| `([a-z_]+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert rows == list(LocalEc2Settings.model_fields)


def test_a_user_waits_for_nothing_on_purpose() -> None:
    """By default nothing is late, and the account has what an account has."""
    user = LocalEc2Settings()
    assert not any(value for name, value in user.model_dump().items() if name.endswith("_ms"))
    assert (user.default_vpc, user.public_subnets, user.spot_role, user.free_plan) == (
        True,
        True,
        True,
        False,
    )


def test_our_own_tests_have_them_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of the tests that boot machines."""
    assert {STRICT.late_ms, STRICT.late_tags_ms, STRICT.late_address_ms}.isdisjoint({0})
    started: list[Settings] = []
    monkeypatch.setattr(starter, "up", started.append)
    monkeypatch.setattr(starter, "client", lambda *_: boto3.client("ec2", region_name="us-east-1"))
    assert LocalCloud(tmp_path).settings.localec2 == STRICT
    assert [settings.localec2 for settings in started] == [STRICT]
    files = {path.name for path in (ROOT / "tests" / "machines").rglob("test_*.py")}
    assert files > NOT_RUN_YET, "each is there, and others are strict"
