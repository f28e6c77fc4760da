"""Checks of a recipe: what a machine of its image has to answer before the image counts as verified.

A login proves that a machine boots. That its services came up is said by a command or by an answer over
HTTP. Commands are text of the recipe, and trusted as its scripts are; values of parameters are quoted in them
by the filter ``quote``, as in scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Origin = Literal["machine", "outside"]
User = Literal["root", "login"]
#: A bake's machines live for an hour, of which the audit needs its part.
_MOST_TIMEOUT_S = 1800
#: What a request line may hold between its blanks (RFC 9112, 3.2): visible ASCII.
_PATH = re.compile(r"/[!-~]*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSpec(_Strict):
    """A GET as written. ``port`` may be a template, as ``path`` is; redirects are not followed."""

    port: int | str
    path: str = "/"
    status: int = Field(default=200, ge=100, le=599)
    origin: Origin = Field(
        default="machine", alias="from", description="asked over loopback, or by the caller"
    )


class CheckSpec(_Strict):
    """One check as written: a command that ends with 0, or an HTTP answer, tried for ``timeout_s``."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    command: str | None = Field(default=None, min_length=1, description="for sh; a template")
    user: User | None = Field(default=None, alias="as", description="who runs the command; root by default")
    http: HttpSpec | None = None
    timeout_s: int = Field(default=60, gt=0, le=_MOST_TIMEOUT_S)
    expect: str | None = Field(
        default=None, min_length=1, description="regular expression, found in the output or the body"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.command is None) == (self.http is None):
            raise ValueError(f"check {self.name} needs one of command and http")
        if self.user is not None and self.command is None:
            raise ValueError(f"check {self.name}: as goes with command")
        try:
            re.compile(self.expect or "")
        except re.error as error:
            raise ValueError(
                f"check {self.name}: expect {self.expect!r} is not a regular expression: {error}"
            ) from error
        return self


@dataclass(frozen=True)
class Http:
    """A GET to send."""

    port: int
    path: str
    status: int
    origin: Origin


@dataclass(frozen=True)
class Check:
    """One check, rendered. It has a command for ``user``, or a GET."""

    name: str
    timeout_s: int
    expect: str
    command: str = ""
    user: User = "root"
    http: Http | None = None

    def identity(self) -> list[Any]:
        """What is proved by it. How long it may take is not part of that."""
        http = asdict(self.http) if self.http is not None else None
        return ["check", self.name, self.command, self.user, http, self.expect]

    @property
    def described(self) -> str:
        """For people: what is asked for, and what has to come."""
        if self.http is not None:
            http = self.http
            origin = "the machine itself" if http.origin == "machine" else "outside"
            text = f"GET port {http.port} {http.path} from {origin} answers {http.status}"
        else:
            text = f"{self.command.strip()} (as {'root' if self.user == 'root' else 'the login user'})"
        return text + (f", with {self.expect}" if self.expect else "")

    def as_dict(self) -> dict[str, Any]:
        """For ``--json`` and the manifest."""
        kind: dict[str, Any] = (
            {"http": asdict(self.http)}
            if self.http is not None
            else {"command": self.command, "as": self.user}
        )
        return {"name": self.name, **kind, "timeout_s": self.timeout_s, "expect": self.expect or None}


def outside_ports(checks: Iterable[Check]) -> tuple[int, ...]:
    """The ports that are asked from outside, which the machine's security group has to admit."""
    return tuple(sorted({one.http.port for one in checks if one.http and one.http.origin == "outside"}))


def rendered(spec: CheckSpec, render: Callable[[str], str]) -> Check | None:
    """The check with its templates rendered; None where its command or port renders to nothing: that is how
    a recipe leaves one out by a parameter. Raises ValueError for a port or path that is none."""
    expect = spec.expect or ""
    if spec.command is not None:
        command = render(spec.command).strip()
        return Check(spec.name, spec.timeout_s, expect, command, spec.user or "root") if command else None
    assert spec.http is not None  # noqa: S101 - _one_kind
    port, path = render(str(spec.http.port)).strip(), render(spec.http.path)
    if not port:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port!r} must be a number from 1 to 65535")
    if not _PATH.fullmatch(path):
        raise ValueError(f"path {path!r} must begin with / and hold visible ASCII without blanks")
    http = Http(int(port), path, spec.http.status, spec.http.origin)
    return Check(spec.name, spec.timeout_s, expect, http=http)
