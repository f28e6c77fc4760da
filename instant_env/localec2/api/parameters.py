"""SSM's parameter store: moto's, recorded. Nothing else of SSM is served; there is no agent here."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from instant_env.localec2.api.allowed import SSM_ACTIONS
from instant_env.localec2.api.services import Services
from instant_env.localec2.protocol.moto_request import CallResponse
from instant_env.localec2.state.moto_api import ActionResult, SimpleSystemManagerResponse, SSMException


class LocalParameters(CallResponse, SimpleSystemManagerResponse):  # type: ignore[misc]  # moto is untyped
    """One request to SSM. The server holds the state's lock while it runs."""

    services: ClassVar[Services]

    @property
    def ssm_backend(self) -> Any:
        """This server's; moto's would be the one that is in its table now."""
        return self.services.state.mirror.ssm

    def call_action(self) -> Any:
        action = self._get_action()
        if action not in SSM_ACTIONS:
            error = SSMException(
                "UnsupportedOperationException", f"localec2 does not support SSM's {action}."
            )
            return self._refusal_answer(error)
        kind = self._get_param("ResourceType")
        if kind not in (None, "Parameter"):
            error = SSMException(
                "UnsupportedOperationException", f"localec2 does not support tags of SSM's {kind}."
            )
            return self._refusal_answer(error)
        if action == "PutParameter" and (problem := _problem(str(self._get_param("Name") or ""))):
            return self._refusal_answer(SSMException("ValidationException", problem))
        response = super().call_action()
        if SSM_ACTIONS[action] and response[0] < 300:
            self._record()
        return response

    def _refusal_answer(self, error: SSMException) -> Any:
        status, headers, body = self.serialized(ActionResult(error))
        return status, {**headers, "status": str(status)}, body

    def _record(self) -> None:
        names = [self._get_param("Name"), *(self._get_param("Names") or [])]
        if self._get_param("ResourceId"):
            names.append(self._get_param("ResourceId"))
        for name in names:
            if name:
                self.services.capture_parameter(name)


#: API_PutParameter, Name: these characters, at most 1011 of them, up to fifteen levels.
_NAME = re.compile(r"[a-zA-Z0-9_.\-/]{1,1011}")
MAX_LEVELS = 15


def _problem(name: str) -> str | None:
    """Why nobody can have a parameter of this name; None when one can."""
    if not _NAME.fullmatch(name):
        return (
            "Parameter name: only a mix of letters, numbers and the symbols . - _ / is allowed, at most "
            f"1011 characters, not {name[:80]!r}"
        )
    if name.count("/") > MAX_LEVELS:
        return f"A parameter's name has at most {MAX_LEVELS} levels"
    if "/" in name and not name.startswith("/"):
        return "Parameter name must be a fully qualified name: in a hierarchy it begins with /"
    if name.lstrip("/").lower().startswith(("aws", "ssm")):
        return f'Parameter name: can\'t be prefixed with "aws" or "ssm" (case-insensitive): {name}'
    return None
