"""The reaper: what the function ends in localec2, and what its deployment makes, mends and removes in moto.

Nothing of it has run on AWS: Lambda's own part (the schedule, the role's permissions at work) is not shown.
"""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.iam.calls import Recorder
from support.iam.check import check
from support.iam.policy import IamPolicy
from support.pretend_bakery import Bakery, Calls

from instant_env.cloud.account import reaper
from instant_env.cloud.account.reaper import REAPER_NAME, ensure_reaper, find_reaper
from instant_env.cloud.account.reaper_function import GRACE, reap
from instant_env.cloud.account.roles import POLICIES
from instant_env.cloud.account.setup import set_up, tear_down
from instant_env.cloud.instances import LaunchRequest, launch
from instant_env.cloud.interfaces import make_public_interface
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import PROTECTED, Role

pytest_plugins = ("support.pretend_bakery", "support.iam.account_cloud")

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
PAST = NOW - GRACE - timedelta(seconds=1)


def machine(bakery: Bakery, image: str, name: str, expires_at: datetime) -> str:
    return launch(
        bakery.cloud,
        LaunchRequest(image, "m7i.large", "r1", Role.BENCH, name, expires_at, client_token=name),
    )


def live(bakery: Bakery) -> set[str]:
    states: Any = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    answer = bakery.served.ec2.describe_instances(Filters=states)
    return {one["InstanceId"] for group in answer["Reservations"] for one in group["Instances"]}


def test_what_is_past_its_time_is_ended_and_nothing_else(bakery: Bakery) -> None:
    """Of each kind one that is due; of machines also those that are not, protected, or not ours."""
    ec2, image = bakery.cloud.ec2, bakery.new_base("another")
    due = machine(bakery, image, "due", PAST)
    soon = machine(bakery, image, "soon", NOW - GRACE / 2)
    protected = machine(bakery, image, "protected", PAST)
    ec2.create_tags(Resources=[protected], Tags=[{"Key": PROTECTED, "Value": "yes"}])
    foreign = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=[
        {"ResourceType": "instance", "Tags": [
            {"Key": "instant-env:expires-at", "Value": "2026-01-01T00:00:00Z"}]}
    ])["Instances"][0]["InstanceId"]  # fmt: skip
    unreadable = machine(bakery, image, "unreadable", PAST)
    ec2.create_tags(Resources=[unreadable], Tags=[{"Key": "instant-env:expires-at", "Value": "soon"}])
    tags: Any = {"run_id": "r1", "expires_at": PAST}
    with temporary_security_group(bakery.cloud, role=Role.BENCH, keep=lambda: True, **tags) as group:
        made = make_public_interface(
            bakery.cloud, security_group_id=group, role=Role.POOL, name="pool", **tags
        )
    recorder = Recorder(bakery.cloud, bakery.served.ec2)
    ended, refused = reap(ec2, NOW)
    assert {due, made.interface_id, made.allocation_id, group} <= set(ended)
    assert refused == []
    assert live(bakery) == {soon, protected, foreign, unreadable}
    assert reap(ec2, NOW) == ([], [])
    check("reaper", recorder.calls)


def test_every_kind_that_expires_is_ended(bakery: Bakery) -> None:
    """A bake that is killed leaves them; here they are what a finished one has, with an expiry again."""
    image = bakery.bake().image
    ec2 = bakery.served.ec2
    volume = ec2.create_volume(SnapshotId=image.snapshot_ids[0], AvailabilityZone="us-east-1a")["VolumeId"]
    key = ec2.create_key_pair(KeyName="left")["KeyPairId"]
    names = [image.id, *image.snapshot_ids, volume, key]
    expiry: Any = {"Key": "instant-env:expires-at", "Value": f"{PAST:%Y-%m-%dT%H:%M:%SZ}"}
    ec2.create_tags(Resources=names, Tags=[{"Key": "Project", "Value": "instant-env"}, expiry])
    recorder = Recorder(bakery.cloud, bakery.served.ec2)
    ended, refused = reap(bakery.cloud.ec2, NOW)
    assert (set(ended), refused) == (set(names), [])
    check("reaper", recorder.calls)
    left = IamPolicy.of_file("reaper").actions - recorder.actions
    assert left == {
        "ec2:DeleteNetworkInterface", "ec2:DeleteSecurityGroup", "ec2:ReleaseAddress",
        "ec2:TerminateInstances", "logs:CreateLogStream", "logs:PutLogEvents",
    }, "the other test has these, and Lambda's own"  # fmt: skip


