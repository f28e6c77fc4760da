"""Launch one stock machine, read its facts, end it: minutes, and cents. Nothing is baked."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from instant_env.bake import bases
from instant_env.bake.bases import BaseImage
from instant_env.bake.builder import Machine, Order, machine, user_data, wait_for_first_boot
from instant_env.bake.execute import WORK_DIR, StepLog, make_work_dir, put_bytes, run_as_root, step_log
from instant_env.bake.facts.compare import Comparison, Verdict, compare
from instant_env.bake.facts.questions import answers, questions, script
from instant_env.bake.facts.redaction import redacted
from instant_env.bake.parameters import settle
from instant_env.bake.recipe import Base, Phase, ResolvedRecipe, load_base, render_script, resolve
from instant_env.bake.request import Request
from instant_env.cloud import instances, prices, runs
from instant_env.cloud.instances import LaunchOptions, Market
from instant_env.cloud.session import Cloud, default_base
from instant_env.cloud.tags import Role
from instant_env.errors import UsageError
from instant_env.progress import Doing, Progress
from instant_env.settings import Settings

SCHEMA_VERSION = 1
#: The machine ends itself after this, even if this process dies.
TTL_S = 1800
#: Reading everything takes seconds on EC2, and a minute or two under emulation.
_READING_TIMEOUT_S = 900
#: What it usually takes, with the first boot.
_USUAL_S = 240.0
_HOURS_PER_MONTH = 730.0


@dataclass(frozen=True)
class Plan:
    """What is read from which AMI, and compared with which recipe."""

    request: Request
    base: Base
    recipe: ResolvedRecipe
    image: BaseImage
    instance_types: tuple[str, ...]

    def as_dict(self, cloud: Cloud) -> dict[str, Any]:
        likely_usd, worst_usd = self.cost(cloud)
        name = f"instant-env-{Role.BUILDER.value}-{self.request.run_id}"
        kinds = ("instance", "volume", "network-interface", "security-group", "key-pair")
        return {
            "base": self.base.base, "arch": self.request.arch.value, "base_image": self.image.as_dict(),
            "instance_types": list(self.instance_types), "ttl_s": TTL_S,
            "resources": [{"kind": kind, "name": name} for kind in kinds],
            "questions": list(questions(self.base, self.recipe)),
            "cost": {"likely_usd": round(likely_usd, 4), "worst_usd": round(worst_usd, 4)},
        }  # fmt: skip

    def cost(self, cloud: Cloud) -> tuple[float, float]:
        """USD, as it usually is, and at most: on the dearest type until its timer ends it."""
        price_of = prices.find(cloud, [(kind, Market.ON_DEMAND) for kind in self.instance_types])
        dearest = max((price.usd_per_hour for price in price_of.values()), default=0.0)
        disk = prices.storage_usd_per_gib_month(cloud, "gp3") * self.image.size_gib / _HOURS_PER_MONTH
        return _USUAL_S / 3600 * (dearest + disk), TTL_S / 3600 * (dearest + disk)


def plan(cloud: Cloud, settings: Settings, request: Request, progress: Progress) -> Plan:
    """Find base and AMI. Raises UsageError, or CloudError where there is no such AMI."""
    base = load_base(settings.recipes_dir, request.options.base or default_base(settings))
    if request.arch not in base.architectures:
        raise UsageError(
            f"base {base.base} does not exist for {request.arch}",
            hint=f"it does for: {', '.join(base.architectures)}",
        )
    recipe = resolve(settings.recipes_dir, request.recipe, base.family)
    cloud.ensure_base(base.base, request.arch, progress)
    image = bases.find(cloud, base, request.arch, request.options.base_ami)
    types = instances.builder_types(cloud, request.arch, request.builder_types)
    return Plan(request, base, recipe, image, types)


def collect(cloud: Cloud, settings: Settings, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Launch, read, end; return the record, without account, addresses and ids. The machine is ended on every
    path. Raises StepError, LoginError or CloudError."""
    request = plan.request
    if line := bases.newer_than_facts(plan.base, plan.image):
        progress(line)
    order = Order(
        image_id=plan.image.id,
        instance_types=plan.instance_types,
        run_id=request.run_id,
        role=Role.BUILDER,
        login_user=plan.base.login_user,
        expires_at=datetime.now(UTC) + timedelta(seconds=TTL_S),
        user_data=user_data(TTL_S),
        options=LaunchOptions(volume_type="gp3"),
        root_device=plan.image.root_device,
        private=request.options.ssh_private,
    )
    log_path = settings.state_dir / "logs" / f"facts-{request.run_id}.log"
    with ExitStack() as stack:
        stack.enter_context(runs.alive(cloud.settings, request.run_id))
        log = stack.enter_context(step_log(log_path, None))
        progress(f"log: {log_path}")
        booted = stack.enter_context(machine(cloud, order, progress))
        wait_for_first_boot(booted.connection, log, progress)
        progress(Doing("reading"))
        make_work_dir(booted.connection, log)
        found = _read(booted, plan, log)
        preflight = _preflight(booted, plan, log)
    return _record(cloud, plan, found, preflight)


