"""The verbs of images: bake, build, recipes, amis, publish, clean, init.build."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask, takes_pair
from instant_env.cli.common import CLOUD_HELP, JSON_HELP, open_cloud, parse_arch, read_settings
from instant_env.cli.verb import Reporter, print_json, reporter, say, show, verb
from instant_env.progress import Doing

if TYPE_CHECKING:
    from instant_env.bake.request import Request
    from instant_env.settings import Settings


_SET_HELP = {"set": "value of one of the recipe's parameters, as key=value; repeatable"}


@task(
    klass=VerbTask,
    iterable=["set"],
    help={
        "recipe": "recipe to bake, several with commas: folders under recipes/",
        "arch": "architecture, both with a comma: x86_64 (the default), arm64",
        "base": "base to bake from (default debian-12 in the local cloud, al2023 on aws)",
        "base-ami": "AMI to take for that base: an id, an SSM parameter (/...) or a name with *",
        "builder-type": "type of the builder, one for each architecture (default m7i.large,m7g.large)",
        "method": "create-image (the default), or register: a snapshot of the root, then RegisterImage, as "
        "always for an image that boots one EFI binary and has a base for BIOS, too",
        "encrypt": "encrypt the builder's volume and so the image (the default)",
        "kms-key-id": "KMS key for that (default: the account's own for EBS, whose images cannot be shared)",
        "on-error": "cleanup (the default), or keep: leave the machine that failed, and say how to log in",
        "subnet": "subnet of the machines (default: one of the default VPC)",
        "ssh-private": "reach machines by their private addresses, from within the VPC",
        "packages": "who fetches packages and downloads: caller (this computer, for the builder), direct "
        "(the builder), or auto (the default): direct on AWS without --ssh-private, else caller",
        "check-host-key": "go on only when a machine's console has its host key (the default)",
        "deprecate-after-days": "mark the image as deprecated after so many days (default: never)",
        "protect": "protect the image against deregistration",
        "from-parent": "bake from the verified AMI of the recipe's parent, and do only what that lacks",
        "force": "bake even when an AMI already holds this plan",
        "parallel": "how many to bake at a time (default: all)",
        "dry-run": "print the plan, what it would make and cost; nothing is made",
        "verbose": "show the output of every step as it comes; of one bake only",
        **_SET_HELP,
        **CLOUD_HELP,
        **JSON_HELP,
    },
)
@verb
def bake(
    _: Context,
    recipe: str = "",
    arch: str = "x86_64",
    base: str = "",
    base_ami: str = "",
    builder_type: str = "",
    method: str = "create-image",
    encrypt: bool = True,
    kms_key_id: str = "",
    on_error: str = "cleanup",
    subnet: str = "",
    ssh_private: bool = False,
    packages: str = "auto",
    check_host_key: bool = True,
    deprecate_after_days: int = 0,
    protect: bool = False,
    from_parent: bool = False,
    force: bool = False,
    parallel: int = 0,
    dry_run: bool = False,
    verbose: bool = False,
    set: list[str] | None = None,
    cloud: str = "",
    region: str = "",
    json: bool = False,
) -> None:
    """Bake AMIs from recipes, prove each by booting it, and make it `latest`."""
    from instant_env.bake import parameters
    from instant_env.bake.bake import bake as bake_image
    from instant_env.bake.bake import check, estimate
    from instant_env.bake.downloads.offer import Packages
    from instant_env.bake.request import Method, OnError, Options, choose, requests, split_commas
    from instant_env.cli import bake_progress
    from instant_env.errors import UsageError

    settings = read_settings(cloud=cloud, region=region, subnet=subnet)
    options = Options(
        base=base or None, base_ami=base_ami or None, force=force,
        builder_types=tuple(split_commas(builder_type)),
        parameters=parameters.split(set or ()), method=choose(Method, method, "--method"), encrypt=encrypt,
        kms_key_id=kms_key_id or None, on_error=choose(OnError, on_error, "--on-error"),
        ssh_private=ssh_private, check_host_key=check_host_key,
        packages=choose(Packages, packages, "--packages"),
        deprecate_after_days=deprecate_after_days or None, protect=protect, from_parent=from_parent,
    )  # fmt: skip
    bakes = requests(recipe, arch, options)
    if parallel < 0:
        raise UsageError(
            f"--parallel {parallel}: must be 0 or more", hint="0, the default, bakes all at a time"
        )
    if verbose and len(bakes) > 1:
        raise UsageError("--verbose shows one bake at a time", hint="each has a log, named when it begins")
    progress = reporter()
    for request in bakes:
        check(settings, request, progress)
    connection = open_cloud(settings, progress)
    if dry_run:
        estimates = [estimate(connection, settings, request, progress) for request in bakes]
        if json:
            print_json({"plans": [forecast.as_dict() for forecast in estimates]})
        else:
            say("\n".join(line for forecast in estimates for line in bake_progress.plan_lines(forecast)))
        return
    if len(bakes) > 1:
        _bake_in_parallel(settings, bakes, parallel, progress, json)
        return
    (request,) = bakes
    result = bake_image(
        connection, settings, request, verbose=sys.stderr if verbose else None, progress=progress
    )
    if json:
        print_json(result.as_dict())
    elif result.reused:
        say(f"{result.image.id} already holds plan {result.image.plan_hash[:12]}; --force bakes it again")
    else:
        say(f"{result.image.id} ({request.label}) baked and verified in {result.seconds:.0f} s")


def _bake_in_parallel(
    settings: Settings, bakes: list[Request], parallel: int, report: Reporter, json: bool
) -> None:
    from instant_env.bake.bake import bake_in_process
    from instant_env.bake.parallel import bake_all, exit_code
    from instant_env.cli import bake_progress

    screen = bake_progress.Screen(report, settings, bakes)
    outcomes = bake_all(
        bake_in_process, settings, bakes, parallel=parallel, on_line=screen.on_line,
        on_outcome=screen.on_outcome,
    )  # fmt: skip
    if json:
        print_json({"bakes": [outcome.as_dict() for outcome in outcomes]})
    else:
        show(bake_progress.summary(outcomes))
    if code := exit_code(outcomes):
        raise Exit(code=code)


_DIFF_HELP = "what differs between two of them: AMI ids, or files of manifests"


@task(
    klass=takes_pair("diff", _DIFF_HELP),
    help={
        "recipe": "only this recipe",
        "arch": "only this architecture",
        "diff": _DIFF_HELP,
        **CLOUD_HELP,
        **JSON_HELP,
    },
)
@verb
def amis(
    _: Context,
    recipe: str = "",
    arch: str = "",
    diff: tuple[str, str] | None = None,
    cloud: str = "",
    region: str = "",
    json: bool = False,
) -> None:
    """List the AMIs we baked, newest first; with --diff A B, say what differs between two."""
    from instant_env.bake import difference
    from instant_env.cli import tables
    from instant_env.cloud.images import list_baked
    from instant_env.cloud.session import connect

    settings = read_settings(cloud=cloud, region=region)
    if diff:
        manifests = [difference.load(lambda: connect(settings, reporter()), settings, name) for name in diff]
        differences = difference.compare(*manifests)
        if json:
            print_json(differences)
        else:
            say("\n".join(difference.as_text(differences)))
        return
    connection = open_cloud(settings, reporter())
    reporter()(Doing("listing the AMIs"))
    images = list_baked(connection, recipe=recipe, arch=parse_arch(arch) if arch else None)
    if json:
        print_json({"images": [tables.image_row(image) for image in images]})
    elif images:
        show(tables.image_table(images))
    else:
        say("no AMIs yet; bake one: invoke bake --recipe minimal")


@task(
    klass=VerbTask,
    help={
        "ami": "AMI of localec2 to publish: latest (the default) of --recipe, or an id",
        "recipe": "recipe whose latest AMI to publish",
        "arch": "architecture: x86_64 (the default) or arm64",
        "cloud": "where it goes: aws",
        "region": "region it goes to (default: AWS_REGION or the profile's, else us-east-1)",
        "to-endpoint": "URL where the target's services are, as of another localec2 (default: AWS's own)",
        "workers": "blocks under way at a time (default 16)",
        "dry-run": "say what would be written, and write nothing",
        **JSON_HELP,
    },
)
@verb
def publish(
    _: Context,
    ami: str = "latest",
    recipe: str = "",
    arch: str = "x86_64",
    cloud: str = "aws",
    region: str = "",
    to_endpoint: str = "",
    workers: int = 16,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Copy an AMI that was baked in localec2 to AWS, by the EBS direct APIs: no builder, no upload bucket."""
    from instant_env.cli import tables
    from instant_env.cloud.session import connect
    from instant_env.publish.publish import check, find_source
    from instant_env.publish.publish import publish as publish_image

    check(cloud, ami, recipe)
    architecture = parse_arch(arch)
    local = read_settings(cloud="local")
    away = read_settings(cloud="aws", region=region, endpoint_url=to_endpoint)
    progress = reporter()
    source_cloud = connect(local, progress)
    progress(Doing("looking at the AMI"))
    source = find_source(source_cloud, ami, recipe, architecture)
    if not dry_run:
        result = publish_image(
            source_cloud, open_cloud(away, progress), source, workers=workers, progress=progress,
            watch=lambda standing: progress.show(tables.publish_line(standing)),
        )  # fmt: skip
    publication = source.as_dict() if dry_run else result.as_dict()
    if json:
        print_json(publication)
    elif dry_run:
        say("\n".join(tables.publish_plan(publication)))
    else:
        say(tables.publish_summary(publication))


