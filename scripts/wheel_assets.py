"""Hatchling's build hook: puts what lies beside the packages into the wheel, as instant_env/_assets/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: docs/service.md is what the service's refusals point to; it serves the page itself.
ASSETS = (
    "recipes", "policies", "experiments", "go.mod", "go.sum", "init", "cmd", "internal", "docs/service.md",
)  # fmt: skip


class WheelAssets(BuildHookInterface[Any]):
    """Adds the files below ASSETS, without Go's tests."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # the checkout has them
            return
        root = Path(self.root)
        for name in ASSETS:
            asset = root / name
            for path in [asset] if asset.is_file() else sorted(asset.rglob("*")):
                relative = path.relative_to(root)
                for_tests = path.name.endswith("_test.go") or "testdata" in relative.parts
                if path.is_file() and not for_tests and "__pycache__" not in relative.parts:
                    build_data["force_include"][str(path)] = f"instant_env/_assets/{relative.as_posix()}"
