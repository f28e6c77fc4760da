"""One reading of a request. What is authorised is what is executed, because both have only this.

A request has one form: its protocol is its service's, its action stands in one place, no name comes twice.
Everything else is refused here, before a policy is asked and before any lock is taken. moto, which would look
for the action in the URL, the body, two headers and the path, is given a request made of this reading
(:mod:`moto_request`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from instant_env.localec2.state.moto_api import get_service_model

#: Services of the query protocol, whose parameters are fields of a form.
QUERY = ("ec2", "sts", "iam")
#: Services of the JSON protocol, whose action stands in X-Amz-Target.
JSON = ("ssm", "ec2-instance-connect")
#: The EBS direct APIs: the only ones whose method and path say what is asked for.
REST = "ebs"

#: More than EC2's largest documented request has: 50 filters of 200 values each.
MAX_FIELDS = 12_000
#: EC2 User Guide, "List and filter your resources": "up to 50 filters and up to 200 values per filter".
MAX_FILTERS, MAX_FILTER_VALUES = 50, 200
#: The longest name of a parameter in EC2's model has 110 characters, its numbers not counted.
MAX_NAME = 255

_FORM = "application/x-www-form-urlencoded"
_ACTION = re.compile(r"[A-Z][A-Za-z0-9]{1,127}")
_FILTER_VALUE = re.compile(r"Filter\.(\d{1,9})\.Value\.\d{1,9}", re.ASCII)
_FILTER = re.compile(r"Filter\.(\d{1,9})\.", re.ASCII)


class CallError(Exception):
    """A request that is refused for its form; ``code`` is AWS's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Call:
    """What a request asks for: all that the allow-list, the policies, the faults and moto know of it."""

    service: str
    action: str
    fields: Mapping[str, str] = field(default_factory=dict)  # of the query protocol, without Action
    payload: Mapping[str, Any] = field(default_factory=dict)  # of the JSON protocol
    query: Mapping[str, str] = field(default_factory=dict)  # of REST
    path: str = "/"
    body: bytes = b""  # as it came; for REST it is data

    @property
    def named_instances(self) -> list[str]:
        """The instances that the request is about."""
        return [
            value for name, value in self.fields.items() if name == "InstanceId" or name[:11] == "InstanceId."
        ]


def target_of(text: str) -> SplitResult | None:
    """A request's target, taken apart; None when it is no path of this server (RFC 9112, 3.2.1)."""
    if not text.startswith("/") or text.startswith("//") or "#" in text or not text.isascii():
        return None
    try:
        return urlsplit(text)
    except ValueError:
        return None


def repeated(names: Sequence[str]) -> str | None:
    """A header that decides something and comes more than once: two readers would take different ones."""
    lowered = [name.lower() for name in names]
    deciding = {"host", "authorization", "content-type", "content-length", "content-encoding"}
    return next(
        (n for n in lowered if (n in deciding or n.startswith("x-amz-")) and lowered.count(n) > 1), None
    )