@task(
    klass=VerbTask,
    help={
        "keep": "newest AMIs to keep of each recipe and architecture (default 3)",
        "min-age-h": "keep AMIs that are younger, in hours (default 0)",
        "what": "only these kinds, as image,snapshot,volume,instance,key-pair (default: every kind)",
        "all": "machines, volumes, keys and the rest too that neither expired nor belong to a dead run",
        "dry-run": "say what would go, and remove nothing",
        "yes": "do not ask",
        **CLOUD_HELP,
        **JSON_HELP,
    },
)
@verb
def clean(
    _: Context,
    keep: int = 3,
    min_age_h: int = 0,
    what: str = "",
    all: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    cloud: str = "",
    region: str = "",
    json: bool = False,
) -> None:
    """Remove old AMIs with their snapshots, and whatever dead and expired runs left behind."""
    from instant_env.cli import tables
    from instant_env.cloud import janitor
    from instant_env.cloud.removal import Outcome, remove
    from instant_env.cloud.session import connect

    policy = janitor.policy(keep=keep, min_age_h=min_age_h, what=what, everything=all)
    settings = read_settings(cloud=cloud, region=region)
    progress = reporter()
    connection = connect(settings, progress)
    progress(Doing("looking for what may go"))
    survey = janitor.survey(connection, policy)
    removals = survey.removals
    if not json:
        for caption, rows in (("to remove", removals), ("kept", survey.kept)):
            if rows:
                show(tables.removal_table(rows, caption))
    go = bool(removals) and not dry_run and (yes or tables.confirmed(f"remove these {len(removals)}?"))
    outcome = remove(connection, removals, progress) if go else Outcome([], [], [])
    if json:
        print_json(
            {
                "removed": go,
                "found": [removal.as_dict() for removal in removals],
                "kept": [row.as_dict() for row in survey.kept],
                "left_alone": [{**removal.as_dict(), "why": why} for removal, why in outcome.left_alone],
                "failures": [{**removal.as_dict(), "error": why} for removal, why in outcome.failures],
            }
        )
    elif not removals:
        say("nothing to remove")
    elif not go:
        say("nothing was removed" + ("" if dry_run else "; run it with --yes"))
    else:
        say(outcome.sentence())
        for removal, why in outcome.failures:
            say(f"still there: {removal.kind} {removal.id}: {why}")
    if outcome.failures:
        raise Exit(code=1)


