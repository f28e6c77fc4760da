"""Associations of instances with instance profiles, and what IMDS serves for them under ``iam/``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from instant_env.localec2.network.metadata import Node, document_text, timestamp
from instant_env.localec2.records.records import InstanceRecord, ProfileAssociation
from instant_env.localec2.state.credentials import Issuer, Session, issue_time
from instant_env.localec2.state.identities import Identities, InstanceProfileRecord, trusts_ec2
from instant_env.localec2.state.moto_api import EC2ClientError, new_id
from instant_env.localec2.state.state import now

#: What EC2 calls a failure of the role; the guide tells users to look here for it.
_TROUBLESHOOTING = "https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html"


def associate(identities: Identities, profile_param: dict[str, Any] | None) -> ProfileAssociation | None:
    """The association that an ``IamInstanceProfile`` parameter asks for. Raises EC2's errors."""
    if not profile_param:
        return None
    name, arn = profile_param.get("Name"), profile_param.get("Arn")
    if name and arn:
        raise EC2ClientError(
            "InvalidParameterCombination",
            "The parameter 'iamInstanceProfile.name' may not be used in combination with "
            "'iamInstanceProfile.arn'",
        )
    profile = _find(identities, name, arn)
    if profile is None:
        field, word = ("name", "name") if name else ("arn", "ARN")
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Value ({name or arn}) for parameter iamInstanceProfile.{field} is invalid. "
            f"Invalid IAM Instance Profile {word}",
        )
    return ProfileAssociation(
        id=new_id("iip-assoc"), profile_name=profile.name, profile_arn=profile.arn, profile_id=profile.id,
        since=now(),
    )  # fmt: skip


def renewed(association: ProfileAssociation | None) -> ProfileAssociation | None:
    """The association of another instance that is launched with the same profile."""
    if association is None:
        return None
    return association.model_copy(update={"id": new_id("iip-assoc"), "since": now()})


def _find(identities: Identities, name: str | None, arn: str | None) -> InstanceProfileRecord | None:
    return next(
        (item for item in identities.profiles.values() if (item.name == name if name else item.arn == arn)),
        None,
    )


def iam_tree(instance: InstanceRecord, identities: Identities, issuer: Issuer, at: datetime) -> Node:
    """``meta-data/iam/`` of an instance; empty without a profile."""
    association = instance.profile
    if association is None:
        return {}
    issued_at = issue_time(association.since, at)
    updated = {"LastUpdated": timestamp(issued_at)}
    profile = identities.profiles.get(association.profile_name)
    if profile is None or profile.id != association.profile_id:
        message = (
            f"Instance Profile {association.profile_arn} cannot be found. Please see {_TROUBLESHOOTING}."
        )
        info = {"Code": "InstanceProfileNotFound", "Message": message} | updated
        return {"info": document_text(info)}
    info = {"Code": "Success"} | updated
    info |= {"InstanceProfileArn": profile.arn, "InstanceProfileId": profile.id}
    tree: Node = {"info": document_text(info)}
    role = identities.roles.get(profile.role_name or "")
    if role is None:
        return tree
    if trusts_ec2(role):
        issued = issuer.issue(Session(role.name, role.id, instance.id, issued_at))
        credentials = {"Code": "Success"} | updated | {
            "Type": "AWS-HMAC", "AccessKeyId": issued.access_key_id,
            "SecretAccessKey": issued.secret_access_key,
            "Token": issued.token, "Expiration": timestamp(issued.session.expires_at),
        }  # fmt: skip
    else:
        message = f"EC2 cannot assume the role {role.name}. Please see {_TROUBLESHOOTING}."
        credentials = {"Code": "AssumeRoleUnauthorizedAccess", "Message": message} | updated
    return tree | {"security-credentials": {role.name: document_text(credentials)}}
