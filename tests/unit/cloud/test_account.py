"""Set-up and tear-down of an account against moto: what is made, made once, and removed; what is not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from instant_env.cloud.account import POLICIES, Finding, advice, set_up, tear_down
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import read_tags
from instant_env.settings import CloudName, Settings


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.setattr("instant_env.cloud.account.caller_cidr", lambda _: "203.0.113.7/32")
    with mock_aws():
        session = boto3.Session(region_name="us-east-1")
        yield Cloud(
            name=CloudName.AWS, settings=Settings(state_dir=tmp_path), ec2=session.client("ec2"),
            ssm=session.client("ssm"), instance_connect=session.client("ec2-instance-connect"),
            region="us-east-1", ssh_port=22, caller_ip_url="http://127.0.0.1:9/", accelerator="ec2",
            session=session,
        )  # fmt: skip


def run(cloud: Cloud, *, dry_run: bool = False) -> dict[str, Finding]:
    return {f"{one.what} {one.name}": one for one in set_up(cloud, dry_run=dry_run, progress=lambda _: None)}


def states(found: dict[str, Finding], *kinds: str) -> set[str]:
    return {one.state for one in found.values() if one.what in kinds}


MADE = ("security group", "role", "instance profile")


def test_a_dry_run_makes_nothing_and_a_second_run_finds_all(cloud: Cloud) -> None:
    before = len(cloud.ec2.describe_security_groups()["SecurityGroups"])
    assert states(run(cloud, dry_run=True), *MADE) == {"missing"}
    assert len(cloud.ec2.describe_security_groups()["SecurityGroups"]) == before
    assert cloud.client("iam").list_roles()["Roles"] == []

    made = run(cloud)
    assert states(made, *MADE) == {"made"}
    assert made["permission ec2:RunInstances"].state == "ok"
    (group,) = cloud.ec2.describe_security_groups(GroupNames=["instant-env"])["SecurityGroups"]
    assert read_tags(group["Tags"])["Project"] == "instant-env"
    (rule,) = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [entry["CidrIp"] for entry in rule["IpRanges"]] == ["203.0.113.7/32"]
    profile = cloud.client("iam").get_instance_profile(InstanceProfileName="instant-env-builder")
    (role,) = profile["InstanceProfile"]["Roles"]
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert states(run(cloud), *MADE) == {"there"}


def test_the_group_follows_the_caller_and_a_half_made_set_up_is_carried_on(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cloud)
    iam = cloud.client("iam")
    iam.remove_role_from_instance_profile(
        InstanceProfileName="instant-env-builder", RoleName="instant-env-builder"
    )
    policy = json.loads((POLICIES / "builder-role.json").read_text())
    iam.put_role_policy(
        RoleName="instant-env-builder", PolicyName="builder",
        PolicyDocument=json.dumps({**policy, "Statement": [{**policy["Statement"][0], "Sid": "Other"}]}),
    )  # fmt: skip
    monkeypatch.setattr("instant_env.cloud.account.caller_cidr", lambda _: "198.51.100.9/32")
    assert states(run(cloud), *MADE) == {"made"}
    assert states(run(cloud), *MADE) == {"there"}
    (group,) = cloud.ec2.describe_security_groups(GroupNames=["instant-env"])["SecurityGroups"]
    ranges = [entry["CidrIp"] for rule in group["IpPermissions"] for entry in rule["IpRanges"]]
    assert ranges == ["198.51.100.9/32"]


def test_tear_down_removes_all_of_it_and_twice_is_no_error(cloud: Cloud) -> None:
    before = [group["GroupId"] for group in cloud.ec2.describe_security_groups()["SecurityGroups"]]
    run(cloud)
    assert {one.state for one in tear_down(cloud, dry_run=True, progress=lambda _: None)} == {"there"}
    removed = tear_down(cloud, dry_run=False, progress=lambda _: None)
    assert {one.what for one in removed} == set(MADE)
    assert [group["GroupId"] for group in cloud.ec2.describe_security_groups()["SecurityGroups"]] == before
    iam = cloud.client("iam")
    assert iam.list_roles()["Roles"] == []
    assert iam.list_instance_profiles()["InstanceProfiles"] == []
    assert tear_down(cloud, dry_run=False, progress=lambda _: None) == []


def test_a_role_of_that_name_that_is_not_ours_is_left_alone(cloud: Cloud) -> None:
    iam = cloud.client("iam")
    iam.create_role(RoleName="instant-env-builder", AssumeRolePolicyDocument="{}")
    for act in (lambda: run(cloud), lambda: tear_down(cloud, dry_run=False, progress=lambda _: None)):
        with pytest.raises(CloudError, match="somebody else's"):
            act()
    assert [role["RoleName"] for role in iam.list_roles()["Roles"]] == ["instant-env-builder"]


def test_spots_role_is_looked_for_and_made_when_asked(cloud: Cloud) -> None:
    role = "spot role AWSServiceRoleForEC2Spot"
    made: list[str] = []

    def create(params: dict[str, Any], **_: Any) -> None:
        """moto gives this service's role another name."""
        made.append(params["AWSServiceName"])
        path = "/aws-service-role/spot.amazonaws.com/"
        cloud.client("iam").create_role(
            RoleName="AWSServiceRoleForEC2Spot", Path=path, AssumeRolePolicyDocument="{}"
        )

    cloud.session.events.register(  # type: ignore[union-attr]
        "before-parameter-build.iam.CreateServiceLinkedRole", create
    )
    missing = run(cloud)[role]
    assert missing.state == "missing"
    assert "invoke setup --cloud aws --spot-role" in missing.detail
    assert any("--spot-role" in line for line in advice([missing]))
    set_up(cloud, dry_run=True, spot_role=True, progress=lambda _: None)
    assert made == []
    (made_one,) = [
        one for one in set_up(cloud, dry_run=False, spot_role=True, progress=lambda _: None)
        if one.what == "spot role"
    ]  # fmt: skip
    assert (made_one.state, made) == ("made", ["spot.amazonaws.com"])
    assert run(cloud)[role].state == "there"
    tear_down(cloud, dry_run=False, progress=lambda _: None)
    assert run(cloud)[role].state == "there", "it is the account's"


def test_checks_say_what_is_not_allowed_and_what_is_too_little(cloud: Cloud) -> None:
    def deny(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "UnauthorizedOperation"}}, "RunInstances")

    cloud.ec2.meta.events.register("before-call.ec2.RunInstances", deny)
    found = run(cloud)
    refused = found["permission ec2:RunInstances"]
    assert (refused.state, refused.detail) == ("trouble", "UnauthorizedOperation")
    quota = found["quota vCPUs on demand"]
    assert quota.state in ("ok", "trouble")
    assert quota.detail