def _read(booted: Machine, plan: Plan, log: StepLog) -> dict[str, str]:
    path = f"{WORK_DIR}/facts.sh"
    put_bytes(booted.connection, script(questions(plan.base, plan.recipe)).encode(), path)
    return answers(run_as_root(booted.connection, ["sh", path], log, timeout_s=_READING_TIMEOUT_S))


def _preflight(booted: Machine, plan: Plan, log: StepLog) -> dict[str, Any]:
    """What the recipe's own checks say of the machine. They change nothing."""
    values = settle(plan.recipe.name, plan.recipe.parameters, {}, plan.request.arch)
    output, passed = "", True
    for step in plan.recipe.steps:
        if step.spec.phase is Phase.CHECK and step.spec.script is not None:
            text = render_script(step, plan.recipe, plan.base, plan.request.arch, values)
            path = f"{WORK_DIR}/{step.spec.name}.sh"
            put_bytes(booted.connection, text.encode(), path)
            command = f"sh {path} 2>&1 || echo 'not passed'"
            output += run_as_root(booted.connection, ["sh", "-c", command], log)
    lines = output.splitlines()
    passed = "not passed" not in lines
    return {
        "passed": passed,
        "notes": [line.removeprefix("note: ") for line in lines if line.startswith("note: ")],
        "refusals": [line for line in lines if not re.match("fact: |note: |not passed$", line)],
        "facts": [line.removeprefix("fact: ") for line in lines if line.startswith("fact: ")],
    }


def _record(cloud: Cloud, plan: Plan, found: dict[str, str], preflight: dict[str, Any]) -> dict[str, Any]:
    refusals = " / ".join(preflight["refusals"]) or "nothing that would break it"
    comparisons = [
        Comparison(
            "preflight", f"takes the base for {plan.recipe.name}",
            Verdict.HOLDS if preflight["passed"] else Verdict.DIFFERS,
            "; ".join([refusals, *preflight["notes"]]),
        ),
        *compare(found, plan.base, plan.recipe),
    ]  # fmt: skip
    as_of = plan.base.facts.as_of
    record = {
        "schema_version": SCHEMA_VERSION,
        "collected": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "cloud": cloud.name.value,
        "base": plan.base.base,
        "arch": plan.request.arch.value,
        "recipe": plan.recipe.name,
        "facts_of": {"date": as_of.isoformat() if as_of else None, "release": plan.base.facts.release},
        "comparisons": [one.as_dict() for one in comparisons],
        "preflight": preflight,
        "answers": found,
    }
    clean: dict[str, Any] = json.loads(json.dumps(record), object_hook=_without_secrets)
    # The AMI is the vendor's, and its id public.
    clean["base_image"] = {
        "id": plan.image.id, "name": plan.image.name, "created": plan.image.created,
        "boot_mode": plan.image.boot_mode,
    }  # fmt: skip
    return clean


def _without_secrets(value: dict[str, Any]) -> dict[str, Any]:
    def clean(item: Any) -> Any:
        if isinstance(item, str):
            return redacted(item)
        return [clean(one) for one in item] if isinstance(item, list) else item

    return {key: clean(item) for key, item in value.items()}
