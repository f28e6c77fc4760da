"""The EC2 seam against moto in process: what is asked for, what is found, what is left alone."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import StateReason
from support.moto_cloud import LATER, NOW, launch, make_image

from instant_env.arch import Arch
from instant_env.cloud import copies, instances, janitor, runs
from instant_env.cloud.images import deregister, find_baked, list_baked, mark_verified, parameter_name
from instant_env.cloud.instances import LaunchRequest, Market
from instant_env.cloud.interfaces import PublicInterface, make_public_interface
from instant_env.cloud.janitor import Policy
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.removal import Removal, remove
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, expired, new_run_id, read_tags, tag_list, tag_specifications
from instant_env.errors import UsageError
from instant_env.user_data import UserData

pytest_plugins = ("support.moto_cloud",)


def test_a_launch_is_tagged_imdsv2_only_and_spot_when_asked(cloud: Cloud) -> None:
    request = LaunchRequest(
        image_id="ami-1", instance_type="m7i.large", run_id="r1", role=Role.BENCH, name="n", expires_at=LATER,
        client_token="t", market=Market.SPOT, user_data=UserData(ttl_s=60).as_json(),
    )  # fmt: skip
    body = instances.request_body(cloud, request)
    assert body["MetadataOptions"]["HttpTokens"] == "required"
    assert body["InstanceMarketOptions"]["MarketType"] == "spot"
    assert body["InstanceInitiatedShutdownBehavior"] == "terminate"
    for specification in body["TagSpecifications"]:
        tags = read_tags(specification["Tags"])
        assert tags["Project"] == "instant-env"
        assert tags["instant-env:role"] == "bench"
        assert tags["instant-env:expires-at"] == "2026-01-02T04:04:05Z"
    assert {s["ResourceType"] for s in body["TagSpecifications"]} == {
        "instance",
        "volume",
        "network-interface",
    }
    assert instances.default_market(cloud) is Market.SPOT


@pytest.mark.parametrize(
    ("arch", "kind", "fits"),
    [
        (Arch.X86_64, "m7i.large", True),
        (Arch.X86_64, "m7i-flex.large", True),
        (Arch.X86_64, "g4dn.xlarge", True),
        (Arch.X86_64, "m7g.large", False),
        (Arch.ARM64, "c7gn.large", True),
        (Arch.ARM64, "a1.medium", True),
        (Arch.ARM64, "t3.micro", False),
    ],
)
def test_instance_types_must_fit_the_architecture(cloud: Cloud, arch: Arch, kind: str, fits: bool) -> None:
    if fits:
        assert instances.default_type(cloud, arch, kind) == kind
    else:
        with pytest.raises(UsageError, match=f"{kind} is not {arch}"):
            instances.default_type(cloud, arch, kind)


def test_a_machine_is_found_by_its_run_and_terminated(cloud: Cloud) -> None:
    mine, other = launch(cloud, run_id="a"), launch(cloud, run_id="b")
    assert instances.live_of_run(cloud, "a", Role.BENCH) == [mine]
    instances.terminate(cloud, [mine, "i-00000000000000000"])
    assert instances.live_of_run(cloud, "a", Role.BENCH) == []
    assert instances.live_of_run(cloud, "b", Role.BENCH) == [other]


def test_key_pair_lives_for_the_block_and_its_private_half_is_not_shown(cloud: Cloud) -> None:
    key = KeyPair.generate()
    assert "PRIVATE" not in repr(key)

    def use_and_fail() -> None:
        with imported_key_pair(cloud, key, run_id="r", role=Role.BENCH, expires_at=LATER):
            (found,) = cloud.ec2.describe_key_pairs()["KeyPairs"]
            assert read_tags(found["Tags"])["Project"] == "instant-env"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        use_and_fail()
    assert cloud.ec2.describe_key_pairs()["KeyPairs"] == []


def test_security_group_admits_the_caller_only_and_goes(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instant_env.cloud.network.caller_cidr", lambda _: "203.0.113.7/32")
    before = len(cloud.ec2.describe_security_groups()["SecurityGroups"])
    with temporary_security_group(cloud, run_id="r", role=Role.BENCH, expires_at=LATER) as group_id:
        (group,) = cloud.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
        (rule,) = group["IpPermissions"]
        assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (22, 22, "tcp")
        assert [r["CidrIp"] for r in rule["IpRanges"]] == ["203.0.113.7/32"]
    assert len(cloud.ec2.describe_security_groups()["SecurityGroups"]) == before


def test_latest_is_what_the_parameter_names_and_absent_ones_say_how_to_bake(cloud: Cloud) -> None:
    with pytest.raises(UsageError, match="no minimal AMI for x86_64 yet") as caught:
        find_baked(cloud, "minimal", Arch.X86_64)
    assert caught.value.hint == "run: invoke bake --arch x86_64 --recipe minimal"
    older, newer = make_image(cloud, "minimal"), make_image(cloud, "minimal")
    cloud.ssm.put_parameter(Name=parameter_name("minimal", Arch.X86_64), Value=older, Type="String")
    assert find_baked(cloud, "minimal", Arch.X86_64).id == older
    assert find_baked(cloud, "minimal", Arch.X86_64, newer).id == newer
    with pytest.raises(UsageError, match="not an available custom-init AMI"):
        find_baked(cloud, "custom-init", Arch.X86_64, newer)


def test_expiry_reads_only_what_it_understands() -> None:
    tags = read_tags(tag_list("r", Role.BENCH, name="n", expires_at=NOW))
    assert expired(tags, NOW)
    assert not expired(tags, NOW - timedelta(seconds=1))
    assert not expired({}, NOW)
    assert not expired({"instant-env:expires-at": "soon"}, NOW)


def kinds(removals: list[Removal]) -> list[tuple[str, str]]:
    return [(removal.kind, removal.id) for removal in removals]


def test_clean_keeps_the_newest_and_latest_and_whatever_is_not_ours(cloud: Cloud) -> None:
    images = [make_image(cloud, "minimal") for _ in range(3)]
    other = make_image(cloud, "custom-init")
    untagged = make_image(cloud, "minimal", tag=False)
    by_age = [image.id for image in list_baked(cloud, recipe="minimal")]
    oldest = by_age[-1]
    assert sorted(by_age) == sorted(images)
    cloud.ssm.put_parameter(Name=parameter_name("minimal", Arch.X86_64), Value=oldest, Type="String")

    removals = janitor.survey(cloud, Policy(keep=1), NOW).removals
    assert kinds(removals) == [("image", by_age[1])]  # the newest is kept, the oldest is `latest`
    assert remove(cloud, removals, lambda _: None).failures == []
    left = {image["ImageId"] for image in cloud.ec2.describe_images(Owners=["self"])["Images"]}
    assert {by_age[0], oldest, other, untagged} <= left
    assert by_age[1] not in left
    assert janitor.survey(cloud, Policy(keep=1), NOW).removals == []
    with pytest.raises(UsageError):
        janitor.survey(cloud, Policy(keep=-1))


def test_clean_takes_the_snapshots_along(cloud: Cloud) -> None:
    image_id = make_image(cloud, "minimal")
    (image,) = list_baked(cloud, recipe="minimal")
    deregister(cloud, image_id)
    with pytest.raises(ClientError, match="NotFound"):
        cloud.ec2.describe_snapshots(SnapshotIds=list(image.snapshot_ids))
    assert deregister(cloud, image_id) == []


def test_clean_ends_expired_machines_and_only_those(cloud: Cloud) -> None:
    dead = launch(cloud, expires_at=NOW - timedelta(minutes=1))
    alive = launch(cloud, expires_at=NOW + timedelta(minutes=1))
    ours_not = cloud.ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0][
        "InstanceId"
    ]
    removals = janitor.survey(cloud, Policy(keep=3), NOW).removals
    assert ("instance", dead) in kinds(removals)
    assert {identity for _, identity in kinds(removals)}.isdisjoint({alive, ours_not})
    assert remove(cloud, removals, lambda _: None).failures == []
    states: dict[str, Any] = {}
    for reservation in cloud.ec2.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            states[instance["InstanceId"]] = instance["State"]["Name"]
    assert states[dead] == "terminated"
    assert states[alive] == states[ours_not] == "running"


def test_clean_removes_expired_keys_and_groups(cloud: Cloud) -> None:
    def leave(name: str, expires_at: datetime) -> None:
        tags = tag_specifications("key-pair", run_id="r", role=Role.BENCH, name=name, expires_at=expires_at)
        cloud.ec2.create_key_pair(KeyName=name, TagSpecifications=tags)
        tags = tag_specifications(
            "security-group", run_id="r", role=Role.BENCH, name=name, expires_at=expires_at
        )
        cloud.ec2.create_security_group(GroupName=name, Description="d", TagSpecifications=tags)

    leave("dead", NOW - timedelta(minutes=1))
    leave("alive", NOW + timedelta(minutes=1))
    removals = janitor.survey(cloud, Policy(keep=3), NOW).removals
    assert {(removal.kind, removal.name) for removal in removals} == {
        ("key-pair", "dead"),
        ("security-group", "dead"),
    }
    assert remove(cloud, removals, lambda _: None).failures == []
    assert [key["KeyName"] for key in cloud.ec2.describe_key_pairs()["KeyPairs"]] == ["alive"]


def test_clean_takes_what_a_lost_machine_belonged_to(cloud: Cloud) -> None:
    """A machine that the cloud lost ends its run, however long that run had still to go."""
    lost, well = (
        launch(cloud, expires_at=LATER, run_id="lost"),
        launch(cloud, expires_at=LATER, run_id="well"),
    )
    cloud.ec2.stop_instances(InstanceIds=[lost, well])
    backend = ec2_backends["123456789012"]["us-east-1"]
    backend.get_instance(lost).state_reason = StateReason(
        "Server.InternalError: gone", "Server.InternalError"
    )
    for run_id in ("lost", "well"):
        tags = tag_specifications("key-pair", run_id=run_id, role=Role.BENCH, name=run_id, expires_at=LATER)
        cloud.ec2.create_key_pair(KeyName=run_id, TagSpecifications=tags)
    removals = janitor.survey(cloud, Policy(keep=3), NOW).removals
    assert {(removal.kind, removal.name) for removal in removals} == {("instance", "n"), ("key-pair", "lost")}
    assert ("instance", lost) in kinds(removals)


def leave_a_run(cloud: Cloud, run_id: str) -> tuple[str, str, str]:
    """A machine, a key pair and a security group of a run, hours before they expire; their ids and name."""
    tags = {"run_id": run_id, "role": Role.BENCH, "name": run_id, "expires_at": LATER}
    cloud.ec2.create_key_pair(KeyName=run_id, TagSpecifications=tag_specifications("key-pair", **tags))  # type: ignore[arg-type]
    group_id = cloud.ec2.create_security_group(
        GroupName=run_id,
        Description="d",
        TagSpecifications=tag_specifications("security-group", **tags),  # type: ignore[arg-type]
    )["GroupId"]
    return launch(cloud, run_id=run_id), run_id, group_id


def test_clean_takes_at_once_what_a_run_left_whose_process_has_ended(cloud: Cloud) -> None:
    """And nothing of a run that lives, nor of one that another computer may be at."""
    dead, alive, elsewhere = new_run_id(), new_run_id(), new_run_id()
    with runs.alive(cloud.settings, dead):
        machine, _, group_id = leave_a_run(cloud, dead)
        assert janitor.survey(cloud, Policy(keep=3), NOW).removals == []
    with runs.alive(cloud.settings, alive):
        leave_a_run(cloud, alive)
        leave_a_run(cloud, elsewhere)
        removals = janitor.survey(cloud, Policy(keep=3), NOW).removals
        (pair,) = cloud.ec2.describe_key_pairs(KeyNames=[dead])["KeyPairs"]
        assert kinds(removals) == [
            ("instance", machine), ("security-group", group_id), ("key-pair", pair["KeyPairId"])
        ]  # fmt: skip
        assert all("its run is over" in removal.reason for removal in removals)
        assert remove(cloud, removals, lambda _: None).failures == []
        assert janitor.survey(cloud, Policy(keep=3), NOW).removals == []
    names = {pair["KeyName"] for pair in cloud.ec2.describe_key_pairs()["KeyPairs"]}
    assert names == {alive, elsewhere}


def test_a_run_id_from_a_tag_is_no_path(cloud: Cloud) -> None:
    (cloud.settings.state_dir / "runs").mkdir()
    (cloud.settings.state_dir / "secret").touch()
    for text in ("../secret", "", "/etc/passwd", f"{new_run_id()}/../../secret"):
        assert not runs.is_over(cloud.settings, text)


def test_what_runs_left_to_know_is_forgotten_after_a_month(cloud: Cloud) -> None:
    old, new = new_run_id(), new_run_id()
    for run_id in (old, new):
        with runs.alive(cloud.settings, run_id):
            pass
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(cloud.settings.state_dir / "runs" / old, (month_ago, month_ago))
    with runs.alive(cloud.settings, new_run_id()):
        assert not runs.is_over(cloud.settings, old)
        assert runs.is_over(cloud.settings, new)


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({}, False),
        ({"state": "failed"}, True),
        ({"expires_at": LATER}, False),
        ({"expires_at": NOW - timedelta(minutes=1)}, True),
    ],
)
def test_clean_takes_images_that_nobody_will_finish(cloud: Cloud, change: dict[str, Any], gone: bool) -> None:
    image_id = make_image(cloud, "minimal")
    if "state" in change:
        ec2_backends["123456789012"]["us-east-1"].amis[image_id].state = change["state"]
    if "expires_at" in change:
        value = change["expires_at"].strftime("%Y-%m-%dT%H:%M:%SZ")
        cloud.ec2.create_tags(Resources=[image_id], Tags=[{"Key": "instant-env:expires-at", "Value": value}])
    assert (("image", image_id) in kinds(janitor.survey(cloud, Policy(keep=3), NOW).removals)) is gone
    (image,) = list_baked(cloud, recipe="minimal")
    assert image.verified is ("expires_at" not in change)
    mark_verified(cloud, image)
    assert list_baked(cloud, recipe="minimal")[0].verified


def test_clean_takes_what_techniques_made_ahead_and_left(cloud: Cloud) -> None:
    """An interface with its address, and a copy of an AMI; snapshots that it shares stay."""
    group = cloud.ec2.create_security_group(GroupName="g", Description="d")["GroupId"]

    def make(run_id: str, expires_at: datetime) -> PublicInterface:
        return make_public_interface(
            cloud, security_group_id=group, run_id=run_id, role=Role.POOL, name="eni", expires_at=expires_at
        )

    left, used = make("r1", NOW), make("r2", LATER)
    image = make_image(cloud, "minimal")
    copy = copies.fresh_copy(cloud, image, run_id="r1", name="copy", expires_at=NOW)
    cloud.ec2.create_tags(  # moto 5.2 drops CopyImage's tags
        Resources=[copy], Tags=tag_list("r1", Role.POOL, name="copy", expires_at=NOW)
    )
    found = janitor.survey(cloud, Policy(keep=3), NOW + timedelta(minutes=1)).removals
    assert {(removal.kind, removal.id) for removal in found} == {
        ("network-interface", left.interface_id),
        ("elastic-ip", left.allocation_id),
        ("image-copy", copy),
    }
    assert remove(cloud, found, lambda _: None).failures == []
    addresses = cloud.ec2.describe_addresses()["Addresses"]
    assert [address["AllocationId"] for address in addresses] == [used.allocation_id]
    assert [i["ImageId"] for i in cloud.ec2.describe_images(Owners=["self"])["Images"]] == [image]
    assert cloud.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] != []
