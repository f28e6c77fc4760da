"""A bake against localec2's API, with a guest that says yes: what is asked for, what is left of it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from support.pretend_bakery import NOTHING, Bakery, Calls

from instant_env.bake import bake as bake_module
from instant_env.bake.bake import estimate
from instant_env.bake.proof.verify import audit_timeout_s
from instant_env.cli.bake_progress import plan_lines
from instant_env.cloud.session import CloudError
from instant_env.errors import UsageError
from instant_env.provenance import GitState
from instant_env.settings import CloudName

pytest_plugins = ("support.pretend_bakery",)


def test_a_bake_leaves_an_image_and_nothing_else(bakery: Bakery) -> None:
    said: list[str] = []
    result = bakery.bake(said.append)
    print(*said, sep="\n")
    assert bakery.images() == [result.image.id]
    assert bakery.leftovers() == NOTHING
    again = bakery.bake()
    assert again.reused
    assert again.image.id == result.image.id


def test_the_audit_is_told_what_the_recipe_allows(bakery: Bakery) -> None:
    path = bakery.settings.recipes_dir / "pretend" / "recipe.yml"
    allowed = {"allow_accounts": ["postgres"], "allow_modes": ["/usr/bin/fping"]}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | allowed))
    bakery.bake()
    (command,) = (command for command in bakery.guest.commands if " audit --device " in command)
    assert "--allow-user postgres" in command
    assert "--allow-mode /usr/bin/fping" in command


def test_the_audit_reads_a_volume_that_is_initialised_fast_with_requests_in_flight(bakery: Bakery) -> None:
    calls, lines = Calls(bakery.cloud), list[str]()
    bakery.bake(lines.append)
    (volume,) = (parameters for action, parameters in calls.requests if action == "CreateVolume")
    assert volume["VolumeInitializationRate"] == 300
    (command,) = (command for command in bakery.guest.commands if " audit --device " in command)
    assert re.search(r"echo 4096 >/sys/class/block/nvme\dn1/queue/read_ahead_kb", command)
    assert any(re.search(r"audit clean, 1 MiB read in [\d.]+ s, \d+ MiB/s", line) for line in lines)


def test_a_cloud_that_knows_no_initialisation_rate_is_asked_without(bakery: Bakery) -> None:
    def refuse(params: dict[str, Any], **_: Any) -> None:
        if "VolumeInitializationRate" in params:
            error: Any = {"Error": {"Code": "UnknownParameter", "Message": "VolumeInitializationRate"}}
            raise ClientError(error, "CreateVolume")

    bakery.cloud.ec2.meta.events.register("provide-client-params.ec2.CreateVolume", refuse)
    bakery.bake()
    assert bakery.leftovers() == NOTHING


def test_a_large_volume_may_be_read_for_long() -> None:
    """6 MB/s were seen of volumes whose blocks come out of S3."""
    assert audit_timeout_s(8) > (8 << 30) / 6e6
    assert audit_timeout_s(100) > (100 << 30) / 6e6


#: What makes which kinds of resources.
MAKERS = {
    "ImportKeyPair": {"key-pair"}, "CreateSecurityGroup": {"security-group"}, "CreateVolume": {"volume"},
    "RunInstances": {"instance", "volume", "network-interface"}, "CreateImage": {"image", "snapshot"},
    "PutParameter": {"ssm-parameter"},
}  # fmt: skip


def made_by(calls: Calls, run_id: str) -> set[tuple[str, str]]:
    """(kind, name) of what the calls made, without what is the run's own in the name."""
    found = set()
    for action, parameters in calls.requests:
        names = [
            tag["Value"]
            for specification in parameters.get("TagSpecifications", [])
            for tag in specification["Tags"]
            if tag["Key"] == "Name"
        ] or [parameters.get("Name", "")]
        found |= {(kind, names[0].replace(run_id, "RUN")) for kind in MAKERS.get(action, ())}
    return found


def test_a_forecast_makes_nothing_and_names_all_that_the_bake_makes(bakery: Bakery) -> None:
    calls = Calls(bakery.cloud)
    request = bakery.request()
    told = estimate(bakery.cloud, bakery.settings, request, lambda _: None)
    assert calls.changing == []
    assert told.cost == "nothing: these are machines of localec2"
    foreseen = {(one.kind, one.name.replace(request.run_id, "RUN")) for one in told.resources}
    result = bakery.bake()
    assert foreseen == made_by(calls, result.image.run_id)
    staying = {one.kind for one in told.resources if one.stays}
    assert staying == {"image", "snapshot", "ssm-parameter"}
    lines = "\n".join(plan_lines(told))
    assert told.plan.hash in lines
    assert "script  first" in lines
    again = estimate(bakery.cloud, bakery.settings, bakery.request(), lambda _: None)
    assert again.resources == ()
    assert f"{result.image.id} holds this plan" in "\n".join(plan_lines(again))


