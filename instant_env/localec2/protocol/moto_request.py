"""What makes moto execute a :class:`Call`, and nothing that it would find in a request by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self
from urllib.parse import urlencode

from instant_env.localec2.protocol.call import JSON, Call, CallError
from instant_env.localec2.state.moto_api import (
    ACCOUNT_ID,
    EC2QueryParser,
    QueryParser,
    Request,
    get_service_model,
)

#: What is in every request of the query protocol and no parameter of an action.
_PROTOCOL = frozenset({"Action", "Version"})


class Fields(Mapping[str, str]):
    """A call's fields, which remember what of them was read."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields
        self.unread = set(fields)
        # Every start of a name that ends at a dot. moto compares each prefix with all names.
        self.prefixes = set(fields)
        for name in fields:
            parts = name.split(".")
            self.prefixes.update(".".join(parts[:count]) for count in range(1, len(parts)))

    def __getitem__(self, name: str) -> str:
        value = self._fields[name]
        self.unread.discard(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _QuickPrefixes:
    """Mixed into moto's parsers of the query protocol."""

    def _gonna_recurse(self, fields: Fields, prefix: str) -> bool:
        return bool(prefix) and prefix not in fields.prefixes


class _QueryParser(_QuickPrefixes, QueryParser):  # type: ignore[misc]  # moto is untyped
    pass


class _EC2Parser(_QuickPrefixes, EC2QueryParser):  # type: ignore[misc]  # moto is untyped
    pass


class CallResponse:
    """Mixed into moto's response classes, in front of them: their request is a call that has been read.

    :meth:`prepared` reads and checks the parameters without any lock; ``call_action`` then wants it.
    """

    PROTOCOL_PARSER_MAP_TYPE: ClassVar[Any]
    services: ClassVar[Any]  # of the server (api/services.py, which is above this)
    call: Call
    params: dict[str, Any]
    querystring: dict[str, list[str]]
    data: dict[str, list[str]]
    #: Fields that the action's model does not have.
    unread: frozenset[str] = frozenset()

    @classmethod
    def prepared(cls, call: Call) -> Self:
        """The response of a call. Raises CallError."""
        response = cls()
        response.call = call
        response.params = {}
        if call.service in JSON:
            kind, body = "application/x-amz-json-1.1", json.dumps(call.payload)
        else:
            kind = "application/x-www-form-urlencoded; charset=utf-8"
            body = urlencode({"Action": call.action, **call.fields})
        headers = {"Content-Type": kind, "Host": "localec2"}
        request = Request.from_primitives("POST", "http://localec2/", headers, body.encode())
        response.setup_class(request, "http://localec2/", headers)
        return response

    def refusal_answer(self) -> Any:
        """The answer to a call whose parameters are refused; None when they are not. Needs no lock."""

    def setup_class(self, request: Any, *arguments: Any, **named: Any) -> None:
        """moto's, without what it makes of a body that is none of a form."""
        super().setup_class(request, *arguments, **named)  # type: ignore[misc]
        if self.call.service in JSON:
            self.querystring = self.data = {}

    def _get_action(self) -> str:
        return self.call.action

    def get_region_from_url(self, *_: Any) -> str:
        return str(self.services.state.region)

    def get_access_key(self) -> str:
        return "LOCALEC2"

    def get_current_account(self) -> str:
        return ACCOUNT_ID

    def parse_parameters(self, _: Any) -> None:
        """moto's: parameters as the action's model names and types them."""
        try:
            self.parse_fields(self.call.fields)
        except ValueError as error:
            raise CallError("ValidationError", f"A parameter cannot be read: {error}.") from None

    def parse_fields(self, values: Mapping[str, str]) -> None:
        """Read parameters from these fields. Raises ValueError for what is not of its type."""
        fields = Fields(values)
        model = get_service_model(self.call.service).operation_model(self.call.action)
        parser_class = _EC2Parser if self.call.service == "ec2" else _QueryParser
        parser = parser_class(model, map_type=self.PROTOCOL_PARSER_MAP_TYPE)
        self.params = parser.parse({"values": fields, "headers": {}, "url_params": {}})
        self.unread = frozenset(fields.unread - _PROTOCOL)
