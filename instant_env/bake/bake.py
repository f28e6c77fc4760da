"""Bake one recipe for one architecture: from plan to verified AMI, nothing left behind."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.bake import artefacts, bases, packages
from instant_env.bake import image as images
from instant_env.bake.bases import BaseImage
from instant_env.bake.builder import (
    Machine,
    Order,
    check_root_is_grown,
    machine,
    user_data,
    wait_for_first_boot,
)
from instant_env.bake.downloads.offer import Packages, offered
from instant_env.bake.execute import (
    StepLog,
    StepTime,
    make_work_dir,
    run_as_root,
    run_steps,
    start_detached,
    step_log,
)
from instant_env.bake.forecast import Forecast, forecast
from instant_env.bake.manifest import manifest
from instant_env.bake.packages import LIST_COMMANDS, Package, bill_of_materials
from instant_env.bake.parameters import as_text
from instant_env.bake.parent import NO_AMI, check_lineage, choose
from instant_env.bake.plan import BakePlan, make_plan
from instant_env.bake.proof.checks import outside_ports
from instant_env.bake.proof.verdict import VerifyError
from instant_env.bake.proof.verify import verify
from instant_env.bake.recipe import Base, load_base, resolve
from instant_env.bake.request import OnError, Request
from instant_env.bake.seal import SEAL_FAILED, SEAL_TIMEOUT_S, SEALED, TTL_UNIT
from instant_env.cloud import instances, runs
from instant_env.cloud.images import BakedImage, list_baked, mark_verified, parameter_name
from instant_env.cloud.instances import LaunchOptions
from instant_env.cloud.launching.places import check_subnet
from instant_env.cloud.launching.refusals import KMS_GRANT
from instant_env.cloud.session import Cloud, cloud_error, connect, default_base, finish_despite_interrupt
from instant_env.cloud.tags import Role
from instant_env.errors import InstantEnvError, UsageError
from instant_env.files import write_json
from instant_env.launch.cloud_config import timer_command
from instant_env.programs.program import PROGRAMS
from instant_env.progress import Doing, Progress, quiet
from instant_env.provenance import git_state
from instant_env.settings import Settings
from instant_env.user_data import UserData

#: A builder or verifying machine older than this belongs to no bake. The machine's own timer uses the same.
MACHINE_TTL_S = 3600
#: The unit of minimal that fetches the key, and stays.
KEY_AGENT_UNIT = "instant-init-key.service"
#: How often the console is looked at while the seal runs.
_CONSOLE_EVERY_S = 10.0
#: How often, and with which pauses, it is read once the builder has stopped, until it has the seal's last
#: word.
_LAST_WORDS_TRIES, _LAST_WORDS_PAUSE_S = 30, 2.0


@dataclass(frozen=True)
class BakeResult:
    """The result of a bake. ``reused`` when an AMI already held the plan."""

    image: BakedImage
    reused: bool
    manifest_path: Path | None
    log_path: Path | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "ami": self.image.id,
            "name": self.image.name,
            "recipe": self.image.recipe,
            "arch": self.image.arch.value,
            "base": self.image.base,
            "plan_hash": self.image.plan_hash,
            "reused": self.reused,
            "manifest": str(self.manifest_path) if self.manifest_path else None,
            "log": str(self.log_path) if self.log_path else None,
            "seconds": round(self.seconds, 1),
        }


def check(settings: Settings, request: Request, progress: Progress = quiet) -> tuple[Base, list[BakePlan]]:
    """Check what needs no cloud: read recipe and base, render every script, build artefacts.

    Run before anything is started, so that a typo costs a second. The first plan is the recipe's own, those
    of its parents follow for a bake from the parent; the base AMI of all is a stand-in.
    Raises UsageError, MissingToolError when a binary cannot be built here, or BuildError when that failed.
    """
    base, arch = load_base(settings.recipes_dir, request.options.base or default_base(settings)), request.arch
    if arch not in base.architectures:
        raise UsageError(
            f"base {base.base} does not exist for {arch}",
            hint=f"it does for: {', '.join(base.architectures)}",
        )
    plans = _plans(settings, request, base, lambda names: dict.fromkeys(names, Path(__file__)))
    if request.options.from_parent:  # a program may take minutes: mistakes come out before
        check_lineage(plans)

    def build(names: set[str]) -> dict[str, Path]:
        return artefacts.build(names, arch, settings.cache_dir, settings.recipes_dir / PROGRAMS, progress)

    return base, _plans(settings, request, base, build)


def _plans(
    settings: Settings, request: Request, base: Base, files: Callable[[set[str]], Mapping[str, Path]]
) -> list[BakePlan]:
    """The plan of the recipe and, for a bake from its parent, those of its parents, the nearest first, with
    the recipe's own parameters. ``files`` has what recipes upload, by the names that it is given."""
    recipe = resolve(settings.recipes_dir, request.recipe, base.family)
    plans = [
        make_plan(
            recipe, base, NO_AMI, request.arch, files(artefacts.names(recipe)), request.options.parameters
        )
    ]
    if not request.options.from_parent:
        return plans
    for name in recipe.lineage[1:]:
        parent, values = resolve(settings.recipes_dir, name, base.family), plans[0].parameters
        texts = {key: as_text(value) for key, value in values.items() if key in parent.parameters}
        plans.append(make_plan(parent, base, NO_AMI, request.arch, files(artefacts.names(parent)), texts))
    return plans


