"""IAM: roles and instance profiles, so far as instances need them. moto's answers, recorded."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from instant_env.localec2.api.allowed import IAM_ACTIONS
from instant_env.localec2.api.services import Services
from instant_env.localec2.instances.admission import SPOT_ROLE
from instant_env.localec2.protocol.call import CallError, read_object
from instant_env.localec2.protocol.moto_request import CallResponse
from instant_env.localec2.state.moto_api import (
    ActionResult,
    DeleteConflictException,
    IAMException,
    IamResponse,
    LimitExceededException,
    MalformedPolicyDocument,
)
from instant_env.localec2.state.xml_text import impossible

_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
#: Names, and how long they may be (API_CreateRole, API_CreateInstanceProfile, API_CreatePolicy).
NAMES = {"RoleName": 64, "InstanceProfileName": 128, "PolicyName": 128}
_NAME = re.compile(r"[a-zA-Z0-9+=,.@_-]+")
#: Who the service-linked role of Spot is for.
SPOT_SERVICE = "spot.amazonaws.com"
#: IAM's quotas for a role's policies, in characters without white space ("IAM and AWS STS quotas").
DOCUMENTS = {"PolicyDocument": 10_240, "AssumeRolePolicyDocument": 4096}


class LocalIam(CallResponse, IamResponse):  # type: ignore[misc]  # moto is untyped
    """One request to IAM that the allow-list let through. The server holds the state's lock while it runs."""

    services: ClassVar[Services]

    @property
    def backend(self) -> Any:
        """This server's; moto's would be the one that is in its table now."""
        return self.services.state.identities.iam

    def parse_parameters(self, request: Any) -> None:
        """Refuse texts that IAM does not take, before moto keeps them. Raises CallError."""
        for name, value in self.call.fields.items():
            if character := impossible(name + value):
                raise CallError(
                    "ValidationError",
                    f"The parameter {name!r} has the character {character}, which XML cannot hold.",
                )
            if name in NAMES and not (len(value) <= NAMES[name] and _NAME.fullmatch(value)):
                raise CallError(
                    "ValidationError",
                    f"Value {value[:80]!r} at {name} failed to satisfy constraint: 1 to {NAMES[name]} of "
                    "letters, digits and +=,.@-_",
                )
        super().parse_parameters(request)

    def call_action(self) -> Any:
        try:
            for name, most in DOCUMENTS.items():
                _check_document(name, self._get_param(name), most)
        except IAMException as error:
            status, headers, body = self.serialized(ActionResult(error))
            return status, {**headers, "status": str(status)}, body
        response = super().call_action()
        if IAM_ACTIONS[self._get_action()].mutating and response[0] < 300:
            self.services.identities_changed()
        return response

    def create_instance_profile(self) -> ActionResult:
        result = super().create_instance_profile()
        # moto's ids of profiles are none that anybody would take for one.
        result.result["InstanceProfile"].id = "AIPA" + "".join(_ID_ALPHABET[i % 32] for i in os.urandom(17))
        return result

    def create_service_linked_role(self) -> ActionResult:
        """Spot's, which EC2 may ask for; there are no other services here that would have one."""
        service = self._get_param("AWSServiceName")
        if service != SPOT_SERVICE or self._get_param("CustomSuffix"):
            raise IAMException(
                "InvalidInput",
                f"localec2 makes the service-linked role of {SPOT_SERVICE} only, not {service}.",
            )
        if SPOT_ROLE in self.services.state.identities.roles:
            raise IAMException(
                "InvalidInput",
                f"Service role name {SPOT_ROLE} has been taken in this account, please try a different "
                "suffix.",
            )
        return super().create_service_linked_role()

    def attach_role_policy(self) -> ActionResult:
        self._know_policy()
        return super().attach_role_policy()

    def get_policy(self) -> ActionResult:
        self._know_policy()
        return super().get_policy()

    def get_policy_version(self) -> ActionResult:
        self._know_policy()
        return super().get_policy_version()

    def list_policies(self) -> ActionResult:
        if self._get_param("Scope") != "Local":
            self.services.state.identities.know_all_policies()
        return super().list_policies()

    def _know_policy(self) -> None:
        self.services.state.identities.know_policy(self._get_param("PolicyArn"))

    def delete_policy(self) -> ActionResult:
        """moto deletes one that is in use; IAM wants it detached, and its other versions gone."""
        policy = self.backend.get_policy(self._get_param("PolicyArn"))
        if policy.attachment_count > 0:
            raise DeleteConflictException("Cannot delete a policy attached to entities.")
        if len(policy.versions) > 1:
            raise DeleteConflictException(
                "This policy has more than one version. Before you delete a policy, you must delete the "
                "policy's versions. The default version is deleted with the policy."
            )
        return super().delete_policy()

    def update_role(self) -> ActionResult:
        """What is left out stays; moto makes it nothing."""
        role = self.backend.get_role(self._get_param("RoleName"))
        self.params.setdefault("Description", role.description)
        self.params.setdefault("MaxSessionDuration", role.max_session_duration)
        return super().update_role()


def _check_document(name: str, text: str | None, most: int) -> None:
    """Refuse a policy that is too large, or no JSON whose keys are unique. Raises IAMException."""
    if text is None:
        return
    if len("".join(text.split())) > most:
        raise LimitExceededException(f"Maximum policy size of {most} bytes exceeded for {name}")
    try:
        read_object(text.encode())
    except CallError:
        raise MalformedPolicyDocument("Syntax errors in policy.") from None
