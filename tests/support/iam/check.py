"""A policy against the calls that a test recorded: each is granted, and none without our tag is."""

from __future__ import annotations

from collections.abc import Iterable

from support.iam.calls import Call
from support.iam.policy import IamPolicy


def check(name: str, calls: Iterable[Call]) -> None:
    """Every call is granted by the policy file as it was sent, and refused in each of its untagged forms."""
    policy = IamPolicy.of_file(name)
    problems: list[str] = []
    for call in calls:
        problems += [f"refused: {access}" for access in policy.refused(call.accesses())]
        problems += [
            f"granted without our tag: {one.action}: {'; '.join(map(str, one.accesses(generous=True)))}"
            for one in call.untagged()
            if not policy.refused(one.accesses(generous=True))
        ]
    assert not problems, f"policies/{name}.json:\n" + "\n".join(sorted(set(problems)))
