"""STS: who am I."""

from __future__ import annotations

from typing import ClassVar

from instant_env.localec2.api.callers import OWNER_ARN, Caller
from instant_env.localec2.api.services import Services
from instant_env.localec2.network.metadata import ACCOUNT_ID
from instant_env.localec2.protocol.moto_request import CallResponse
from instant_env.localec2.state.moto_api import ActionResult, TokenResponse


class LocalTokens(CallResponse, TokenResponse):  # type: ignore[misc]  # moto is untyped
    """One request to STS that the allow-list let through."""

    services: ClassVar[Services]
    caller: Caller

    def get_caller_identity(self) -> ActionResult:
        session = self.caller.session
        if session is None:
            user_id, arn = self.services.state.server.access_key_id, OWNER_ARN
        else:
            user_id, arn = session.user_id, session.arn
        return ActionResult({"UserId": user_id, "Account": ACCOUNT_ID, "Arn": arn})
