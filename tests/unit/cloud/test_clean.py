"""`clean` against moto in process: what it keeps and why, what it takes, and what it must never touch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.moto_cloud import make_image

from instant_env.arch import Arch
from instant_env.cloud import janitor, references, runs
from instant_env.cloud.images import list_baked, parameter_name
from instant_env.cloud.janitor import Policy, survey
from instant_env.cloud.removal import remove
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import Role, new_run_id, tag_list, tag_specifications
from instant_env.errors import UsageError

pytest_plugins = ("support.moto_cloud",)

NOW = datetime.now(UTC) + timedelta(minutes=1)
PAST, FUTURE = NOW - timedelta(hours=1), NOW + timedelta(hours=1)


def quiet(_: str) -> None:
    pass


def machines(cloud: Cloud) -> set[str]:
    reservations = cloud.ec2.describe_instances()["Reservations"]
    return {instance["InstanceId"] for one in reservations for instance in one["Instances"]}


def image(cloud: Cloud, recipe: str = "minimal") -> str:
    """An AMI of ours whose builder is gone."""
    before = machines(cloud)
    image_id = make_image(cloud, recipe)
    cloud.ec2.terminate_instances(InstanceIds=list(machines(cloud) - before))
    return image_id


def run_from(cloud: Cloud, image_id: str) -> str:
    made = cloud.ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    return f"instance {made} (running) was made from it"


def stopped(cloud: Cloud, image_id: str) -> str:
    made = cloud.ec2.run_instances(ImageId=image_id, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    cloud.ec2.stop_instances(InstanceIds=[made])
    return f"instance {made} (stopped) was made from it"


def old_template_version(cloud: Cloud, image_id: str) -> str:
    """Only its first version names the AMI; the default and the latest one do not."""
    made = cloud.ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData={"ImageId": image_id}
    )["LaunchTemplate"]["LaunchTemplateId"]
    newer: Any = {"LaunchTemplateId": made, "LaunchTemplateData": {"ImageId": "ami-12c6146b"}}
    cloud.ec2.create_launch_template_version(**newer)
    cloud.ec2.modify_launch_template(LaunchTemplateId=made, DefaultVersion="2")
    return "launch template web, version 1"


def group_by_template(cloud: Cloud, image_id: str) -> str:
    cloud.ec2.create_launch_template(LaunchTemplateName="fleet", LaunchTemplateData={"ImageId": image_id})
    cloud.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="fleet", MinSize=0, MaxSize=1, AvailabilityZones=["us-east-1a"],
        LaunchTemplate={"LaunchTemplateName": "fleet", "Version": "$Latest"},
    )  # fmt: skip
    return "launch template fleet, version 1 (auto-scaling group fleet)"


def configuration(cloud: Cloud, image_id: str) -> str:
    scaling = cloud.client("autoscaling")
    scaling.create_launch_configuration(
        LaunchConfigurationName="old", ImageId=image_id, InstanceType="t3.micro"
    )
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="fleet", LaunchConfigurationName="old", MinSize=0, MaxSize=1,
        AvailabilityZones=["us-east-1a"],
    )  # fmt: skip
    return "launch configuration old (auto-scaling group fleet)"


def parameter(cloud: Cloud, image_id: str) -> str:
    cloud.ssm.put_parameter(Name="web", Value=f'{{"ami": "{image_id}"}}', Type="String")
    return "SSM parameter web"


def latest(cloud: Cloud, image_id: str) -> str:
    cloud.ssm.put_parameter(
        Name=parameter_name("minimal", Arch.X86_64), Value=image_id, Type="String", Overwrite=True
    )
    return "`latest` points to it"


def child(cloud: Cloud, image_id: str) -> str:
    made = image(cloud, "child")
    base = [{"Key": "instant-env:base-ami", "Value": image_id}]
    cloud.ec2.create_tags(Resources=[made], Tags=base)  # type: ignore[arg-type]
    return f"image {made} was baked from it"


REFERENCES: list[Callable[[Cloud, str], str]] = [
    run_from, stopped, old_template_version, group_by_template, configuration, parameter, latest, child,
]  # fmt: skip


@pytest.mark.parametrize("refer", REFERENCES, ids=lambda refer: refer.__name__)
def test_what_refers_to_an_image_keeps_it_and_is_named(
    cloud: Cloud, refer: Callable[[Cloud, str], str]
) -> None:
    needed, free = image(cloud), image(cloud)
    reason = refer(cloud, needed)
    found = survey(cloud, Policy(keep=0, kinds=frozenset({"image"})), NOW)
    assert [(row.id, row.reason) for row in found.kept] == [(needed, reason)]
    assert free in {row.id for row in found.removals}
    assert needed not in {row.id for row in found.removals}


def test_keep_is_by_recipe_and_architecture_and_young_ones_stay(cloud: Cloud) -> None:
    made = [image(cloud, recipe) for recipe in ("minimal", "minimal", "minimal", "custom-init")]
    images = {"kinds": frozenset({"image"})}
    found = survey(cloud, Policy(keep=2, **images), NOW)  # type: ignore[arg-type]
    assert len(found.removals) == 1
    assert found.removals[0].id in made[:3]
    young = survey(cloud, Policy(keep=2, min_age=timedelta(days=1), **images), NOW)  # type: ignore[arg-type]
    assert young.removals == []
    assert [row.reason for row in young.kept] == ["younger than 24 h"]
    later = survey(cloud, Policy(keep=2, min_age=timedelta(days=1), **images), NOW + timedelta(days=2))  # type: ignore[arg-type]
    assert later.removals == found.removals


def test_a_machine_that_goes_does_not_keep_its_image_but_one_that_stays_does(cloud: Cloud) -> None:
    old = image(cloud)
    tags = tag_specifications("instance", run_id="r", role=Role.BENCH, name="n", expires_at=PAST)
    cloud.ec2.run_instances(ImageId=old, MinCount=1, MaxCount=1, TagSpecifications=tags)
    both = survey(cloud, Policy(keep=0), NOW)
    assert [row.kind for row in both.removals] == ["instance", "image"]
    only = survey(cloud, Policy(keep=0, kinds=frozenset({"image"})), NOW)
    assert (only.removals, [row.id for row in only.kept]) == ([], [old])


def make_everything(cloud: Cloud, tags: list[Any], name: str) -> set[str]:
    """One of each kind with these tags; their ids."""

    def of(kind: str) -> Any:
        return [{"ResourceType": kind, "Tags": tags}] if tags else []

    ec2, base = cloud.ec2, "ami-12c6146b"
    machine = ec2.run_instances(ImageId=base, MinCount=1, MaxCount=1, TagSpecifications=of("instance"))
    instance_id = machine["Instances"][0]["InstanceId"]
    volume = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", TagSpecifications=of("volume"))[
        "VolumeId"
    ]
    snapshot = ec2.create_snapshot(VolumeId=volume, TagSpecifications=of("snapshot"))["SnapshotId"]
    group = ec2.create_security_group(
        GroupName=name, Description=name, TagSpecifications=of("security-group")
    )
    key = ec2.create_key_pair(KeyName=name, TagSpecifications=of("key-pair"))["KeyPairId"]
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    interface = ec2.create_network_interface(SubnetId=subnet, TagSpecifications=of("network-interface"))
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=of("elastic-ip"))["AllocationId"]
    image_id = ec2.create_image(InstanceId=instance_id, Name=name, TagSpecifications=of("image"))["ImageId"]
    return {
        instance_id, volume, snapshot, group["GroupId"], key, address, image_id,
        interface["NetworkInterface"]["NetworkInterfaceId"],
    }  # fmt: skip


def everything(cloud: Cloud) -> dict[str, str]:
    """Whatever there is that could be removed, ours or not: its id and state."""
    ec2 = cloud.ec2
    found: dict[str, str] = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        found |= {i["InstanceId"]: i["State"]["Name"] for i in reservation["Instances"]}
    found |= {v["VolumeId"]: v["State"] for v in ec2.describe_volumes()["Volumes"]}
    found |= {s["SnapshotId"]: s["State"] for s in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}
    found |= {g["GroupId"]: "there" for g in ec2.describe_security_groups()["SecurityGroups"]}
    found |= {k["KeyPairId"]: "there" for k in ec2.describe_key_pairs()["KeyPairs"]}
    found |= {
        i["NetworkInterfaceId"]: "there" for i in ec2.describe_network_interfaces()["NetworkInterfaces"]
    }
    found |= {a["AllocationId"]: "there" for a in ec2.describe_addresses()["Addresses"]}
    found |= {i["ImageId"]: i["State"] for i in ec2.describe_images(Owners=["self"])["Images"]}
    return found


def test_nothing_without_our_tag_is_touched_however_like_ours_it_looks(cloud: Cloud) -> None:
    """Every kind, with tags that all but say it is ours, old and expired; and clean told to take it all."""
    real = tag_list("r", Role.BENCH, name="n", expires_at=PAST)
    rest = [tag for tag in real if tag["Key"] != "Project"]
    lookalikes: dict[str, list[Any]] = {
        "none": [],
        "ours-but-project": [*rest, {"Key": "instant-env:recipe", "Value": "minimal"}],
        "other-case": [*rest, {"Key": "project", "Value": "instant-env"}],
        "other-value-case": [*rest, {"Key": "Project", "Value": "Instant-Env"}],
        "longer": [*rest, {"Key": "Project", "Value": "instant-env-2"}],
        "wildcard": [*rest, {"Key": "Project", "Value": "*"}],
        "within": [*rest, {"Key": "Project", "Value": "not instant-env"}],
        "as-a-name": [{"Key": "Name", "Value": "Project=instant-env"}],
        "instant-env-bench-20200101T000000-00000000": [],
    }
    for name, tags in lookalikes.items():
        make_everything(cloud, tags, name)
    before = everything(cloud)
    ours = make_everything(cloud, real, "ours")
    make_image_of_ours = image(cloud)

    policy = Policy(keep=0, everything=True)
    found = survey(cloud, policy, NOW)
    assert {row.id for row in found.removals}.isdisjoint(before)
    assert remove(cloud, found.removals, quiet).failures == []
    after = everything(cloud)
    assert {key: value for key, value in after.items() if key in before} == before
    gone = ours - {key for key, value in after.items() if value != "terminated"}
    assert make_image_of_ours not in after
    # An AMI of ours without the image's role was baked by nobody; the machine it was made of is gone.
    assert len(ours - gone) == 1


def test_what_loses_our_tag_while_somebody_thinks_is_left_alone(cloud: Cloud) -> None:
    ours = make_everything(cloud, tag_list("r", Role.BENCH, name="n", expires_at=PAST), "ours")
    old = image(cloud)
    found = survey(cloud, Policy(keep=0), NOW)
    assert old in {row.id for row in found.removals}
    cloud.ec2.delete_tags(Resources=[*ours, old], Tags=[{"Key": "Project"}])
    told: list[str] = []
    before = everything(cloud)
    outcome = remove(cloud, found.removals, told.append)
    assert everything(cloud) == before
    assert len(told) == len(found.removals)
    assert (outcome.removed, outcome.failures) == ([], [])
    total = len(found.removals)
    assert outcome.sentence() == f"removed 0 of {total}, {total} left alone"


def test_a_snapshot_of_our_image_that_is_not_ours_stays(cloud: Cloud) -> None:
    image_id = image(cloud)
    (snapshot,) = list_baked(cloud)[0].snapshot_ids
    cloud.ec2.delete_tags(Resources=[snapshot], Tags=[{"Key": "Project"}])
    removals = survey(cloud, Policy(keep=0), NOW).removals
    assert [row.id for row in removals] == [image_id]
    assert remove(cloud, removals, quiet).failures == []
    assert snapshot in everything(cloud)
    assert image_id not in everything(cloud)


def test_a_second_run_finishes_what_a_failure_cut_short(
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image(cloud)
    (snapshot,) = list_baked(cloud)[0].snapshot_ids

    def fail(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "InternalError", "Message": "later"}}, "DeleteSnapshot")

    removals = survey(cloud, Policy(keep=0), NOW).removals
    with monkeypatch.context() as patch:
        patch.setattr(cloud.ec2, "delete_snapshot", fail)
        outcome = remove(cloud, removals, quiet)
    ((row, why),) = outcome.failures
    assert outcome.sentence() == "removed 0 of 1, 1 still there"
    assert row.kind == "image"
    assert "InternalError" in why
    left = survey(cloud, Policy(keep=0), NOW).removals
    assert [(row.kind, row.id, row.reason) for row in left] == [
        ("snapshot", snapshot, "its image is gone, no AMI has it")
    ]
    assert remove(cloud, left, quiet).failures == []
    assert survey(cloud, Policy(keep=0), NOW).removals == []


def test_snapshots_of_an_upload_go_when_it_is_dead_and_not_before(cloud: Cloud) -> None:
    volume = cloud.ec2.create_volume(Size=1, AvailabilityZone="us-east-1a")["VolumeId"]

    def upload(run_id: str, expires_at: datetime) -> str:
        tags = tag_specifications("snapshot", run_id=run_id, role=Role.IMAGE, name="n", expires_at=expires_at)
        return cloud.ec2.create_snapshot(VolumeId=volume, TagSpecifications=tags)["SnapshotId"]

    alive, dead = new_run_id(), new_run_id()
    with runs.alive(cloud.settings, dead):
        killed, expired = upload(dead, FUTURE), upload("r", PAST)
    with runs.alive(cloud.settings, alive):
        going_on, elsewhere = upload(alive, FUTURE), upload("20200101T000000-00000000", FUTURE)
        found = {row.id: row.reason for row in survey(cloud, Policy(), NOW).removals}
        assert found == {
            killed: "its run is over, no AMI has it", expired: "expired, no AMI has it"
        }  # fmt: skip
        all_of_them = {row.id for row in survey(cloud, Policy(everything=True), NOW).removals}
        assert all_of_them == {killed, expired, going_on, elsewhere}
        only = survey(cloud, Policy(kinds=frozenset({"volume"})), NOW)
        assert only == janitor.Survey([], [])


def test_secrets_are_not_asked_for(cloud: Cloud) -> None:
    """Of the account's parameters only those are read that can name an AMI in plain text."""
    ami = image(cloud)
    names = {"String": "web", "StringList": "fleet", "SecureString": "password"}
    for kind, name in names.items():
        cloud.ssm.put_parameter(Name=name, Value=f"{ami},x", Type=kind)  # type: ignore[arg-type]
    read: list[str] = []
    cloud.ssm.meta.events.register(
        "provide-client-params.ssm.GetParameters", lambda params, **_: read.extend(params["Names"])
    )
    assert set(references.find(cloud, [ami])[ami]) == {"SSM parameter fleet", "SSM parameter web"}
    assert sorted(read) == ["fleet", "web"]


def test_what_cannot_be_asked_for_ends_it_before_anything_goes(
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image(cloud)

    def denied(*_: Any, **__: Any) -> Any:
        raise ClientError(
            {"Error": {"Code": "AccessDenied", "Message": "no"}}, "DescribeLaunchConfigurations"
        )

    monkeypatch.setattr("instant_env.cloud.references._auto_scaling", denied)
    with pytest.raises(CloudError, match="listing what is ours: AccessDenied"):
        survey(cloud, Policy(keep=0), NOW)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"keep": -1}, {"min_age_h": -1}, {"what": "image,cats"}):
        with pytest.raises(UsageError):
            janitor.policy(**{"keep": 3, "min_age_h": 0, "what": "", "everything": False} | wrong)  # type: ignore[arg-type]
    found = janitor.policy(keep=1, min_age_h=24, what=" image, snapshot", everything=True)
    assert found == Policy(1, timedelta(days=1), frozenset({"image", "snapshot"}), True)