def read(service: str, method: str, target: SplitResult, headers: Mapping[str, str], body: bytes) -> Call:
    """The call that a request is; ``headers`` has lower-case names. Raises CallError.

    REST has no actions on the wire: its call's action is empty, and its service finds it by method and path.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise CallError("UnsupportedOperation", "localec2 takes no compressed requests (Content-Encoding).")
    if service == REST:
        return Call(service, "", query=_fields(target.query.encode()), path=target.path, body=body)
    if service in JSON:
        return _json_call(service, method, target, headers, body)
    return _query_call(service, method, target, headers, body)


def _query_call(
    service: str, method: str, target: SplitResult, headers: Mapping[str, str], body: bytes
) -> Call:
    if "x-amz-target" in headers:
        raise CallError("InvalidAction", f"{service} takes its action as a parameter, not in X-Amz-Target.")
    kind = headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if method == "POST" and not target.query and kind == _FORM:
        fields = _fields(body)
    elif method == "GET" and not body:
        fields = _fields(target.query.encode())
    else:
        raise CallError(
            "MalformedQueryString",
            f"A request to {service} is a POST with its parameters in a body of the type {_FORM} and none in "
            "the URL, or a GET with all of them in the URL and no body.",
        )
    action = fields.pop("Action", "")
    if not action:
        raise CallError("MissingAction", "The request is missing an action.")
    _check_action(service, action)
    if service == "ec2":
        _check_filters(fields)
    return Call(service, action, fields=_without_empty_lists(service, action, fields))


def _without_empty_lists(service: str, action: str, fields: dict[str, str]) -> dict[str, str]:
    """The protocol writes a list without elements as an empty field of its name (Smithy, "AWS query")."""
    shape = get_service_model(service).operation_model(action).input_shape
    lists = {name for name, member in shape.members.items() if member.type_name == "list"} if shape else set()
    return {name: value for name, value in fields.items() if value or name not in lists}


def _json_call(
    service: str, method: str, target: SplitResult, headers: Mapping[str, str], body: bytes
) -> Call:
    if method != "POST" or target.query:
        raise CallError("InvalidAction", f"A request to {service} is a POST to / without a query.")
    prefix, _, action = headers.get("x-amz-target", "").rpartition(".")
    if not action:
        raise CallError("MissingAction", "The request is missing an action (X-Amz-Target).")
    if prefix != get_service_model(service).metadata["targetPrefix"]:
        raise CallError("UnknownOperationException", f"X-Amz-Target is not one of {service}'s.")
    _check_action(service, action)
    return Call(service, action, payload=read_object(body), body=body)


def _check_action(service: str, action: str) -> None:
    """An action that the service has. Its methods here have other names besides, which are none."""
    if not _ACTION.fullmatch(action):
        raise CallError("InvalidAction", "The action is not valid for this web service.")
    if action not in get_service_model(service).operation_names:
        owner = "" if service == "ec2" else f"{service.upper()}'s "
        code = "UnsupportedOperation" + "Exception" * (service in JSON)
        raise CallError(code, f"localec2 does not support {owner}{action}.")


def _check_filters(fields: Mapping[str, str]) -> None:
    filters, values = set(), dict[str, int]()
    for name in fields:
        if match := _FILTER.match(name):
            filters.add(match[1])
        if match := _FILTER_VALUE.fullmatch(name):
            values[match[1]] = values.get(match[1], 0) + 1
    if len(filters) > MAX_FILTERS or max(values.values(), default=0) > MAX_FILTER_VALUES:
        raise CallError(
            "FilterLimitExceeded",
            f"The request uses too many filters or too many filter values: {MAX_FILTERS} filters with "
            f"{MAX_FILTER_VALUES} values each are the most.",
        )


def _fields(form: bytes) -> dict[str, str]:
    """A form's fields. Raises CallError for a name that comes twice, and for what is no UTF-8."""
    try:
        pairs = parse_qsl(
            form.decode(),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except UnicodeDecodeError:
        raise CallError("MalformedQueryString", "The request is not UTF-8.") from None
    except ValueError:
        raise CallError("MalformedQueryString", f"A request has at most {MAX_FIELDS} parameters.") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise CallError("MalformedQueryString", "A parameter is given more than once.")
    if any(len(name) > MAX_NAME for name in fields):
        raise CallError("MalformedQueryString", f"A parameter's name has at most {MAX_NAME} characters.")
    return fields


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object whose keys come once each. Raises CallError."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        content = json.loads(body.decode() or "{}", object_pairs_hook=checked, parse_constant=constant)
    except (ValueError, RecursionError):
        raise CallError(
            "SerializationException", "The request's body is not JSON whose keys are unique."
        ) from None
    if not isinstance(content, dict):
        raise CallError("SerializationException", "The request's body is not a JSON object.")
    return content