def prepare(
    cloud: Cloud, settings: Settings, request: Request, progress: Progress
) -> tuple[BakePlan, BaseImage]:
    """The plan for this cloud: as `check`, with the base's AMI, which is registered first if it has to be;
    and the AMI that the builder is launched from: that one, or the parent's."""
    check_subnet(cloud, private=request.options.ssh_private or settings.ssh_private)
    progress(Doing("building what the image gets"))
    base, plans = check(settings, request, progress)
    if request.options.kms_key_id:
        progress(f"note: spot machines of this image need a grant for the key, once: {KMS_GRANT}")
    cloud.ensure_base(base.base, request.arch, progress)
    image = bases.find(cloud, base, request.arch, request.options.base_ami)
    if line := bases.newer_than_facts(base, image):
        progress(line)
    plans = [dataclasses.replace(plan, base_ami=image.id) for plan in plans]
    if not request.options.from_parent:
        return plans[0], image
    plan, parent = choose(cloud, plans, request)
    return plan, bases.own(cloud, parent.id, f"the newest verified {parent.recipe}")


def estimate(cloud: Cloud, settings: Settings, request: Request, progress: Progress) -> Forecast:
    """What `bake` would make, and what that would cost. Nothing is made."""
    plan, base = prepare(cloud, settings, request, progress)
    existing = None if request.options.force else _already_baked(cloud, plan, request)
    types = instances.builder_types(cloud, request.arch, request.builder_types)
    return forecast(cloud, request, plan, base, existing, builder_types=types, ttl_s=MACHINE_TTL_S)


def _already_baked(cloud: Cloud, plan: BakePlan, request: Request) -> BakedImage | None:
    for image in list_baked(cloud, recipe=plan.recipe.name, arch=plan.arch):
        same = image.plan_hash == plan.hash and image.encryption == request.options.encryption
        # One that is not verified is another run's, which is at it or was killed at it.
        if same and image.state == "available" and image.verified:
            return image
    return None


def _seal(cloud: Cloud, builder: Machine, plan: BakePlan, log: Any, progress: Progress) -> None:
    """Run the seal and wait until the builder has powered itself off. The seal itself stops the builder's
    timers: if this process dies before it has begun, they still stand."""
    try:
        cloud.ec2.modify_instance_attribute(
            InstanceId=builder.instance_id, InstanceInitiatedShutdownBehavior={"Value": "stop"}
        )
    except ClientError as error:
        raise cloud_error(error, f"preparing {builder.instance_id} for its last power-off") from error
    progress(Doing("sealing, and waiting for the power-off"))
    started = time.monotonic()
    start_detached(builder.connection, plan.seal, "seal", log)
    builder.connection.close()
    due = started + _CONSOLE_EVERY_S

    def refuse(tail: str) -> VerifyError:
        return VerifyError(
            f"the last step failed on {builder.instance_id}", hint=tail.replace("\n", " / ")[-300:]
        )

    def listen(pause_s: float) -> None:
        """A machine whose seal has failed stays on for as long as we would wait."""
        nonlocal due
        time.sleep(pause_s)
        if time.monotonic() >= due:
            due = time.monotonic() + _CONSOLE_EVERY_S
            if SEAL_FAILED in (tail := instances.console_tail(cloud, builder.instance_id)):
                raise refuse(tail)

    instances.wait_for_state(cloud, builder.instance_id, {"stopped"}, timeout_s=SEAL_TIMEOUT_S, sleep=listen)
    text, is_latest = _last_words(cloud, builder.instance_id)
    tail = "\n".join(text.splitlines()[-15:])
    if SEAL_FAILED in text:
        raise refuse(tail)
    if SEALED not in text:
        # What EC2 posted before the seal proves nothing: then the audit decides, by the image's bytes.
        if cloud.console_is_prompt or (text and is_latest):
            raise refuse(tail)
        progress(f"warning: the console of {builder.instance_id} does not show the end of its last step")
    progress(f"sealed and powered off: {time.monotonic() - started:.1f} s")
    progress(Doing(f"making an image of {builder.instance_id}"))