@task(klass=VerbTask, help=JSON_HELP)
@verb
def recipes(_: Context, json: bool = False) -> None:
    """List the recipes, with what they extend and the parameters they take."""
    from instant_env.bake.recipe_text import list_recipes
    from instant_env.cli import tables

    rows = list_recipes(read_settings().recipes_dir)
    if json:
        print_json({"recipes": rows})
    else:
        show(tables.recipe_table(rows))


@task(
    klass=VerbTask,
    name="show",
    positional=["name"],
    iterable=["set"],
    help={
        "name": "recipe: a folder under recipes/",
        "base": "base to render it for (default debian-12, with --cloud aws al2023)",
        "arch": "architecture: x86_64 (the default) or arm64",
        "cloud": "whose default base it is: local (the default) or aws",
        **_SET_HELP,
        **JSON_HELP,
    },
)
@verb
def recipe_show(
    _: Context, name: str, base: str = "", arch: str = "x86_64", set: list[str] | None = None,
    cloud: str = "", json: bool = False,
) -> None:  # fmt: skip
    """Print a recipe's plan with every script rendered; no cloud, machine or build is needed."""
    from instant_env.bake import parameters
    from instant_env.bake.recipe_text import as_text, rendered
    from instant_env.cloud.session import default_base

    settings = read_settings(cloud=cloud)
    plan = rendered(
        settings.recipes_dir,
        name,
        base or default_base(settings),
        parse_arch(arch),
        parameters.split(set or ()),
    )
    if json:
        print_json(plan)
    else:
        say("\n".join(as_text(plan)))


