"""The role of builders and its instance profile, which bear one name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.account.findings import Finding
from instant_env.cloud.launching.refusals import SPOT_ROLE_HINT
from instant_env.cloud.rules.consistency import repeat_while_unknown, wait_until_known
from instant_env.cloud.session import CloudError, error_code
from instant_env.cloud.tags import PROJECT, read_tags
from instant_env.settings import ROOT

ROLE_NAME = "instant-env-builder"
_POLICY_NAME = "builder"
#: Spot's own; it is the account's, and stays when ours are torn down.
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
POLICIES = ROOT / "policies"

#: Of everything that belongs to the account and to no run.
TAGS: Any = [{"Key": "Project", "Value": PROJECT}, {"Key": "Name", "Value": "instant-env"}]
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


def present(call: Callable[[], Any]) -> Any:
    """What a Get call of IAM answers; None where there is no such thing."""
    try:
        return call()
    except ClientError as error:
        if error_code(error) == "NoSuchEntity":
            return None
        raise


def refuse_foreign(kind: str, tags: Any) -> None:
    if read_tags(tags).get("Project") != PROJECT:
        raise CloudError(
            f"the {kind} {ROLE_NAME} is somebody else's: it has no tag Project={PROJECT}",
            hint="rename it, or tag it if it is yours",
        )


def ensure_role(iam: Any, dry_run: bool) -> Finding:
    document = json.loads((POLICIES / "builder-role.json").read_text(encoding="utf-8"))
    there = present(lambda: iam.get_role(RoleName=ROLE_NAME))
    if there is not None:
        refuse_foreign("role", there["Role"].get("Tags"))
        policy = present(lambda: iam.get_role_policy(RoleName=ROLE_NAME, PolicyName=_POLICY_NAME))
        if policy is not None and policy["PolicyDocument"] == document:
            return Finding("role", ROLE_NAME, "there")
    if dry_run:
        return Finding(
            "role", ROLE_NAME, "missing" if there is None else "there", "its policy would be written"
        )
    if there is None:
        iam.create_role(
            RoleName=ROLE_NAME,
            AssumeRolePolicyDocument=json.dumps(_TRUST),
            Description="machines that instant-env bakes images on",
            Tags=TAGS,
        )
    repeat_while_unknown(
        lambda: iam.put_role_policy(
            RoleName=ROLE_NAME, PolicyName=_POLICY_NAME, PolicyDocument=json.dumps(document)
        )
    )
    return Finding("role", ROLE_NAME, "made")


def ensure_profile(iam: Any, dry_run: bool) -> Finding:
    there = present(lambda: iam.get_instance_profile(InstanceProfileName=ROLE_NAME))
    if there is not None:
        refuse_foreign("instance profile", there["InstanceProfile"].get("Tags"))
        if [role["RoleName"] for role in there["InstanceProfile"]["Roles"]] == [ROLE_NAME]:
            return Finding("instance profile", ROLE_NAME, "there")
    if dry_run:
        return Finding("instance profile", ROLE_NAME, "missing")
    if there is None:
        iam.create_instance_profile(InstanceProfileName=ROLE_NAME, Tags=TAGS)
    repeat_while_unknown(
        lambda: iam.add_role_to_instance_profile(InstanceProfileName=ROLE_NAME, RoleName=ROLE_NAME)
    )
    # IAM knows it then; EC2 a little later, which a bake's launch waits for.
    wait_until_known(
        lambda: iam.get_instance_profile(InstanceProfileName=ROLE_NAME)["InstanceProfile"]["Roles"],
        f"instance profile {ROLE_NAME}",
    )
    return Finding("instance profile", ROLE_NAME, "made")


def ensure_spot_role(iam: Any, *, make: bool) -> Finding:
    """The role without which EC2 refuses spot machines that are asked for by API.

    (EC2 User Guide, "Service-linked role for Spot Instance requests".) EC2 makes it by itself only for a
    caller who may create service-linked roles, and policies/bench.json does not allow that.
    """
    try:
        if present(lambda: iam.get_role(RoleName=SPOT_ROLE)) is not None:
            return Finding("spot role", SPOT_ROLE, "there")
    except ClientError as error:
        return Finding("spot role", SPOT_ROLE, "trouble", f"cannot be read: {error_code(error)}")
    if not make:
        return Finding("spot role", SPOT_ROLE, "missing", f"spot is refused without it: {SPOT_ROLE_HINT}")
    iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    return Finding("spot role", SPOT_ROLE, "made")


def delete_profile(iam: Any, profile: Any) -> None:
    for role in profile["Roles"]:
        iam.remove_role_from_instance_profile(InstanceProfileName=ROLE_NAME, RoleName=role["RoleName"])
    iam.delete_instance_profile(InstanceProfileName=ROLE_NAME)


def delete_role(iam: Any) -> None:
    if present(lambda: iam.get_role_policy(RoleName=ROLE_NAME, PolicyName=_POLICY_NAME)) is not None:
        iam.delete_role_policy(RoleName=ROLE_NAME, PolicyName=_POLICY_NAME)
    iam.delete_role(RoleName=ROLE_NAME)
