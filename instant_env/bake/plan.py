"""The plan: a list of named steps, a pure function of recipe, base AMI, architecture and artefacts.

It can be printed, hashed and compared without a machine. Two bakes of the same plan would make the same
image, so the hash is what says that an AMI already holds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from instant_env.arch import Arch
from instant_env.bake.parameters import Value, settle
from instant_env.bake.proof.checks import Check
from instant_env.bake.recipe import Base, ResolvedRecipe, read_file, render_checks, render_script
from instant_env.bake.seal import seal_script
from instant_env.files import file_sha256


@dataclass(frozen=True)
class Script:
    """A shell script run as root on the builder."""

    name: str
    text: str = field(repr=False)
    timeout_s: int

    def identity(self) -> list[str]:
        return ["script", self.name, hashlib.sha256(self.text.encode()).hexdigest()]


@dataclass(frozen=True)
class Upload:
    """A file put on the builder, owned by root. ``mode`` is octal text, as ``0755``."""

    name: str
    source: Path = field(repr=False)
    sha256: str
    to: str
    mode: str

    def identity(self) -> list[str]:
        return ["upload", self.name, self.sha256, self.to, self.mode]


@dataclass(frozen=True)
class File:
    """A file of the recipe's own, owned by root. ``mode`` is octal text, as ``0644``."""

    name: str
    content: bytes = field(repr=False)
    to: str
    mode: str

    def identity(self) -> list[str]:
        return ["file", self.name, hashlib.sha256(self.content).hexdigest(), self.to, self.mode]


Step = Script | Upload | File


@dataclass(frozen=True)
class BakePlan:
    """What a bake does, to which AMI. ``seal`` is the last, detached step.

    ``parent_ami``: of the recipe's parent, which the builder is launched from in place of ``base_ami``; empty
    for a bake from the base. See :mod:`instant_env.bake.parent`.
    """

    recipe: ResolvedRecipe
    base: Base
    base_ami: str
    arch: Arch
    steps: tuple[Step, ...]
    seal: str = field(repr=False)
    parameters: Mapping[str, Value] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    parent_ami: str = ""

    @property
    def hash(self) -> str:
        """SHA-256 over everything that decides the image, as 64 hexadecimal digits.

        The checks are part of it, though they change no byte: an AMI with this hash is handed out as verified
        by this plan, and one that only ever passed other checks is not. So a new check means a new bake.
        """
        content = {
            "version": 1,
            "recipe": self.recipe.name,
            "base": self.base.base,
            "base_ami": self.base_ami,
            "arch": self.arch.value,
            "login_user": self.base.login_user,
            "steps": [step.identity() for step in self.steps],
            "seal": hashlib.sha256(self.seal.encode()).hexdigest(),
        }
        if self.recipe.root_gib is not None:
            content["root_gib"] = self.recipe.root_gib
        if self.parent_ami:
            content["parent_ami"] = self.parent_ami
        if self.checks:
            content["checks"] = [check.identity() for check in self.checks]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def volume_gib(self, base_gib: int) -> int:
        """The root volume of builder and image: the recipe's size, and never less than the base's."""
        return max(self.recipe.root_gib or 0, base_gib)

    def as_dict(self) -> dict[str, object]:
        """For ``--json`` and the manifest."""
        return {
            "recipe": self.recipe.name,
            "lineage": self.recipe.lineage,
            "base": self.base.base,
            "base_ami": self.base_ami,
            "parent_ami": self.parent_ami or None,
            "arch": self.arch.value,
            "hash": self.hash,
            "root_gib": self.recipe.root_gib,
            "parameters": dict(self.parameters),
            "steps": [
                dict(zip(("kind", "name", "sha256"), step.identity(), strict=False)) for step in self.steps
            ],
            "checks": [check.as_dict() for check in self.checks],
        }


def make_plan(
    recipe: ResolvedRecipe, base: Base, base_ami: str, arch: Arch, artefacts: Mapping[str, Path],
    parameters: Mapping[str, str] | None = None,
) -> BakePlan:  # fmt: skip
    """Render every step. ``artefacts`` maps the names that uploads use to built files; ``parameters`` are
    values of the recipe's parameters as text.

    Raises UsageError when a parameter is wrong or missing, or a script cannot be rendered.
    """
    values = settle(recipe.name, recipe.parameters, parameters or {}, arch)
    steps: list[Step] = []
    for step in recipe.steps:
        spec = step.spec
        if spec.artefact is not None and spec.to is not None:
            source = artefacts[spec.artefact]
            steps.append(Upload(spec.name, source, file_sha256(source), spec.to, spec.mode))
        elif spec.file is not None and spec.to is not None:
            steps.append(File(spec.name, read_file(step, recipe, base, arch, values), spec.to, spec.mode))
        else:
            steps.append(Script(spec.name, render_script(step, recipe, base, arch, values), spec.timeout_s))
    checks = render_checks(recipe, base, arch, values)
    return BakePlan(recipe, base, base_ami, arch, tuple(steps), seal_script(base), values, checks)
