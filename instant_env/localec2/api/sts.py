"""STS: who am I."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

from instant_env.localec2.api.callers import OWNER_ARN
from instant_env.localec2.api.services import Services
from instant_env.localec2.network.metadata import ACCOUNT_ID
from instant_env.localec2.state.moto_api import ActionResult, TokenResponse


class LocalTokens(TokenResponse):  # type: ignore[misc]  # moto is untyped
    """One request to STS that the allow-list let through."""

    services: ClassVar[Services]

    def get_caller_identity(self) -> ActionResult:
        token = self.headers.get("X-Amz-Security-Token")
        if token is None:
            user_id, arn = self.services.state.server.access_key_id, OWNER_ARN
        else:  # the server has checked it
            session = self.services.state.issuer.open(token, datetime.now(UTC)).session
            user_id, arn = session.user_id, session.arn
        return ActionResult({"UserId": user_id, "Account": ACCOUNT_ID, "Arn": arn})
