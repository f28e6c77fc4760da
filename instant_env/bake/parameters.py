"""Parameters of recipes: declared with a type in recipe.yml, given as ``--set key=value``, checked here.

What a recipe declares is the whole list: a key that is not declared, a value of another type and a required
one that is missing are each a UsageError that says what would do. A value is data of the plan: it is printed,
hashed and kept in the manifest, so a secret does not belong in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instant_env.arch import Arch
from instant_env.errors import UsageError

Value = str | int | bool


class Kind(StrEnum):
    """Types a parameter may have."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    URL = "url"
    SHA256 = "sha256"


#: What text of a kind must look like, and the same in words.
_SHAPES: dict[Kind, tuple[re.Pattern[str], str]] = {
    Kind.URL: (re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]+"), "an http or https URL"),
    Kind.SHA256: (re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits, as sha256sum prints them"),
    Kind.INTEGER: (re.compile(r"-?[0-9]{1,18}"), "a whole number"),
    Kind.BOOLEAN: (re.compile(r"true|false"), "true or false"),
    # Values end up in scripts, unit files and JSON; quoting does not help against a line end in the middle.
    Kind.STRING: (re.compile(r"[^\x00-\x1f\x7f]*"), "one line of text"),
}


class Parameter(BaseModel):
    """One parameter as declared. Without a default it must be given; one per architecture is a mapping."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Kind = Kind.STRING
    description: str
    default: bool | int | str | dict[Arch, bool | int | str] | None = None
    pattern: str | None = Field(default=None, description="string: what the whole text must match")
    choices: list[str] | None = Field(default=None, min_length=1, description="string: the values there are")
    minimum: int | None = Field(default=None, description="integer: the smallest")
    maximum: int | None = Field(default=None, description="integer: the largest")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.pattern is not None or self.choices is not None) and self.type is not Kind.STRING:
            raise ValueError(f"pattern and choices are for strings, not for type {self.type}")
        if (self.minimum is not None or self.maximum is not None) and self.type is not Kind.INTEGER:
            raise ValueError(f"minimum and maximum are for integers, not for type {self.type}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        for arch in Arch:
            default = self.default_for(arch)
            if default is None:
                continue
            if type(default) is not _PYTHON[self.type]:
                raise ValueError(f"default {default!r} is not of type {self.type}")
            self.read(as_text(default))
        return self

    def default_for(self, arch: Arch) -> Value | None:
        """The default for ``arch``; None when the parameter must be given."""
        return self.default.get(arch) if isinstance(self.default, dict) else self.default

    def read(self, text: str) -> Value:
        """The value that ``text`` stands for. Raises ValueError, which says what would do.

        Empty text is accepted where the default is empty: it means that the thing is not wanted.
        """
        if text == "" and self.default == "":
            return ""
        shape, words = _SHAPES[self.type]
        if not shape.fullmatch(text):
            raise ValueError(f"{text!r} is not {words}")
        if self.type is Kind.BOOLEAN:
            return text == "true"
        if self.type is Kind.INTEGER:
            number = int(text)
            if self.minimum is not None and number < self.minimum:
                raise ValueError(f"{number} is less than {self.minimum}")
            if self.maximum is not None and number > self.maximum:
                raise ValueError(f"{number} is more than {self.maximum}")
            return number
        if self.choices is not None and text not in self.choices:
            raise ValueError(f"{text!r} is none of {', '.join(self.choices)}")
        if self.pattern is not None and not re.fullmatch(self.pattern, text):
            raise ValueError(f"{text!r} does not match {self.pattern}")
        return text


_PYTHON: dict[Kind, type] = {
    Kind.STRING: str, Kind.URL: str, Kind.SHA256: str, Kind.INTEGER: int, Kind.BOOLEAN: bool,
}  # fmt: skip


def as_text(value: Value) -> str:
    """A value as one would write it after ``--set key=``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def split(assignments: Iterable[str]) -> dict[str, str]:
    """``key=value`` texts of a command line as a mapping. Raises UsageError; a key given twice is one."""
    values: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: must be key=value", hint="--set key=value")
        if key in values:
            raise UsageError(f"--set gives {key} twice", hint="leave one of them")
        values[key] = value
    return values


def settle(
    recipe: str, declared: Mapping[str, Parameter], texts: Mapping[str, str], arch: Arch
) -> dict[str, Value]:
    """The value of every declared parameter, in the order of their names. Raises UsageError."""
    if unknown := sorted(set(texts) - set(declared)):
        there = f"it has: {', '.join(sorted(declared))}" if declared else "it has none"
        raise UsageError(f"recipe {recipe} has no parameter {', '.join(unknown)}", hint=there)
    values: dict[str, Value] = {}
    missing = []
    for name, parameter in sorted(declared.items()):
        if name in texts:
            try:
                values[name] = parameter.read(texts[name])
            except ValueError as error:
                raise UsageError(
                    f"parameter {name} of recipe {recipe}: {error}", hint=parameter.description
                ) from error
        elif (default := parameter.default_for(arch)) is not None:
            values[name] = default
        else:
            missing.append(name)
    if missing:
        what = "; ".join(f"{name}: {declared[name].description}" for name in missing)
        raise UsageError(
            f"recipe {recipe} for {arch} needs " + " ".join(f"--set {name}=..." for name in missing),
            hint=what,
        )
    return values
