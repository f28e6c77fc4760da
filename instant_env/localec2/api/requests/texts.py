"""Texts of requests: what they may hold, and how long they may be, for every action alike."""

from __future__ import annotations

import re
from collections.abc import Iterable

from instant_env.localec2.api.requests.fields import Field
from instant_env.localec2.state.client_tokens import MAX_TOKEN
from instant_env.localec2.state.documented import has_filter
from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.xml_text import impossible

#: API_CreateSecurityGroup (GroupName, GroupDescription), API_CreateKeyPair (KeyName), API_CreateSnapshot and
#: API_CreateImage (Description): "up to 255 characters".
MAX_LENGTH = 255
_LIMITED = ("KeyName", "GroupName", "GroupDescription", "Description")
#: API_CreateSecurityGroup, "a-z, A-Z, 0-9, spaces, and ._-:/()#,@[]+=&;{}!$*"; the same for descriptions of
#: its rules (API_IpRange).
_GROUP_TEXT = re.compile(r"[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]*")
#: Actions on key pairs that name a new one.
_NEW_KEYS = ("CreateKeyPair", "ImportKeyPair")
#: Actions whose `Description` is not that of a rule.
_RULE_DESCRIPTION = re.compile(r".*(IpRanges|Ipv6Ranges|Groups|PrefixListIds|SecurityGroupRule)\.Description")
#: EC2 User Guide, "Filter the found resources": "up to 50 filters and up to 200 values per filter".
MAX_FILTERS, MAX_FILTER_VALUES = 50, 200


def check_texts(action: str, fields: Iterable[Field]) -> None:
    """Refuse texts that EC2 does not take. Raises EC2ClientError."""
    for field in fields:
        _check_characters(field)
        last = field.plain.rpartition(".")[2]
        if last in _LIMITED and len(field.value) > MAX_LENGTH:
            raise _invalid(
                field, f"it has {len(field.value)} characters, and at most {MAX_LENGTH} are allowed"
            )
        if last == "ClientToken" and (len(field.value) > MAX_TOKEN or not field.value.isascii()):
            raise _invalid(field, f"a client token has at most {MAX_TOKEN} ASCII characters")
        if action in _NEW_KEYS and field.plain == "KeyName":
            _check_key_name(field)
        new_group = action == "CreateSecurityGroup" and field.plain in ("GroupName", "GroupDescription")
        if (new_group or _RULE_DESCRIPTION.fullmatch(field.plain)) and not _GROUP_TEXT.fullmatch(field.value):
            raise _invalid(
                field,
                "Character sets beyond ASCII are not supported; valid are a-z, A-Z, 0-9, spaces and "
                "._-:/()#,@[]+=&;{}!$*",
            )
        if new_group and field.plain == "GroupName" and field.value.lower().startswith("sg-"):
            raise _invalid(field, "a group's name does not begin with sg-")
        _check_filter(action, field)


def _check_characters(field: Field) -> None:
    for text in (field.name, field.value):
        if character := impossible(text):
            raise EC2ClientError(
                "InvalidParameterValue",
                f"The parameter {field.name!r} has the character {character}, which XML cannot hold.",
            )


def _check_key_name(field: Field) -> None:
    """API_CreateKeyPair: "Up to 255 ASCII characters", and no blanks around them."""
    if not field.value.isascii() or not field.value.isprintable() or field.value != field.value.strip():
        raise _invalid(field, "a key pair's name is of printable ASCII characters, without blanks around it")


def _check_filter(action: str, field: Field) -> None:
    if not field.plain.startswith("Filter."):
        return
    if field.plain == "Filter.Name" and not has_filter(action, field.value):
        raise EC2ClientError("InvalidParameterValue", f"The filter '{field.value}' is invalid")
    numbers = [int(part) for part in field.name.split(".") if part.isdigit()]
    most = (MAX_FILTERS, MAX_FILTER_VALUES)
    if any(number > limit for number, limit in zip(numbers, most, strict=False)):
        raise EC2ClientError(
            "FilterLimitExceeded",
            f"A request has up to {MAX_FILTERS} filters, and a filter up to {MAX_FILTER_VALUES} values.",
        )


def _invalid(field: Field, why: str) -> EC2ClientError:
    value = field.value if len(field.value) <= 60 else f"{field.value[:60]}..."
    return EC2ClientError(
        "InvalidParameterValue",
        f"Value ( {value} ) for parameter {field.name} is invalid: {why}.",
    )
