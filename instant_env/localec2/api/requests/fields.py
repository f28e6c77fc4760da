"""The fields of a request in EC2's query protocol, each with its type, and which of them count as given.

Names are those of the wire. ``TagSpecification.1.Tag.2.Key`` is, without its numbers,
``TagSpecification.Tag.Key``: the key of these tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from instant_env.localec2.state.moto_api import EC2ClientError, input_types

#: An empty one of these means something: an empty tag or filter value, a device left out, an attribute that
#: is to be empty. `NextToken` and `Tag.Key` are kept so that they are refused.
_EMPTY_COUNTS = re.compile(r"(.*\.)?(Value|NoDevice|NextToken|Tag\.Key)")
_INTEGER = re.compile(r"[+-]?\d{1,19}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Field(NamedTuple):
    """One field. ``kind`` is botocore's type of it; "" when its model does not have the field."""

    name: str
    plain: str
    value: str
    kind: str


def without_numbers(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())


def counts(name: str, value: str) -> bool:
    """Whether a field was given: an empty member of a structure is absent on EC2.

    Elements of lists are not: an empty id is a malformed id.
    """
    return (
        value != ""
        or name.rpartition(".")[2].isdigit()
        or bool(_EMPTY_COUNTS.fullmatch(without_numbers(name)))
    )


def present_fields(action: str, wire: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The fields of a request without those that are absent, and with the values of tags that have none.

    To DeleteTags, a tag without a value is one of any value.
    """
    fields = {name: values for name, values in wire.items() if counts(name, values[0])}
    if action != "DeleteTags":
        for name in list(fields):
            if without_numbers(name).endswith("Tag.Key"):
                fields.setdefault(name.removesuffix("Key") + "Value", [""])
    return fields


def typed(action: str, wire: Iterable[tuple[str, str]]) -> Iterator[Field]:
    """Fields with their types."""
    kinds = input_types(action)
    for name, value in wire:
        plain = without_numbers(name)
        yield Field(name, plain, value, kinds.get(plain, ""))


def check_types(fields: Iterable[Field]) -> None:
    """Refuse what is not of its field's type. Raises EC2ClientError."""
    for field in fields:
        if field.kind in ("integer", "long") and not _INTEGER.fullmatch(field.value):
            problem = "is not an integer"
        elif field.kind in ("float", "double") and not _NUMBER.fullmatch(field.value):
            problem = "is not a number"
        elif field.kind == "boolean" and field.value.lower() not in ("true", "false"):
            problem = "is neither 'true' nor 'false'"
        else:
            continue
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Invalid value '{field.value}' for {field.name}: it {problem}",
        )
