"""A recipe resolved for one base and architecture, as text, without a cloud, a machine or a build."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instant_env.arch import Arch
from instant_env.bake.parameters import Parameter, settle
from instant_env.bake.recipe import (
    Base,
    load_base,
    load_recipe,
    read_file,
    recipe_names,
    render_checks,
    render_script,
    resolve,
)
from instant_env.bake.seal import seal_script
from instant_env.errors import UsageError
from instant_env.programs.program import PROGRAMS, load_program


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return parameter.model_dump(mode="json", exclude_none=True)


def list_recipes(recipes_dir: Path) -> list[dict[str, Any]]:
    """Every recipe, by name: what it is, what it extends, its own and inherited parameters."""
    rows = []
    for name in recipe_names(recipes_dir):
        recipe = load_recipe(recipes_dir, name)
        resolved = resolve(recipes_dir, name, recipe.families[0])
        rows.append(
            {
                "recipe": name,
                "description": recipe.description,
                "lineage": resolved.lineage,
                "families": list(recipe.families),
                "parameters": {
                    key: _parameter(parameter) for key, parameter in sorted(resolved.parameters.items())
                },
            }
        )
    return rows


def rendered(
    recipes_dir: Path, name: str, base_name: str, arch: Arch, parameters: Mapping[str, str]
) -> dict[str, Any]:
    """The plan with every script and file rendered. What a bake builds (``upload``, ``program``) is named,
    not built, and the base's AMI is named by its SSM parameter, so there is no plan hash. Raises
    UsageError."""
    base = load_base(recipes_dir, base_name)
    if arch not in base.architectures:
        raise UsageError(
            f"base {base.base} does not exist for {arch}",
            hint=f"it does for: {', '.join(base.architectures)}",
        )
    recipe = resolve(recipes_dir, name, base.family)
    values = settle(name, recipe.parameters, parameters, arch)
    steps: list[dict[str, Any]] = []
    for step in recipe.steps:
        spec = step.spec
        entry: dict[str, Any] = {"name": spec.name, "phase": spec.phase.value, "from": step.directory.name}
        if spec.program is not None:
            program = load_program(recipes_dir / PROGRAMS, spec.program)
            what = f"program {program.program} {program.version}"
            entry |= {"kind": "upload", "what": what, "to": spec.to, "mode": spec.mode}
        elif spec.upload is not None:
            entry |= {"kind": "upload", "what": spec.upload, "to": spec.to, "mode": spec.mode}
        elif spec.file is not None:
            content = read_file(step, recipe, base, arch, values)
            entry |= {"kind": "file", "to": spec.to, "mode": spec.mode, **_content(content)}
        else:
            text = render_script(step, recipe, base, arch, values)
            entry |= {"kind": "script", "timeout_s": spec.timeout_s, "text": text}
        steps.append(entry)
    return {
        "recipe": name,
        "description": recipe.description,
        "lineage": recipe.lineage,
        "arch": arch.value,
        "base": _base(base, arch),
        "parameters": values,
        "remove": recipe.remove,
        "keep": recipe.keep,
        "kernel_arguments": [*recipe.kernel_arguments, *recipe.arch_kernel_arguments.get(arch, ())],
        "initramfs": recipe.initramfs.value,
        "root_gib": recipe.root_gib,
        "steps": steps,
        "checks": [
            {"described": check.described, **check.as_dict()}
            for check in render_checks(recipe, base, arch, values)
        ],
        "seal": seal_script(base),
    }


def _base(base: Base, arch: Arch) -> dict[str, Any]:
    return {
        "base": base.base, "family": base.family, "ami": base.reference_for(arch),
        "owners": base.owners, "login_user": base.login_user,
    }  # fmt: skip


def _content(content: bytes) -> dict[str, Any]:
    """A file's text; size and digest of a binary file."""
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def as_text(plan: Mapping[str, Any]) -> Iterator[str]:
    """`rendered`'s result for people, line by line."""
    base = plan["base"]
    yield f"{plan['recipe']} for {plan['arch']} on {base['base']}: {plan['description']}"
    yield f"  extends          {' < '.join(plan['lineage'])}"
    yield f"  base             {base['ami']} of {' or '.join(base['owners'])}"
    yield f"  login user       {base['login_user']}"
    yield f"  initramfs        {plan['initramfs']}"
    if plan["root_gib"]:
        yield f"  root volume      {plan['root_gib']} GiB, or the base's where that is larger"
    if plan["kernel_arguments"]:
        yield f"  kernel arguments {' '.join(plan['kernel_arguments'])}"
    for key, value in plan["parameters"].items():
        yield f"  parameter        {key} = {value}"
    for package, reason in sorted(plan["remove"].items()):
        yield f"  remove           {package}: {reason}"
    for package, reason in sorted(plan["keep"].items()):
        yield f"  keep             {package}: {reason}"
    for check in plan["checks"]:
        yield f"  check            {check['name']}, for {check['timeout_s']} s at most: {check['described']}"
    for number, step in enumerate(plan["steps"], start=1):
        yield ""
        head = f"--- {number:02d} {step['phase']} {step['name']} (of {step['from']})"
        if step["kind"] == "script":
            yield f"{head}: script, at most {step['timeout_s']} s"
        else:
            yield f"{head}: {step.get('what', 'file')} to {step['to']}, mode {step['mode']}"
        if "text" in step:
            yield step["text"].rstrip("\n")
        elif "sha256" in step:
            yield f"{step['bytes']} bytes, sha256 {step['sha256']}"
    yield ""
    yield "--- seal: the last step, detached"
    yield plan["seal"].rstrip("\n")
