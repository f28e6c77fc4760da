"""What an identity policy grants: statements with actions, resources and conditions, evaluated as IAM does.

Only what the files in policies/ use is understood, and anything else raises an error: a statement that is
skipped in silence is one that nobody tested. Rules: IAM User Guide, "Policy evaluation logic" and "IAM JSON
policy elements".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from instant_env.settings import ROOT

POLICIES = ROOT / "policies"

_KNOWN = {"Sid", "Effect", "Action", "Resource", "Condition"}


@dataclass(frozen=True)
class Access:
    """One question to IAM. A call on several resources is several of them, and all have to be granted.

    ``context``: condition keys and their values; a key that the call does not bring is absent.
    """

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} on {self.resource} with {dict(self.context)}"


class IamPolicy:
    """A policy document. ``name`` is what messages call it."""

    def __init__(self, document: Mapping[str, Any], name: str = "policy") -> None:
        self.name = name
        self.statements: list[Mapping[str, Any]] = document["Statement"]
        for statement in self.statements:
            if unknown := set(statement) - _KNOWN:
                raise ValueError(
                    f"{name}: {statement.get('Sid')} has {sorted(unknown)}, which is not simulated"
                )

    @classmethod
    def of_file(cls, name: str) -> IamPolicy:
        return cls(json.loads((POLICIES / f"{name}.json").read_text(encoding="utf-8")), name)

    @property
    def actions(self) -> set[str]:
        """The actions of all statements that allow something, wildcards as they are written."""
        allowing = (one for one in self.statements if one["Effect"] == "Allow")
        return {action for one in allowing for action in _listed(one["Action"])}

    def grants(self, access: Access) -> bool:
        """Whether a statement allows it and none denies it."""
        effects = {one["Effect"] for one in self.statements if _applies(one, access)}
        return effects == {"Allow"}

    def refused(self, accesses: Iterable[Access]) -> list[Access]:
        """Those of a call's questions that this policy does not grant; one is enough for EC2 to refuse it."""
        return [access for access in accesses if not self.grants(access)]


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _matches(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """IAM's wildcards: ``*`` for any characters, ``?`` for one."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, text, re.IGNORECASE if ignore_case else 0) is not None


def _applies(statement: Mapping[str, Any], access: Access) -> bool:
    return (
        any(_matches(action, access.action, ignore_case=True) for action in _listed(statement["Action"]))
        and any(_matches(resource, access.resource) for resource in _listed(statement["Resource"]))
        and all(
            _holds(operator, key, _listed(values), access.context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


#: Whether a key's value meets one of a condition's. A key that is absent meets none.
_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda wanted, value: wanted == value,
    "StringLike": _matches,
}


def _holds(operator: str, key: str, wanted: list[str], context: Mapping[str, str]) -> bool:
    if operator == "Null":  # "true": the key is absent; "false": it is there
        return wanted == [str(key not in context).lower()]
    compare = _OPERATORS[operator]
    return key in context and any(compare(one, context[key]) for one in wanted)
