"""The simulator of IAM that policies/ are tested with: it has to refuse what IAM refuses."""

from __future__ import annotations

from typing import Any

import pytest
from support.iam.calls import Call, arn
from support.iam.policy import Access, IamPolicy

OURS = {"aws:ResourceTag/Project": "instant-env"}


def policy(**changes: Any) -> IamPolicy:
    statement = {"Effect": "Allow", "Action": "ec2:Terminate*", "Resource": "arn:aws:ec2:*:*:instance/*"}
    return IamPolicy({"Statement": [{**statement, **changes}]})


@pytest.mark.parametrize(
    ("access", "granted"),
    [
        (Access("ec2:TerminateInstances", arn("instance", "i-1")), True),
        (Access("EC2:terminateinstances", arn("instance", "i-1")), True),
        (Access("ec2:StopInstances", arn("instance", "i-1")), False),
        (Access("ec2:TerminateInstances", arn("volume", "vol-1")), False),
        (Access("ec2:TerminateInstances", "*"), False),
    ],
)
def test_actions_and_resources_match_by_wildcards(access: Access, granted: bool) -> None:
    assert policy().grants(access) is granted


@pytest.mark.parametrize(
    ("condition", "context", "granted"),
    [
        ({"StringEquals": OURS}, OURS, True),
        ({"StringEquals": OURS}, {}, False),
        ({"StringEquals": OURS}, {"aws:ResourceTag/Project": "Instant-env"}, False),
        ({"StringEquals": {"k": ["a", "b"]}}, {"k": "b"}, True),
        ({"StringEquals": {"k": "a", "l": "b"}}, {"k": "a"}, False),
        ({"StringLike": {"k": "ec2.*.amazonaws.com"}}, {"k": "ec2.eu-west-1.amazonaws.com"}, True),
        ({"StringLike": {"k": "ec2.*"}}, {"k": "s3.ec2."}, False),
        ({"Null": {"k": "false"}}, {}, False),
        ({"Null": {"k": "false"}}, {"k": "any"}, True),
        ({"Null": {"k": "true"}}, {}, True),
    ],
)
def test_all_conditions_have_to_hold(condition: Any, context: dict[str, str], granted: bool) -> None:
    access = Access("ec2:TerminateInstances", arn("instance", "i-1"), context)
    assert policy(Condition=condition).grants(access) is granted


def test_a_denial_wins_and_nothing_is_granted_by_default() -> None:
    access = Access("ec2:TerminateInstances", arn("instance", "i-1"))
    both = [*policy().statements, *policy(Effect="Deny").statements]
    assert not IamPolicy({"Statement": both}).grants(access)
    assert not IamPolicy({"Statement": []}).grants(access)
    assert not IamPolicy.of_file("builder-role").grants(access)


def test_what_is_not_simulated_is_an_error() -> None:
    with pytest.raises(ValueError, match="NotAction"):
        policy(NotAction="ec2:*")
    with pytest.raises(KeyError):
        policy(Condition={"StringNotEquals": OURS}).grants(
            Access("ec2:TerminateInstances", arn("instance", "i-1"), OURS)
        )
    with pytest.raises(KeyError, match="SomethingNew"):
        Call("ec2:SomethingNew").accesses()


@pytest.mark.parametrize(("role", "granted"), [("instant-env-builder", True), ("administrator", False)])
def test_a_role_is_lent_by_a_launch_only_when_it_is_the_builders(role: str, granted: bool) -> None:
    tags = [{"Key": "Project", "Value": "instant-env"}]
    kinds = ("instance", "volume", "network-interface")
    parameters = {
        "ImageId": "ami-0123456789abcdef0", "IamInstanceProfile": {"Name": role},
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in kinds],
    }  # fmt: skip
    refusals = IamPolicy.of_file("bake").refused(Call("ec2:RunInstances", parameters).accesses())
    assert [access.action for access in refusals] == ([] if granted else ["iam:PassRole"])


def test_an_image_of_somebody_elses_machine_is_refused_by_the_policy_of_a_bake() -> None:
    """It would copy a foreign disk. The caller says our tag, which that machine does not carry."""
    tags = [{"Key": "Project", "Value": "instant-env"}]
    specifications = [{"ResourceType": kind, "Tags": tags} for kind in ("image", "snapshot")]
    machine = "i-0123456789abcdef0"
    parameters = {"InstanceId": machine, "TagSpecifications": specifications}
    foreign = Call("ec2:CreateImage", parameters, {machine: {"Project": "payroll"}})
    ours = Call("ec2:CreateImage", parameters, {machine: {"Project": "instant-env"}})
    bake = IamPolicy.of_file("bake")
    assert bake.refused(ours.accesses()) == []
    (refusal,) = bake.refused(foreign.accesses(generous=True))
    assert refusal.resource == arn("instance", machine)