@task(
    klass=VerbTask,
    help={
        "program": "program to build, several with commas: folders under recipes/programs/",
        "arch": "architecture, both with a comma: x86_64 (the default), arm64",
        **JSON_HELP,
    },
)
@verb
def build(_: Context, program: str = "", arch: str = "x86_64", json: bool = False) -> None:
    """Build programs that images get, as a bake does by itself: on this machine, once, and cached."""
    from instant_env.programs.build import build_all, select
    from instant_env.programs.program import PROGRAMS

    settings = read_settings()
    programs_dir = settings.recipes_dir / PROGRAMS
    names = select(programs_dir, program)
    archs = [parse_arch(word) for word in arch.split(",")]
    rows = [
        built.as_dict() for built in build_all(programs_dir, names, archs, settings.cache_dir, reporter())
    ]
    if json:
        print_json({"programs": rows})
        return
    for row in rows:
        line = f"{row['program']} {row['version']} {row['arch']:7} {row['bytes']:>10} bytes"
        say(f"{line}  sha256:{row['sha256']}  {row['path']}")


@task(
    klass=VerbTask, name="build", help={"arch": "architecture: x86_64 or arm64 (default: both)", **JSON_HELP}
)
@verb
def init_build(_: Context, arch: str = "", json: bool = False) -> None:
    """Build the static init; print each binary's path, size and SHA-256."""
    from instant_env.arch import Arch
    from instant_env.files import file_sha256
    from instant_env.toolchain import go_build

    reporter()(Doing("building the init"))
    built = [
        (architecture, go_build("init", architecture))
        for architecture in ([parse_arch(arch)] if arch else list(Arch))
    ]
    rows = [
        {
            "arch": architecture.value,
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for architecture, path in built
    ]
    if json:
        print_json({"binaries": rows})
        return
    for row in rows:
        say(f"{row['arch']:7} {row['bytes']:>9} bytes  sha256:{row['sha256']}  {row['path']}")
