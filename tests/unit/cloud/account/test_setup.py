"""Set-up and tear-down of an account against moto: what is made, made once, and removed; what is not ours."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.iam.account_cloud import answered
from support.iam.calls import Recorder
from support.iam.check import check
from support.iam.policy import IamPolicy

from instant_env.cloud.account import reaper
from instant_env.cloud.account.checklist import checklist
from instant_env.cloud.account.findings import Finding
from instant_env.cloud.account.roles import POLICIES
from instant_env.cloud.account.setup import advice, set_up, tear_down
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import read_tags
from instant_env.public_key import PublicKey
from instant_env.settings import Settings

pytest_plugins = ("support.iam.account_cloud",)


@pytest.fixture
def cloud(account: Cloud) -> Cloud:
    return account


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
    assert made["permission ec2:RunInstances x86_64"].state == "ok"
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
    monkeypatch.setattr("instant_env.cloud.account.group.caller_cidr", lambda _: "198.51.100.9/32")
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

    def note(params: dict[str, Any], **_: Any) -> None:
        made.append(params["AWSServiceName"])

    def create(**_: Any) -> None:
        """moto gives this service's role another name, unless localec2 was imported, which mends that."""
        path = "/aws-service-role/spot.amazonaws.com/"
        with suppress(ClientError):
            cloud.client("iam").create_role(
                RoleName="AWSServiceRoleForEC2Spot", Path=path, AssumeRolePolicyDocument="{}"
            )

    assert cloud.session is not None
    cloud.session.events.register("before-parameter-build.iam.CreateServiceLinkedRole", note)
    cloud.session.events.register("after-call.iam.CreateServiceLinkedRole", create)
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
    refused = found["permission ec2:RunInstances x86_64"]
    assert (refused.state, refused.detail) == ("trouble", "UnauthorizedOperation")
    quota = found["quota vCPUs on demand"]
    assert quota.state in ("ok", "trouble")
    assert quota.detail


def with_settings(cloud: Cloud, **changes: Any) -> Cloud:
    settings = Settings(**{**cloud.settings.model_dump(exclude_unset=True), **changes})
    return dataclasses.replace(cloud, settings=settings)


def look_of(cloud: Cloud) -> Any:
    assert cloud.session is not None
    return cloud.session.client("ec2")


