"""What an action of EC2 finds in moto's response class, with types: moto has none."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services
    from instant_env.localec2.protocol.call import Call


class Action:
    """Base of the mixins that :class:`~instant_env.localec2.api.responses.LocalResponse` is made of.

    moto's class stands behind them and has the parameters of the request. It is empty at run time: a method
    here would come before moto's.
    """

    if TYPE_CHECKING:
        services: ClassVar[Services]
        querystring: dict[str, list[str]]
        call: Call
        hidden_ids: AbstractSet[str]
        ec2_backend: Any
        data: Any

        def _get_param(self, name: str, if_none: Any = None) -> Any: ...
        def _get_bool_param(self, name: str, if_none: Any = None) -> Any: ...
        def _filters_from_querystring(self) -> dict[str, list[str]]: ...
        def _parse_tag_specification(self) -> dict[str, dict[str, str]]: ...
        def error_on_dryrun(self) -> None: ...
