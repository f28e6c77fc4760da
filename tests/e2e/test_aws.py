"""The same road on real EC2: runs only with INSTANT_ENV_AWS_TESTS=1 and credentials, and costs money.

Never run so far: written against the calls that localec2 answers and the published facts of AL2023.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from instant_env.arch import Arch
from instant_env.cloud import instances
from instant_env.cloud.instances import LaunchRequest, default_type
from instant_env.cloud.launching import places
from instant_env.cloud.session import connect
from instant_env.cloud.tags import PROJECT_FILTER, Role, new_run_id, read_tags
from instant_env.launch.cloud_config import timer_config
from instant_env.settings import ROOT, load

pytestmark = [pytest.mark.aws, pytest.mark.timeout(7200)]

INVOKE = Path(sys.executable).parent / "invoke"


def invoke(results: Path, *arguments: str) -> dict[str, Any]:
    result = subprocess.run(
        [str(INVOKE), *arguments, "--cloud", "aws", "--json"],
        cwd=ROOT, env={**os.environ, "INSTANT_ENV_RESULTS_DIR": str(results)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize("arch", [arch.value for arch in Arch])
def test_bake_and_race_on_ec2(arch: str, tmp_path: Path) -> None:
    for recipe in ("minimal", "custom-init"):
        assert invoke(tmp_path, "bake", "--arch", arch, "--recipe", recipe)["ami"].startswith("ami-")
    result = invoke(tmp_path, "bench", "--arch", arch, "--iterations", "1")
    with Path(result["csv"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == ["ok"] * 3
    assert all(row["t3_tcp_ms"] for row in rows)  # on EC2 an accept is the guest's own
    assert len({row["zone"] for row in rows}) == 1, "a run is in one zone"
    assert {row["market"] for row in rows} <= {"spot", "on-demand"}
    assert not [row["note"] for row in rows if "went out" in row["note"]], "nothing had to be repeated"


#: A child of minimal: a root beyond AL2023's 8 GiB, and checks of each kind.
_CHILD = """
recipe: child
description: a child of minimal
extends: minimal
root_gib: 10
steps:
  - {name: site, phase: install, script: site.sh.j2}
checks:
  - {name: root, command: '[ "$(df --output=size -BG / | tail -n 1 | tr -dc 0-9)" -ge 9 ]'}
  - {name: login, command: id -un, as: login, expect: ec2-user}
  - {name: inside, http: {port: 80}, expect: child}
  - {name: outside, http: {port: 80, from: outside}, expect: child}
"""
_SITE = """
cat >/etc/systemd/system/site.socket <<'EOF'
[Socket]
ListenStream=80
Accept=yes
[Install]
WantedBy=multi-user.target
EOF
cat >'/etc/systemd/system/site@.service' <<'EOF'
[Service]
StandardInput=socket
StandardOutput=socket
ExecStart=/usr/local/sbin/site
EOF
cat >/usr/local/sbin/site <<'EOF'
#!/bin/sh
while read -r line && [ "${#line}" -gt 1 ]; do :; done
printf 'HTTP/1.0 200 OK\\r\\n\\r\\nchild\\n'
EOF
chmod 0755 /usr/local/sbin/site
systemctl --no-reload enable site.socket
"""


def test_a_child_is_baked_from_the_ami_of_minimal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder starts from our own AMI and grows its root, and the security group of the verifying machine
    lets the caller ask port 80."""
    recipes = Path(shutil.copytree(ROOT / "recipes", tmp_path / "recipes"))
    (recipes / "child").mkdir()
    (recipes / "child" / "recipe.yml").write_text(_CHILD)
    (recipes / "child" / "site.sh.j2").write_text(_SITE)
    monkeypatch.setenv("INSTANT_ENV_RECIPES_DIR", str(recipes))
    parent = invoke(tmp_path, "bake", "--recipe", "minimal")
    child = invoke(tmp_path, "bake", "--recipe", "child", "--from-parent")
    record = json.loads(Path(child["manifest"]).read_text())
    assert record["plan"]["parent_ami"] == parent["ami"]
    assert [check["name"] for check in record["checks"]] == ["root", "login", "inside", "outside"]


def test_the_account_has_a_place_for_machines() -> None:
    """Reads only."""
    cloud = connect(load({"cloud": "aws"}))
    types = [default_type(cloud, arch) for arch in Arch]
    place = places.choose(cloud, types)
    assert place.public
    assert place.zone in places.zones_for(cloud, types)
    assert place.zone.startswith(cloud.region)


