"""Bake a child from its parent's verified AMI instead of from the stock base (``--from-parent``).

Only what that AMI does not have is done: the child's own steps, inherited ones that the child renders in
another way, and those that their recipe calls ``again``, because packages that come after them undo or need
what they do. Whether the AMI has the rest is told by its plan's hash: it has to be the one that the parent's
recipe, rendered with the child's parameters, has now.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from contextlib import suppress

from instant_env.bake.parameters import as_text
from instant_env.bake.plan import BakePlan, Script, Step
from instant_env.bake.request import Request
from instant_env.cloud.images import BakedImage, list_baked
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError

#: Stands for the AMI where there is no cloud yet.
NO_AMI = "ami-00000000"
#: A machine that has something else as PID 1 runs no systemd: a bake's timers and its seal need it.
_OTHER_INIT = "init="


def on_parent(plan: BakePlan, parent: BakePlan, image_id: str) -> BakePlan:
    """The plan on the parent's AMI. ``parent`` is the parent's plan with the child's parameters.

    Raises UsageError where the AMI cannot become the child's by more steps.
    """
    _check_undone(plan, parent)
    done = {step.name: step for step in parent.steps}
    specs = {one.spec.name: one.spec for one in plan.recipe.steps}
    steps = []
    for step in plan.steps:
        spec = specs[step.name]
        # What was in memory on the parent's builder is gone.
        in_memory = spec.to is not None and spec.to.startswith("/run/")
        if spec.again or in_memory or step.name not in done or _differ(step, done[step.name]):
            steps.append(step)
    return dataclasses.replace(plan, steps=tuple(steps), parent_ami=image_id)


def _differ(step: Step, other: Step) -> bool:
    """Whether they do something else. A script's first lines name the recipe it was rendered for."""
    if isinstance(step, Script) and isinstance(other, Script):
        return step.text.split("\n", 2)[2] != other.text.split("\n", 2)[2]
    return step.identity() != other.identity()


def _check_undone(plan: BakePlan, parent: BakePlan) -> None:
    """Nothing of the parent's may have to be taken back. Raises UsageError."""
    name, above = plan.recipe.name, parent.recipe.name
    directories = {one.spec.name: one.directory for one in parent.recipe.steps}
    replaced = [
        one.spec.name
        for one in plan.recipe.steps
        if directories.get(one.spec.name, one.directory) != one.directory
    ]
    missing = sorted(set(parent.recipe.remove) - set(plan.recipe.remove))
    arguments = [*parent.recipe.kernel_arguments, *parent.recipe.arch_kernel_arguments.get(plan.arch, ())]
    reason = ""
    if replaced:
        reason = f"{name} replaces steps that {above} has run: {', '.join(replaced)}"
    elif missing:
        reason = f"{name} keeps packages that {above} has removed: {', '.join(missing)}"
    elif any(argument.startswith(_OTHER_INIT) for argument in arguments):
        reason = f"machines of {above} run no systemd, which a bake needs"
    if reason:
        raise UsageError(
            f"recipe {name} cannot be baked from {above}'s AMI: {reason}", hint="leave out --from-parent"
        )


def check_lineage(plans: Sequence[BakePlan]) -> None:
    """What can be said without a cloud. ``plans`` are those of a recipe and its parents, the nearest first.
    Raises UsageError."""
    if len(plans) < 2:
        raise UsageError(
            f"recipe {plans[0].recipe.name} extends no other: it has no parent to be baked from",
            hint="leave out --from-parent",
        )
    on_parent(plans[0], plans[1], NO_AMI)


def choose(cloud: Cloud, plans: Sequence[BakePlan], request: Request) -> tuple[BakePlan, BakedImage]:
    """The plan on the newest verified AMI of the parent that is what its recipe makes now, and that AMI.

    ``plans`` are those of a recipe and its parents, the nearest first, each with the base's AMI. Raises
    UsageError when there is none, with the command that bakes it.
    """
    check_lineage(plans)
    parent = plans[1]
    if images := _present(cloud, plans[1:]):
        return on_parent(plans[0], parent, images[0].id), images[0]
    name, what = parent.recipe.name, f"{parent.recipe.name} AMI for {parent.arch} on {parent.base.base}"
    stale = next((one for one in _verified(cloud, parent) if one.base == parent.base.base), None)
    if stale is None:
        text = f"there is no verified {what}"
    else:
        text = (
            f"{stale.id}, the newest verified {what}, is stale: it is of plan {stale.plan_hash[:12]}, and "
            f"{name} is plan {parent.hash[:12]} now"
        )
    raise UsageError(
        f"recipe {plans[0].recipe.name} cannot be baked from its parent: {text}",
        hint=f"run: {bake_command(parent, request)}; or leave out --from-parent",
    )


def _present(cloud: Cloud, plans: Sequence[BakePlan]) -> list[BakedImage]:
    """Verified AMIs of the first plan, baked from the base or from a parent that is present itself."""
    plan = plans[0]
    hashes = {plan.hash}
    if len(plans) > 1:
        with suppress(UsageError):  # of one that can only be baked from the base
            hashes |= {on_parent(plan, plans[1], image.id).hash for image in _present(cloud, plans[1:])}
    return [image for image in _verified(cloud, plan) if image.plan_hash in hashes]


def _verified(cloud: Cloud, plan: BakePlan) -> list[BakedImage]:
    images = list_baked(cloud, recipe=plan.recipe.name, arch=plan.arch)
    return [image for image in images if image.state == "available" and image.verified]


def bake_command(plan: BakePlan, request: Request) -> str:
    """The command that bakes a plan of ``request``'s base and architecture."""
    words = ["invoke", "bake", "--recipe", plan.recipe.name, "--arch", plan.arch.value]
    words += ["--base", plan.base.base]
    if request.options.base_ami:
        words += ["--base-ami", request.options.base_ami]
    for name, value in plan.parameters.items():
        if value != plan.recipe.parameters[name].default_for(plan.arch):
            words += ["--set", f"{name}={as_text(value)}"]
    return shlex.join(words)