def _last_words(cloud: Cloud, instance_id: str) -> tuple[str, bool]:
    """The console of a builder that has stopped, and whether it is the present one. EC2 may post its end
    late, which is waited for, for a minute."""
    text, is_latest = "", False
    for _ in range(_LAST_WORDS_TRIES):
        with suppress(ClientError, BotoCoreError):
            text, is_latest = instances.console(cloud, instance_id)
        if SEALED in text or SEAL_FAILED in text or cloud.console_is_prompt:
            break
        time.sleep(_LAST_WORDS_PAUSE_S)
    return text, is_latest


def bake(
    cloud: Cloud,
    settings: Settings,
    request: Request,
    *,
    verbose: TextIO | None = None,
    progress: Progress,
) -> BakeResult:
    """Bake; return the AMI that holds the plan, made now or before.

    ``verbose`` gets the steps' output as it comes. Everything temporary is removed on every path, unless the
    request says to keep what failed. Raises UsageError before anything is launched, StepError, LoginError,
    VerifyError or CloudError after.
    """
    bake_started = time.monotonic()
    git = git_state()
    plan, base = prepare(cloud, settings, request, progress)
    progress(
        f"plan {plan.hash[:12]}: {request.recipe} on {plan.base.base} ({base.id} of {base.created[:10]}), "
        f"{len(plan.steps)} steps"
    )
    if not request.options.force and (existing := _already_baked(cloud, plan, request)):
        images.finish(cloud, existing, request)
        _publish(cloud, existing)
        return BakeResult(existing, True, None, None, time.monotonic() - bake_started)

    options, run_id = request.options, request.run_id
    order = _builder_order(cloud, settings, request, plan, base)
    log_path = request.log_path(settings)
    with ExitStack() as stack:
        stack.enter_context(runs.alive(cloud.settings, run_id))
        log = stack.enter_context(step_log(log_path, verbose))
        progress(f"log: {log_path}")
        try:
            with machine(cloud, order, progress) as builder:
                _begin(builder, order, plan, log, progress)
                before = _packages(builder, plan, log)
                times = _run_steps(builder, plan, options.packages.settled(cloud.name, private=order.private),
                                   log, progress)  # fmt: skip
                after = _packages(builder, plan, log)
                started = time.monotonic()
                _seal(cloud, builder, plan, log, progress)
                times.append(StepTime("seal", round(time.monotonic() - started, 3)))
                started = time.monotonic()
                image = images.make(
                    cloud, builder.instance_id, plan, base, request, str(git), order.expires_at
                )
                method = images.method_of(plan, base, request)
                times.append(StepTime(method.value, round(time.monotonic() - started, 3)))
                progress(f"image {image.id}: {times[-1].seconds:.1f} s")
            started = time.monotonic()
            verdict = verify(
                cloud, image,
                order=dataclasses.replace(
                    order, image_id=image.id, role=Role.VERIFY, login_user=image.login_user,
                    user_data=UserData(ttl_s=MACHINE_TTL_S).as_json(), options=LaunchOptions(),
                    root_device="", ports=outside_ports(plan.checks),
                ),
                imagetool=artefacts.build({"imagetool"}, request.arch, settings.cache_dir)["imagetool"],
                forbidden=[builder.key.public_key.body], checks=plan.checks,
                allow_modes=plan.recipe.allow_modes, allow_accounts=plan.recipe.allow_accounts, log=log,
                progress=progress,
            )  # fmt: skip
            times.append(StepTime("verify", round(time.monotonic() - started, 3)))
            mark_verified(cloud, image)
            images.finish(cloud, image, request)
        except BaseException as error:
            # Kept are images too: they expire, as the machine does.
            if options.on_error is OnError.CLEANUP or not isinstance(error, InstantEnvError):
                finish_despite_interrupt(lambda: images.discard(cloud, run_id))
            else:
                progress("an image of this run, if there is one, is kept, too, until the next `invoke clean`")
            if isinstance(error, ClientError):
                raise cloud_error(error, f"baking {request.label}: {error.operation_name}") from error
            raise
    total_s = time.monotonic() - bake_started
    path = settings.state_dir / "manifests" / image.manifest
    record = manifest(
        image,
        plan,
        base,
        before,
        after,
        times,
        verdict,
        git=git,
        cloud=cloud.name.value,
        total_s=total_s,
        method=method.value,
    )
    write_json(path, record)
    components = record["packages"]["after"]["components"]
    write_json(path.with_suffix(".cdx.json"), bill_of_materials(image.id, image.name, components))
    _publish(cloud, image)
    return BakeResult(image, False, path, log_path, total_s)