def test_a_lease_that_is_extended_between_listing_and_end_stays(bakery: Bakery) -> None:
    name = machine(bakery, bakery.new_base("another"), "lease", PAST)
    calls = Calls(bakery.cloud)

    def extend(**_: Any) -> None:
        later: Any = {"Key": "instant-env:expires-at", "Value": "2026-12-30T00:00:00Z"}
        bakery.served.ec2.create_tags(Resources=[name], Tags=[later])

    bakery.cloud.ec2.meta.events.register_last("after-call.ec2.DescribeInstances", extend)
    assert reap(bakery.cloud.ec2, NOW) == ([], [])
    assert "TerminateInstances" not in calls.changing
    assert live(bakery) == {name}


def test_it_is_made_once_brought_up_to_date_and_removed(
    account: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_reaper(account).state == "missing"
    states = [one.state for one in set_up(account, dry_run=False, reaper=True, progress=lambda _: None)
              if one.what == "reaper"]  # fmt: skip
    assert states == ["made"]
    assert ensure_reaper(account).state == "there"
    events, client, iam = (account.client(name) for name in ("events", "lambda", "iam"))
    rule = events.describe_rule(Name=REAPER_NAME)
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(15 minutes)", "ENABLED")
    function = client.get_function(FunctionName=REAPER_NAME)
    (target,) = events.list_targets_by_rule(Rule=REAPER_NAME)["Targets"]
    assert target["Arn"] == function["Configuration"]["FunctionArn"]
    assert function["Configuration"]["Handler"] == "reaper_function.handler"
    assert function["Tags"]["Project"] == "instant-env"
    assert rule["Arn"] in client.get_policy(FunctionName=REAPER_NAME)["Policy"]
    role = iam.get_role(RoleName=REAPER_NAME)["Role"]
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"] == "lambda.amazonaws.com"

    monkeypatch.setattr(reaper, "_SOURCE", POLICIES / "reaper.json")  # any other bytes
    assert "another version" in find_reaper(account).detail
    events.disable_rule(Name=REAPER_NAME)
    assert ensure_reaper(account).state == "made"
    assert find_reaper(account).detail == "rate(15 minutes)"
    assert events.describe_rule(Name=REAPER_NAME)["State"] == "ENABLED"

    gone = {one.what for one in tear_down(account, dry_run=False, progress=lambda _: None)}
    assert {"reaper's rule", "reaper's function", "reaper's role", "reaper's log group"} <= gone
    assert find_reaper(account).state == "missing"
    assert events.list_rules()["Rules"] == []
    assert iam.list_roles()["Roles"] == []
    assert account.client("logs").describe_log_groups()["logGroups"] == []


def test_its_deployment_is_what_the_policy_of_setup_grants(account: Cloud) -> None:
    assert account.session is not None
    recorder = Recorder(account, account.session.client("ec2"))
    with recorder.of_session(account.session):
        ensure_reaper(account)
        find_reaper(account)
        tear_down(account, dry_run=False, progress=lambda _: None)
    assert "lambda:CreateFunction" in recorder.actions
    check("setup", recorder.calls)


def test_a_function_of_that_name_that_is_not_ours_is_left_alone(account: Cloud) -> None:
    role = account.client("iam").create_role(RoleName="theirs", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    account.client("lambda").create_function(
        FunctionName=REAPER_NAME, Runtime="python3.13", Role=role, Handler="a.b",
        Code={"ZipFile": reaper.package()},
    )  # fmt: skip
    with pytest.raises(CloudError, match="somebody else's"):
        find_reaper(account)
    with pytest.raises(CloudError, match="somebody else's"):
        tear_down(account, dry_run=False, progress=lambda _: None)


def test_the_package_is_the_one_file_and_the_same_each_time() -> None:
    assert reaper.package() == reaper.package()
    with zipfile.ZipFile(io.BytesIO(reaper.package())) as archive:
        assert archive.namelist() == ["reaper_function.py"]
        source = archive.read("reaper_function.py").decode()
    assert "instant_env" not in [line.split()[1].partition(".")[0] for line in source.splitlines()
                                 if line.startswith(("import ", "from "))]  # fmt: skip