@pytest.mark.parametrize("arch", [arch.value for arch in Arch])
def test_al2023_is_as_the_recipes_assume(arch: str, tmp_path: Path) -> None:
    """Cents. The whole record is in the file that the failure names."""
    record = invoke(tmp_path, "facts", "--base", "al2023", "--arch", arch)
    differing = [one for one in record["comparisons"] if one["verdict"] in ("differs", "unknown")]
    # A newer release is to be expected: its facts are what the others compare.
    assert [one for one in differing if one["name"] != "release"] == [], record["file"]


def test_an_image_of_localec2_is_published(tmp_path: Path) -> None:
    """Its builder was a machine of localec2; whether it boots on EC2 is what the race with it then says."""
    local = [str(INVOKE), "bake", "--recipe", "custom-init", "--json"]
    subprocess.run(local, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    published = invoke(tmp_path, "publish", "--recipe", "custom-init")
    ec2 = connect(load({"cloud": "aws"})).ec2
    try:
        assert published["blocks_skipped"] > 0
        result = invoke(
            tmp_path, "bench", "--ami", published["ami"], "--technique", "custom-init", "--iterations", "1"
        )
        with Path(result["csv"]).open(newline="") as file:
            assert [row["outcome"] for row in csv.DictReader(file)] == ["ok"]
    finally:
        ec2.deregister_image(ImageId=published["ami"], DeleteAssociatedSnapshots=True)


def test_setup_makes_what_is_missing_once(tmp_path: Path) -> None:
    """Pieces stay: `invoke teardown --cloud aws` removes them."""
    invoke(tmp_path, "setup")
    again = {one["what"]: one["state"] for one in invoke(tmp_path, "setup")["found"]}
    made = ("security group", "role", "instance profile")
    assert {again[what] for what in made} == {"there"}
    assert again["permission"] == "ok"


def test_a_registered_image_boots_as_a_created_one_does(tmp_path: Path) -> None:
    """RegisterImage says what CreateImage takes over; the bake's own verification boots it."""
    options = ("--method", "register", "--force", "--deprecate-after-days", "1")
    baked = invoke(tmp_path, "bake", "--recipe", "custom-init", *options)
    ec2 = connect(load({"cloud": "aws"})).ec2
    (image,) = ec2.describe_images(ImageIds=[baked["ami"]])["Images"]
    # AL2023's GRUB starts the kernel in both recipes, so the base's boot mode stays.
    base_id = read_tags(image["Tags"])["instant-env:base-ami"]
    (base,) = ec2.describe_images(ImageIds=[base_id])["Images"]
    assert (image["BootMode"], image["ImdsSupport"], image["EnaSupport"]) == (base["BootMode"], "v2.0", True)
    assert image["DeprecationTime"]


def test_a_stock_machine_ends_itself_while_nobody_looks() -> None:
    """The timer of its cloud-config, and nothing else; and its console is read as it is now."""
    cloud = connect(load({"cloud": "aws"}))
    name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
    run_id = new_run_id()
    request = LaunchRequest(
        image_id=cloud.ssm.get_parameter(Name=name)["Parameter"]["Value"], instance_type="t3.micro",
        run_id=run_id, role=Role.BENCH, name=f"instant-env-timer-{run_id}", client_token=run_id,
        expires_at=datetime.now(UTC) + timedelta(minutes=15), user_data=timer_config(240),
    )  # fmt: skip
    instance_id = instances.launch(cloud, request)
    try:
        ended = instances.wait_for_state(cloud, instance_id, {"terminated"}, timeout_s=900)
        assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
        text, is_latest = instances.console(cloud, instance_id)
        assert is_latest
        assert "Linux" in text
    finally:
        instances.end_run(cloud, run_id)


def test_a_machine_of_custom_init_sleeps_and_resumes(tmp_path: Path) -> None:
    """On AL2023, by the argument in its GRUB entries; EC2 refuses at first, which is waited out."""
    options = ("--technique", "custom-init+warm-hibernated", "--iterations", "1")
    result = invoke(tmp_path, "bench", *options)
    with Path(result["csv"]).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["outcome"], row["resumed"]) == ("ok", "yes"), row["error"]


def test_nothing_of_ours_is_left_running() -> None:
    ec2 = connect(load({"cloud": "aws"})).ec2
    pages = ec2.get_paginator("describe_instances").paginate(Filters=PROJECT_FILTER)
    states = [i["State"]["Name"] for page in pages for r in page["Reservations"] for i in r["Instances"]]
    assert set(states) <= {"terminated"}