@pytest.mark.slow
def test_a_forecast_for_aws_has_the_price_of_machine_and_disks(
    bakery: Bakery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m7i.large at $0.1008 an hour; beside it a public address at $0.005 and twice 2 GiB of gp3 at $0.08 a
    month; the snapshot at $0.05."""
    monkeypatch.setattr("instant_env.cloud.prices._price_from_api", lambda *_: None)
    aws = dataclasses.replace(bakery.cloud, name=CloudName.AWS)
    told = estimate(aws, bakery.settings, bakery.request(), lambda _: None)
    hour = 0.1008 + 0.005 + 2 * 2 * 0.08 / 730
    assert told.likely_usd == pytest.approx(hour / 4)  # a quarter of an hour, when none is on record
    assert told.worst_usd == pytest.approx(2 * hour + 2 * 0.05)  # both machines until their timers end them
    assert told.monthly_usd == pytest.approx(2 * 0.05)
    assert "about $0.03 (15 min), at most $0.31" in told.cost
    result = bakery.bake()
    on_record = estimate(bakery.cloud, bakery.settings, bakery.request(force=True), lambda _: None)
    assert on_record.usual_s == pytest.approx(result.seconds, abs=0.06)
    strange = estimate(aws, bakery.settings, bakery.request(builder_types=("x9z.large",)), lambda _: None)
    assert strange.cost in ("no price known of x9z.large", "nothing: the AMI is there")


@pytest.mark.slow
def test_a_base_is_found_by_parameter_name_or_id_and_a_newer_one_makes_the_plan_new(bakery: Bakery) -> None:
    first = bakery.bake()
    second_base = bakery.new_base("second-base")
    second = bakery.bake()
    assert not second.reused
    assert second.image.base_ami == second_base
    assert second.image.plan_hash != first.image.plan_hash
    assert bakery.bake(base_ami="first-*").image.id == first.image.id
    assert bakery.bake(base_ami="*-base").image.id == second.image.id  # the newest of that name
    assert bakery.bake(base_ami=first.image.base_ami).image.id == first.image.id
    with pytest.raises(CloudError, match="looking for base pretend by third-\\*: no such AMI"):
        bakery.bake(base_ami="third-*")
    with pytest.raises(UsageError, match=r"belongs to 123456789012, not to 136693071363"):
        bakery.bake(base_ami=first.image.id)


def test_a_base_names_its_ami_in_one_way(bakery: Bakery) -> None:
    path = bakery.settings.recipes_dir / "bases" / "pretend.yml"
    text = path.read_text()
    path.write_text(text + "ami_name: first-{{ arch }}-*\n")
    with pytest.raises(UsageError, match="name its AMI by one of ssm_parameter, ami_name and ami_ids"):
        bakery.bake()
    path.write_text(text.replace("ssm_parameter: /pretend/base", "ami_name: 'second-{{ arch }}*'"))
    image_id = bakery.new_base("second-x86_64-base")
    assert bakery.bake().image.base_ami == image_id
    path.write_text(text.replace("ssm_parameter: /pretend/base", f"ami_ids: {{x86_64: {image_id}}}"))
    assert bakery.bake().reused


@pytest.mark.slow
def test_the_checkout_is_read_once_and_before_anything_is_rendered(
    bakery: Bakery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit in the minutes of a bake must not give a tag and a manifest that disagree."""
    events: list[str] = []
    prepare = bake_module.prepare

    def git_state() -> GitState:
        events.append("git")
        return GitState(f"{len(events):012d}", dirty=False)

    def recorded(*arguments: Any) -> Any:
        events.append("render")
        return prepare(*arguments)

    monkeypatch.setattr(bake_module, "git_state", git_state)
    monkeypatch.setattr(bake_module, "prepare", recorded)
    result = bakery.bake()
    assert events == ["git", "render"]
    assert result.manifest_path is not None
    record = json.loads(result.manifest_path.read_text())
    (image,) = bakery.cloud.ec2.describe_images(ImageIds=[result.image.id])["Images"]
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert record["git_revision"] == "000000000001"
    assert "000000000001" in tags.values()
