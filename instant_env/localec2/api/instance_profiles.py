"""EC2's actions on the associations of instances with instance profiles."""

from __future__ import annotations

from typing import Any

from instant_env.localec2.api.base import Action
from instant_env.localec2.api.pages import page
from instant_env.localec2.records.records import InstanceRecord, ProfileAssociation
from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError
from instant_env.localec2.state.profile_associations import associate


class InstanceProfiles(Action):
    """Mixed into the response class."""

    def associate_iam_instance_profile(self) -> ActionResult:
        instance = self.services.state.instance(self._get_param("InstanceId"))
        association = associate(self.services.state.identities, self._get_param("IamInstanceProfile"))
        if association is None:
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
        self._set(instance, association)
        return ActionResult(
            {"IamInstanceProfileAssociation": _structure(instance, association, "associating")}
        )

    def replace_iam_instance_profile_association(self) -> ActionResult:
        instance, earlier = self._associated(self._get_param("AssociationId"))
        association = associate(self.services.state.identities, self._get_param("IamInstanceProfile"))
        if association is None:
            raise EC2ClientError(
                "MissingParameter", "The request must contain the parameter IamInstanceProfile"
            )
        if instance.state not in ("pending", "running"):
            raise EC2ClientError(
                "IncorrectState", f"The association {earlier.id} is not the active association"
            )
        self.error_on_dryrun()
        self._set(instance, association)
        return ActionResult(
            {"IamInstanceProfileAssociation": _structure(instance, association, "associating")}
        )

    def disassociate_iam_instance_profile(self) -> ActionResult:
        instance, association = self._associated(self._get_param("AssociationId"))
        self.error_on_dryrun()
        self._set(instance, None)
        return ActionResult(
            {"IamInstanceProfileAssociation": _structure(instance, association, "disassociating")}
        )

    def describe_iam_instance_profile_associations(self) -> ActionResult:
        self.error_on_dryrun()
        ids = self._get_param("AssociationIds", [])
        for association_id in ids:
            self._associated(association_id)
        filters = self._filters_from_querystring()
        if unknown := set(filters) - {"instance-id", "state"}:
            raise EC2ClientError("InvalidParameterValue", f"The filter '{min(unknown)}' is invalid")
        structures = [
            _structure(instance, association, "associated")
            for instance, association in self._associations()
            if (not ids or association.id in ids)
            and matches(filters.get("instance-id", ["*"]), instance.id)
            and matches(filters.get("state", ["*"]), "associated")
        ]
        items, token = page(
            structures, self._get_param("NextToken"), self._get_param("MaxResults"),
            lambda association: str(association["AssociationId"]),
        )  # fmt: skip
        return ActionResult({"IamInstanceProfileAssociations": items, "NextToken": token})

    def _associations(self) -> list[tuple[InstanceRecord, ProfileAssociation]]:
        instances = self.services.state.instances.values()
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
        self.services.state.save(instance)
        self.services.instance_changed(instance)


def _structure(instance: InstanceRecord, association: ProfileAssociation, state: str) -> dict[str, Any]:
    return {
        "AssociationId": association.id, "InstanceId": instance.id, "State": state,
        "IamInstanceProfile": {"Arn": association.profile_arn, "Id": association.profile_id},
    }  # fmt: skip
