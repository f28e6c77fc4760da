"""Instance profiles of instances: their associations (EC2's actions), and what IMDS says of them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from instant_env.localec2.credentials import Issuer, Session, issue_time
from instant_env.localec2.identities import Identities, InstanceProfileRecord, trusts_ec2
from instant_env.localec2.metadata import Node, document_text, timestamp
from instant_env.localec2.moto_api import ActionResult, EC2ClientError, new_id
from instant_env.localec2.records import InstanceRecord, ProfileAssociation
from instant_env.localec2.state import now

if TYPE_CHECKING:
    from instant_env.localec2.plane import Plane

#: What EC2 calls a failure of the role; the guide tells users to look here for it.
_TROUBLESHOOTING = "https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html"
_MOST_RESULTS = 1000


def associate(identities: Identities, given: dict[str, Any] | None) -> ProfileAssociation | None:
    """The association that an ``IamInstanceProfile`` parameter asks for. Raises EC2's errors."""
    if not given:
        return None
    name, arn = given.get("Name"), given.get("Arn")
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
        made = issuer.issue(Session(role.name, role.id, instance.id, issued_at))
        credentials = {"Code": "Success"} | updated | {
            "Type": "AWS-HMAC", "AccessKeyId": made.access_key_id,
            "SecretAccessKey": made.secret_access_key,
            "Token": made.token, "Expiration": timestamp(made.session.expires_at),
        }  # fmt: skip
    else:
        message = f"EC2 cannot assume the role {role.name}. Please see {_TROUBLESHOOTING}."
        credentials = {"Code": "AssumeRoleUnauthorizedAccess", "Message": message} | updated
    return tree | {"security-credentials": {role.name: document_text(credentials)}}


class Profiles:
    """Mixed into the response class."""

    if TYPE_CHECKING:
        plane: ClassVar[Plane]

        def _get_param(self, name: str, if_none: Any = None) -> Any: ...
        def _filters_from_querystring(self) -> dict[str, list[str]]: ...
        def error_on_dryrun(self) -> None: ...

    def associate_iam_instance_profile(self) -> ActionResult:
        instance = self.plane.state.instance(self._get_param("InstanceId"))
        made = associate(self.plane.state.identities, self._get_param("IamInstanceProfile"))
        if made is None:
            raise EC2ClientError(
                "MissingParameter", "The request must contain the parameter IamInstanceProfile"
            )
        if instance.state not in ("pending", "running", "stopping", "stopped"):
            raise EC2ClientError(
                "IncorrectInstanceState",
                f"The instance '{instance.id}' is not in the 'running' or 'stopped' states.",
            )
        if instance.profile is not None:
            raise EC2ClientError(
                "IncorrectState", f"There is an existing association for instance {instance.id}"
            )
        self.error_on_dryrun()
        self._set(instance, made)
        return ActionResult({"IamInstanceProfileAssociation": _shown(instance, made, "associating")})

    def replace_iam_instance_profile_association(self) -> ActionResult:
        instance, earlier = self._associated(self._get_param("AssociationId"))
        made = associate(self.plane.state.identities, self._get_param("IamInstanceProfile"))
        if made is None:
            raise EC2ClientError(
                "MissingParameter", "The request must contain the parameter IamInstanceProfile"
            )
        if instance.state not in ("pending", "running"):
            raise EC2ClientError(
                "IncorrectState", f"The association {earlier.id} is not the active association"
            )
        self.error_on_dryrun()
        self._set(instance, made)
        return ActionResult({"IamInstanceProfileAssociation": _shown(instance, made, "associating")})

    def disassociate_iam_instance_profile(self) -> ActionResult:
        instance, association = self._associated(self._get_param("AssociationId"))
        self.error_on_dryrun()
        self._set(instance, None)
        return ActionResult(
            {"IamInstanceProfileAssociation": _shown(instance, association, "disassociating")}
        )

    def describe_iam_instance_profile_associations(self) -> ActionResult:
        self.error_on_dryrun()
        wanted = self._get_param("AssociationIds", [])
        for association_id in wanted:
            self._associated(association_id)
        filters = self._filters_from_querystring()
        if unknown := set(filters) - {"instance-id", "state"}:
            raise EC2ClientError("InvalidParameterValue", f"The filter '{min(unknown)}' is invalid")
        found = [
            _shown(instance, association, "associated")
            for instance, association in self._associations()
            if (not wanted or association.id in wanted)
            and instance.id in filters.get("instance-id", [instance.id])
            and "associated" in filters.get("state", ["associated"])
        ]
        start = int(self._get_param("NextToken") or 0)
        end = start + int(self._get_param("MaxResults") or _MOST_RESULTS)
        return ActionResult(
            {
                "IamInstanceProfileAssociations": found[start:end],
                "NextToken": str(end) if end < len(found) else None,
            }
        )

    def _associations(self) -> list[tuple[InstanceRecord, ProfileAssociation]]:
        instances = self.plane.state.instances.values()
        return [
            (item, item.profile)
            for item in instances
            if item.profile is not None and item.state != "terminated"
        ]

    def _associated(self, association_id: str) -> tuple[InstanceRecord, ProfileAssociation]:
        for instance, association in self._associations():
            if association.id == association_id:
                return instance, association
        raise EC2ClientError(
            "InvalidAssociationID.NotFound", f"An invalid association-id of '{association_id}' was given"
        )

    def _set(self, instance: InstanceRecord, association: ProfileAssociation | None) -> None:
        instance.profile = association
        self.plane.state.save(instance)
        self.plane.instance_changed(instance)


def _shown(instance: InstanceRecord, association: ProfileAssociation, state: str) -> dict[str, Any]:
    return {
        "AssociationId": association.id, "InstanceId": instance.id, "State": state,
        "IamInstanceProfile": {"Arn": association.profile_arn, "Id": association.profile_id},
    }  # fmt: skip