def test_setting_up_checking_and_tearing_down_is_what_their_policy_grants(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(cloud, look_of(cloud))
    assert cloud.session is not None
    with recorder.of_session(cloud.session):
        run(cloud)
        monkeypatch.setattr("instant_env.cloud.account.group.caller_cidr", lambda _: "198.51.100.9/32")
        set_up(cloud, dry_run=False, reaper=True, progress=lambda _: None)
        monkeypatch.setattr(reaper, "_SOURCE", POLICIES / "reaper.json")  # any other bytes
        reaper.ensure_reaper(cloud)
        checklist(cloud, progress=lambda _: None)
        tear_down(cloud, dry_run=False, progress=lambda _: None)
    check("setup", recorder.calls)
    on_the_way = {
        "ec2:CreateTags", "events:TagResource", "iam:PassRole", "iam:TagInstanceProfile", "iam:TagRole",
        "lambda:ListTags", "lambda:TagResource", "logs:TagResource",
    }  # fmt: skip
    actions = recorder.actions - {"sts:GetCallerIdentity"}
    granted = IamPolicy.of_file("setup").actions
    assert actions - granted == set(), "used, and not allowed"
    assert granted - actions - on_the_way == {"iam:CreateServiceLinkedRole"}, "allowed, and not used"


@pytest.mark.parametrize(("kind", "arches"), [(None, ["x86_64", "arm64"]), ("t4g.large", ["arm64"])])
def test_what_is_tried_by_dry_run_is_what_the_policy_of_a_bake_grants(
    cloud: Cloud, kind: str | None, arches: list[str]
) -> None:
    """All that a bake tags is tagged, the group is for the VPC of the subnet, and the type fits the AMI."""
    cloud = with_settings(cloud, instance_type=kind)
    recorder = Recorder(cloud, look_of(cloud))
    found = run(cloud, dry_run=True)
    assert {name for name in found if name.startswith("permission ec2:RunInstances")} == {
        f"permission ec2:RunInstances {arch}" for arch in arches
    }
    check("bake", recorder.tried)
    bodies = [call for call in recorder.tried if call.action == "ec2:RunInstances"]
    assert len(bodies) == len(arches)
    for body in bodies:
        tagged = {one["ResourceType"] for one in body.parameters["TagSpecifications"]}
        assert tagged == {"instance", "volume", "network-interface"}
    (group,) = [call for call in recorder.tried if call.action == "ec2:CreateSecurityGroup"]
    assert group.parameters["VpcId"].startswith("vpc-")
    (key,) = [call for call in recorder.tried if call.action == "ec2:ImportKeyPair"]
    assert PublicKey.parse(key.parameters["PublicKeyMaterial"].decode()).type == "ssh-ed25519"


def test_a_quota_that_the_account_never_raised_is_the_default_one(cloud: Cloud) -> None:
    assert run(cloud, dry_run=True)["quota Elastic IPs"].detail == "5"


def listed(cloud: Cloud) -> dict[str, Finding]:
    return {one.what: one for one in checklist(cloud, progress=lambda _: None)}


def test_a_checklist_says_all_and_makes_nothing(cloud: Cloud) -> None:
    recorder = Recorder(cloud, look_of(cloud))
    assert cloud.session is not None
    with recorder.of_session(cloud.session):
        found = listed(with_settings(cloud, region="us-east-1"))
    assert set(found) == {
        "account", "plan", "region", "encryption", "quota", "default VPC", "subnet", "security group", "role",
        "instance profile", "permission", "reaper", "spot role",
    }  # fmt: skip
    assert found["account"].name == "123456789012"
    assert (found["plan"].name, found["plan"].state) == ("PAID", "ok")
    assert found["region"].state == "ok"
    assert found["subnet"].detail.endswith("public ones given")
    assert found["permission"].state == "ok"
    assert [call.action for call in recorder.calls if not call.name.startswith(("Describe", "Get"))] == []
    assert cloud.client("iam").list_roles()["Roles"] == []


def test_a_checklist_names_what_stands_in_the_way(cloud: Cloud) -> None:
    assert cloud.session is not None
    free = answered({"accountId": "1", "accountPlanType": "FREE"})
    cloud.session.events.register_first("before-call.freetier.GetAccountPlanState", free)
    for subnet in cloud.ec2.describe_subnets()["Subnets"]:
        cloud.ec2.modify_subnet_attribute(SubnetId=subnet["SubnetId"], MapPublicIpOnLaunch={"Value": False})

    def deny(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "UnauthorizedOperation"}}, "GetEbsEncryptionByDefault")

    cloud.ec2.meta.events.register("before-call.ec2.GetEbsEncryptionByDefault", deny)
    found = listed(cloud)
    assert found["plan"].state == "trouble"
    assert "m7i-flex.large" in found["plan"].detail
    assert "write `region: us-east-1`" in found["region"].detail
    assert (found["subnet"].state, found["subnet"].detail) == ("unfit", "gives no public addresses")
    assert (found["encryption"].state, found["encryption"].detail) == (
        "unknown", "GetEbsEncryptionByDefault: UnauthorizedOperation",
    )  # fmt: skip
    assert "public addresses" in found["permission"].detail  # no subnet to try them in


def test_a_group_that_admits_another_address_is_trouble(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next(one for one in run(cloud).values() if one.what == "security group")
    configured = with_settings(cloud, security_group=group.name)
    assert listed(configured)["security group"].state == "ok"
    monkeypatch.setattr("instant_env.cloud.account.group.caller_cidr", lambda _: "198.51.100.9/32")
    found = listed(configured)["security group"]
    assert (found.state, found.detail) == (
        "trouble", "does not admit 198.51.100.9/32: invoke setup --cloud aws",
    )  # fmt: skip
