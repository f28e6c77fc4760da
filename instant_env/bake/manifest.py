"""The manifest: one JSON file per image that says how it came to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from instant_env.bake.bases import BaseImage
from instant_env.bake.execute import StepTime
from instant_env.bake.packages import Package, listing
from instant_env.bake.plan import BakePlan
from instant_env.bake.proof.verdict import Verdict
from instant_env.cloud.images import BakedImage
from instant_env.provenance import GitState

#: 2: base_image and packages, and a file's name that the image bears as a tag.
SCHEMA_VERSION = 2


def manifest(
    image: BakedImage, plan: BakePlan, base: BaseImage, before: Sequence[Package], after: Sequence[Package],
    times: Sequence[StepTime], verdict: Verdict, *, git: GitState, cloud: str, total_s: float, method: str,
) -> dict[str, Any]:  # fmt: skip
    """The manifest as a JSON-able dict; times are seconds of wall clock.

    ``before`` and ``after`` are the packages of the base and of the image, CycloneDX components there.
    ``git`` is the checkout as it was before the plan was rendered.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "ami": image.id,
        "name": image.name,
        "snapshots": list(image.snapshot_ids),
        "created": image.created.isoformat(),
        "cloud": cloud,
        "run_id": image.run_id,
        "git_revision": str(git),
        "plan": plan.as_dict(),
        "method": method,
        "base_image": base.as_dict(),
        "packages": {"before": listing(before, plan.base), "after": listing(after, plan.base)},
        "steps": [asdict(step) for step in times],
        "total_s": round(total_s, 1),
        "checks": [asdict(check) for check in verdict.checks],
        "timeline": verdict.timeline,
        "audit": verdict.audit,
    }
