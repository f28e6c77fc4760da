"""The result of verification, and its failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instant_env.errors import InstantEnvError


class VerifyError(InstantEnvError):
    """The image failed its verification. It does not stay registered."""

    exit_code = 6


@dataclass(frozen=True)
class CheckTime:
    """A check that passed: seconds from its first attempt to the end of its last one."""

    name: str
    seconds: float
    attempts: int


@dataclass(frozen=True)
class Verdict:
    """The results of verification: the guest's own timeline, the audit's report, and the recipe's checks."""

    timeline: dict[str, Any]
    audit: dict[str, Any]
    checks: Sequence[CheckTime] = ()