def _builder_order(
    cloud: Cloud, settings: Settings, request: Request, plan: BakePlan, base: BaseImage
) -> Order:
    """The builder: from the base's AMI or the parent's, its root volume as large as the recipe wants it."""
    options, root_gib = request.options, plan.volume_gib(base.size_gib)
    return Order(
        image_id=base.id,
        instance_types=instances.builder_types(cloud, request.arch, request.builder_types),
        run_id=request.run_id,
        role=Role.BUILDER,
        login_user=plan.base.login_user,
        expires_at=datetime.now(UTC) + timedelta(seconds=MACHINE_TTL_S),
        # Images of ours have no cloud-init.
        user_data=UserData(ttl_s=MACHINE_TTL_S).as_json() if plan.parent_ami else user_data(MACHINE_TTL_S),
        options=LaunchOptions(
            encrypted=options.encrypt,
            kms_key_id=options.kms_key_id,
            volume_type="gp3",
            instance_profile=cloud.settings.builder_profile,
            root_gib=root_gib if root_gib > base.size_gib else None,
        ),
        root_device=base.root_device,
        private=options.ssh_private or settings.ssh_private,
        check_host_key=options.check_host_key,
        keep_key_in=settings.state_dir / "keys" if options.on_error is OnError.KEEP else None,
    )


def _packages(builder: Machine, plan: BakePlan, log: Any) -> list[Package]:
    return packages.parse(run_as_root(builder.connection, LIST_COMMANDS[plan.base.family], log))


def _run_steps(
    builder: Machine, plan: BakePlan, by: Packages, log: StepLog, progress: Progress
) -> list[StepTime]:
    with offered(by, builder.connection, plan, log, progress) as variables:
        return run_steps(builder.connection, plan.steps, log, progress, variables)


def _begin(builder: Machine, order: Order, plan: BakePlan, log: StepLog, progress: Progress) -> None:
    _arm_timer(builder, log)
    if plan.parent_ami:
        # The bake's own timer is armed. The agent of the parent's image, which keeps the time limit of tags
        # and user data, must not cut the seal short.
        stop = f"systemctl stop {KEY_AGENT_UNIT} 2>/dev/null || true"
        run_as_root(builder.connection, ["sh", "-c", stop], log)
    wait_for_first_boot(builder.connection, log, progress)
    if order.options.root_gib is not None:
        check_root_is_grown(builder.connection, order.options.root_gib, log)
    make_work_dir(builder.connection, log)


def _arm_timer(builder: Machine, log: Any) -> None:
    """The builder ends itself after MACHINE_TTL_S, even if this process dies: also one of a base without
    cloud-init, which has no timer before."""
    run_as_root(builder.connection, timer_command(TTL_UNIT, f"--on-active={MACHINE_TTL_S}s"), log)


def _publish(cloud: Cloud, image: BakedImage) -> None:
    """Point ``latest`` at the image, which has been verified."""
    name = parameter_name(image.recipe, image.arch)
    try:
        cloud.ssm.put_parameter(Name=name, Value=image.id, Type="String", Overwrite=True)
        cloud.ssm.add_tags_to_resource(
            ResourceType="Parameter", ResourceId=name, Tags=[{"Key": "Project", "Value": "instant-env"}]
        )
    except ClientError as error:
        raise cloud_error(
            error, f"{image.id} is baked and verified, but {name} could not be written",
            hint="the next bake of the plan writes it",
        ) from error  # fmt: skip


def bake_in_process(settings: Settings, request: Request, progress: Progress) -> BakeResult:
    """Bake with a connection of this process's own: see :mod:`instant_env.bake.parallel`."""
    return bake(connect(settings, progress), settings, request, progress=progress)
