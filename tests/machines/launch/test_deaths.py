"""SIGKILL of a client after each of its calls that change something: nothing runs for ever, and what stays is
removable.

Machines only pretend to run here, so a verb takes a second; what their timers do in a guest is seen in
test_init_ttl.py and test_stock.py. docs/lifetimes.md has the table of what this finds, and the test compares
them: INSTANT_ENV_WRITE_TABLE=1 writes it anew. `make test-deaths` walks all of it, `make test` the calls
after which something else stands.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.deaths.clients import NEVER, Endpoint, Nursery, as_aws, run_bake, run_bench, run_publish
from support.deaths.standing import Row, clean, elsewhere_would_clean, look
from support.harness_cloud import SshHost
from support.pretend_bakery import Bakery

from instant_env.cloud.session import Cloud
from instant_env.localec2 import starter
from instant_env.settings import ROOT, Settings

pytest_plugins = ("support.pretend_bakery",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PAGE = ROOT / "docs" / "lifetimes.md"
WHOLE = bool(os.environ.get("INSTANT_ENV_DEATHS"))
WRITE = bool(os.environ.get("INSTANT_ENV_WRITE_TABLE"))
TECHNIQUES = ("cold", "custom-init", "prealloc-eni", "warm-running", "warm-stopped", "warm-hibernated")
#: Calls after which something new stands, or something stands otherwise.
TURNS = (
    "RunInstances", "ModifyInstanceAttribute", "CreateImage", "CreateVolume", "AllocateAddress",
    "StopInstances", "StartInstances", "StartSnapshot", "RegisterImage",
)  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def walk(
    nursery: Nursery, verb: str, cloud: Cloud, target: Callable[..., None], *arguments: Any,
    commands: Callable[[], list[str]] = list,
) -> list[Row]:  # fmt: skip
    """Kill the verb after each of its calls, look at what stands, and clean up. Not the whole walk: after the
    turns only."""
    *calls, last = nursery.killed_after(NEVER, target, *arguments)
    assert last == "", "nobody killed it, so it came to its end"
    assert clean(cloud) == []
    rows = []
    for number, call in enumerate(calls, 1):
        if not WHOLE and call not in TURNS:
            continue
        before, times = len(commands()), calls[:number].count(call)
        made = nursery.killed_after((call, times), target, *arguments)
        assert made[-1] == call, "it died"
        name = f"{call} ({times}.)" if times > 1 else call
        rows.append(look(cloud, verb, name, commands()[before:]))
        elsewhere_would_clean(cloud)
        assert clean(cloud) == [], f"{verb}, killed after {name}"
    return rows


def check(rows: list[Row]) -> None:
    """Every row is one of the page's; with the switch, they are written there in place of the verb's."""
    lines = [row.as_markdown() for row in rows]
    text = PAGE.read_text()
    print(*lines, sep="\n")
    if WRITE:
        verb = rows[0].verb
        head, mark, table = text.partition("|---|---|---|---|---|\n")
        kept = [line for line in table.splitlines() if line and not line.startswith(f"| {verb} |")]
        PAGE.write_text(head + mark + "\n".join([*kept, *lines]) + "\n")
        return
    strange = [line for line in lines if line not in text.splitlines()]
    assert not strange, f"not in {PAGE.name}: {strange}"


def endpoint_of(bakery: Bakery, port: int) -> Endpoint:
    server = bakery.served.state.server
    return Endpoint(
        bakery.served.server.url, server.access_key_id, server.secret_access_key, bakery.settings, port
    )


def test_a_bake(nursery: Nursery, bakery: Bakery) -> None:
    endpoint = endpoint_of(bakery, bakery.guest.port)
    binary = bakery.settings.recipes_dir.parent / "imagetool"
    check(
        walk(
            nursery, "bake", bakery.cloud, run_bake, endpoint, binary, commands=lambda: bakery.guest.commands
        )
    )


@pytest.mark.parametrize("technique", TECHNIQUES if WHOLE else ("cold", "prealloc-eni", "warm-stopped"))
def test_a_race(nursery: Nursery, bakery: Bakery, tmp_path: Path, technique: str) -> None:
    image_id = bakery.served.ssm.get_parameter(Name="/pretend/base")["Parameter"]["Value"]
    with SshHost().serving() as guest:
        arguments = (endpoint_of(bakery, guest.port), image_id, technique, tmp_path)
        rows = walk(nursery, f"bench, {technique}", bakery.cloud, run_bench, *arguments)
    check(rows)
    assert any("machine, runs" in row.stands for row in rows)


def test_publishing(nursery: Nursery, bakery: Bakery, tmp_path: Path) -> None:
    disk = bakery.served.disk("filled-base")
    fill = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", str(disk)]
    subprocess.run(fill, check=True, capture_output=True)
    bakery.new_base("filled-base")
    ami = bakery.bake().image.id
    settings = Settings(state_dir=tmp_path / "away")
    server = starter.up(settings)
    try:
        keys = (server.access_key_id, server.secret_access_key)
        away = as_aws(Endpoint(server.url, *keys, bakery.settings))
        arguments = (endpoint_of(bakery, bakery.guest.port), away, ami)
        rows = walk(nursery, "publish", away.connect(), run_publish, *arguments)
    finally:
        starter.down(settings)
    check(rows)
