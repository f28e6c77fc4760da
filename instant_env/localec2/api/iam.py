"""IAM: roles and instance profiles, so far as instances need them. moto's answers, recorded."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from instant_env.localec2.api.allowed import IAM_ACTIONS
from instant_env.localec2.api.services import Services
from instant_env.localec2.state.moto_api import ActionResult, IamResponse

_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class LocalIam(IamResponse):  # type: ignore[misc]  # moto is untyped
    """One request to IAM that the allow-list let through. The server holds the state's lock while it runs."""

    services: ClassVar[Services]

    @property
    def backend(self) -> Any:
        """This server's; moto's would be the one that is in its table now."""
        return self.services.state.identities.iam

    def call_action(self) -> Any:
        response = super().call_action()
        if IAM_ACTIONS[self._get_action()].mutating and response[0] < 300:
            self.services.identities_changed()
        return response

    def create_instance_profile(self) -> ActionResult:
        result = super().create_instance_profile()
        # moto's ids of profiles are none that anybody would take for one.
        result.result["InstanceProfile"].id = "AIPA" + "".join(_ID_ALPHABET[i % 32] for i in os.urandom(17))
        return result

    def attach_role_policy(self) -> ActionResult:
        self.services.state.identities.know_policy(self._get_param("PolicyArn"))
        return super().attach_role_policy()
