"""The front door: one thin Invoke task per verb; no logic.

Everything heavy is imported inside the tasks, so that ``invoke --list`` answers at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from instant_env.fault_tasks import fault
from instant_env.front import Reporter, print_json, say, show, takes_numbers, takes_pair, verb

if TYPE_CHECKING:
    from instant_env.arch import Arch
    from instant_env.bake.request import Request
    from instant_env.settings import Settings

_CLOUD_HELP = {
    "cloud": "where machines come from: local (the default) or aws",
    "region": "region (default us-east-1)",
}
_JSON_HELP = {"json": "print the result as one JSON object on stdout"}


def _settings(**flags: Any) -> Settings:
    from instant_env import settings

    return settings.load(flags)


def _arch(text: str) -> Arch:
    from instant_env.arch import Arch

    return Arch.parse(text)


_SET_HELP = {"set": "value of one of the recipe's parameters, as key=value; repeatable"}


@task(
    iterable=["set"],
    help={
        "recipe": "recipe to bake, several with commas: folders under recipes/",
        "arch": "architecture, both with a comma: x86_64 (the default), arm64",
        "base": "base to bake from (default debian-12 in the local cloud, al2023 on aws)",
        "base-ami": "AMI to take for that base: an id, an SSM parameter (/...) or a name with *",
        "builder-type": "type of the builder, one for each architecture (default m7i.large,m7g.large)",
        "method": "create-image (the default), or register: a snapshot of the root, then RegisterImage",
        "encrypt": "encrypt the builder's volume and so the image (the default)",
        "kms-key-id": "KMS key for that (default: the account's own for EBS, whose images cannot be shared)",
        "on-error": "cleanup (the default), or keep: leave the machine that failed, and say how to log in",
        "subnet": "subnet of the machines (default: one of the default VPC)",
        "ssh-private": "reach machines by their private addresses, from within the VPC",
        "deprecate-after-days": "mark the image as deprecated after so many days (default: never)",
        "protect": "protect the image against deregistration",
        "force": "bake even when an AMI already holds this plan",
        "parallel": "how many to bake at a time (default: all)",
        "dry-run": "print the plan, what it would make and cost; nothing is made",
        "verbose": "show the output of every step as it comes; of one bake only",
        **_SET_HELP,
        **_CLOUD_HELP,
        **_JSON_HELP,
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
    deprecate_after_days: int = 0,
    protect: bool = False,
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
    from instant_env.bake import bake as bakery
    from instant_env.bake import parameters, screen
    from instant_env.bake.request import Method, OnError, Options, choose, requests, words
    from instant_env.cloud.session import connect
    from instant_env.errors import UsageError

    settings = _settings(cloud=cloud, region=region, subnet=subnet)
    options = Options(
        base=base or None, base_ami=base_ami or None, builder_types=tuple(words(builder_type)), force=force,
        given=parameters.split(set or ()), method=choose(Method, method, "--method"), encrypt=encrypt,
        kms_key_id=kms_key_id or None, on_error=choose(OnError, on_error, "--on-error"),
        ssh_private=ssh_private, deprecate_after_days=deprecate_after_days or None, protect=protect,
    )  # fmt: skip
    wanted = requests(recipe, arch, options)
    if parallel < 0:
        raise UsageError(f"--parallel {parallel} makes no sense", hint="1 or more; all at a time by default")
    if verbose and len(wanted) > 1:
        raise UsageError("--verbose shows one bake at a time", hint="each has a log, named when it begins")
    with Reporter().live() as report:
        for request in wanted:
            bakery.check(settings, request)
        connection = connect(settings, report)
        if dry_run:
            told = [bakery.foresee(connection, settings, request, report) for request in wanted]
        elif len(wanted) > 1:
            _bake_side_by_side(settings, wanted, parallel, report, json)
            return
        else:
            (request,) = wanted
            result = bakery.bake(
                connection, settings, request, verbose=sys.stderr if verbose else None, progress=report
            )
    if dry_run:
        if json:
            print_json({"plans": [one.as_dict() for one in told]})
        else:
            say("\n".join(line for one in told for line in screen.plan_lines(one)))
        return
    if json:
        print_json(result.as_dict())
    elif result.reused:
        say(f"{result.image.id} already holds plan {result.image.plan_hash[:12]}; --force bakes it again")
    else:
        say(f"{result.image.id} ({request.label}) baked and verified in {result.seconds:.0f} s")


def _bake_side_by_side(
    settings: Settings, wanted: list[Request], parallel: int, report: Reporter, json: bool
) -> None:
    from instant_env.bake import screen, several
    from instant_env.bake.bake import bake_in_process

    shown = screen.Screen(report, settings, wanted)
    ended = several.bake_all(
        bake_in_process, settings, wanted, parallel=parallel, hear=shown.hear, ended=shown.ended
    )
    if json:
        print_json({"bakes": [one.as_dict() for one in ended]})
    else:
        show(screen.summary(ended))
    if code := several.exit_code(ended):
        raise Exit(code=code)


@task(
    klass=takes_numbers(iterations=int, timeout_s=int, parallel=int, seed=int, max_usd=float),
    iterable=["technique"],
    help={
        "ami": "which AMIs to measure: latest (the default), or the id of one",
        "technique": "technique to measure; repeatable (default: cold and every baked one)",
        "iterations": "attempts of each technique (default 3)",
        "arch": "architecture: x86_64 (the default) or arm64",
        "instance-type": "instance type (default m7i.large, m7g.large)",
        "timeout-s": "seconds after which an attempt counts as timed out (default 600)",
        "experiment": "an experiment to run in place of a race: experiments/hop-limit.yml",
        "resume": "CSV of an interrupted run: make the attempts it did not come to",
        "dry-run": "print the plan and what it would cost; nothing is launched",
        "max-usd": "stop before an attempt that might cost more than this in all",
        "subnet": "subnet of the machines (default: one of the default VPC)",
        "security-group": "their security group, which has to admit SSH (default: one made for the run)",
        "parallel": "launches in flight at a time (default 1)",
        "seed": "seed of the order within the blocks (default: random, recorded)",
        "name": "name in the file names of the results (default bench)",
        **_CLOUD_HELP,
        **_JSON_HELP,
    },
)
@verb
def bench(
    _: Context,
    ami: str = "",
    technique: list[str] | None = None,
    iterations: int | None = None,
    arch: str = "",
    instance_type: str = "",
    timeout_s: int | None = None,
    parallel: int | None = None,
    experiment: str = "",
    resume: str = "",
    dry_run: bool = False,
    max_usd: float | None = None,
    subnet: str = "",
    security_group: str = "",
    seed: int | None = None,
    name: str = "",
    cloud: str = "",
    region: str = "",
    json: bool = False,
) -> None:
    """Race the techniques against cold; one CSV row per attempt under results/."""
    from harness import asked, live, runner, table

    settings = _settings(cloud=cloud, region=region, subnet=subnet, security_group=security_group)
    request = asked.Request(
        experiment=experiment, resume=resume, ami=ami, techniques=tuple(technique or ()),
        iterations=iterations, arch=arch, instance_type=instance_type, seed=seed, name=name,
        timeout_s=timeout_s, parallel=parallel,
    )  # fmt: skip
    settings, planner = asked.read(request, settings)
    with Reporter().live() as report:
        if dry_run:
            told = runner.dry_run(settings, planner, report)
        else:
            result = runner.carry_out(
                settings, planner, max_usd=max_usd, progress=report,
                watch=lambda standing: report.show(live.render(standing)),
            )  # fmt: skip
    if dry_run:
        say("\n".join(told))
        return
    if json:
        print_json({**runner.result_dict(result), "csv": str(result.csv_path)})
    else:
        for summary in result.summaries:
            table.print_summary(summary)
        for line in table.filling_lines(result.fillings):
            say(line)
        if result.spent_usd:
            say(f"spent: about ${result.spent_usd:.2f}")
        if result.left_out:
            say(f"{result.left_out} attempts were left out: they might have cost more than --max-usd allows")
        say(f"rows: {result.csv_path}")
    if result.failures or result.left_out:
        raise Exit(code=1)


@task(
    help={
        "csv": "results to report on (default: the newest in results/)",
        "format": "what to write, several with commas: html, md, png, svg (default html)",
        "output": "directory to write to (default: results/reports/<name of the CSV>)",
        "fill": "fill the figures of this document from the CSVs that it names, and write no report",
        **_JSON_HELP,
    },
)
@verb
def report(
    _: Context, csv: str = "", format: str = "html", output: str = "", fill: str = "", json: bool = False
) -> None:
    """Draw a run: where the time goes, how techniques differ, and which one to use."""
    from pathlib import Path

    from harness import records

    results_dir = _settings().results_dir
    # Read before what draws is imported, which takes a second.
    results = None if fill else records.read_results(Path(csv) if csv else records.newest(results_dir))

    from harness import quote
    from harness import report as reports

    if results is None:
        changed = quote.fill(Path(fill))
        if json:
            print_json({"document": fill, "changed": changed})
        else:
            say(f"{fill}: {'filled anew' if changed else 'as its CSVs have it'}")
        return
    wanted = reports.formats(format)
    found = reports.make(results)
    written = found.write(Path(output) if output else results_dir / "reports" / found.results.name, wanted)
    if json:
        print_json({**found.as_json(), "files": [str(path) for path in written]})
        return
    for section in found.sections:
        say(f"{section.caption}: {section.recommendation.headline}")
        for reason in section.recommendation.reasons:
            say(f"  {reason}")
    for path in written:
        say(str(path))


@task(
    positional=["a", "b"],
    help={
        "a": "what it was: a CSV, an AMI id, or a git revision with a run in results/",
        "b": "what it is now: the same",
        "fail-if-slower": "exit with 1 when something is slower by more than this, as 10%: when the whole "
        "95 % interval lies above it (t4; in localec2 t2→t4)",
        "force": "compare also what ran on different hosts, accelerators or clouds",
        **_JSON_HELP,
    },
)
@verb
def compare(
    _: Context, a: str, b: str, fail_if_slower: str = "", force: bool = False, json: bool = False
) -> None:
    """Say what got slower or faster from A to B, with intervals."""
    from harness import compare as comparing

    found = comparing.compare_runs(_settings().results_dir, a, b, force=force, fail_if_slower=fail_if_slower)
    if json:
        print_json(found.as_json())
    else:
        say(comparing.render(found))
    if found.too_slow:
        raise Exit(code=1)


_DIFF_HELP = "what differs between two of them: AMI ids, or files of manifests"


@task(
    klass=takes_pair("diff", _DIFF_HELP),
    help={
        "recipe": "only this recipe",
        "arch": "only this architecture",
        "diff": _DIFF_HELP,
        **_CLOUD_HELP,
        **_JSON_HELP,
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
    from instant_env import listing
    from instant_env.bake import difference
    from instant_env.cloud.images import list_baked
    from instant_env.cloud.session import connect

    settings = _settings(cloud=cloud, region=region)
    if diff:
        manifests = [difference.load(lambda: connect(settings, Reporter()), settings, name) for name in diff]
        found = difference.compare(*manifests)
        if json:
            print_json(found)
        else:
            say("\n".join(difference.as_text(found)))
        return
    connection = connect(settings, Reporter())
    images = list_baked(connection, recipe=recipe, arch=_arch(arch) if arch else None)
    if json:
        print_json({"images": [listing.image_row(image) for image in images]})
    elif images:
        show(listing.image_table(images))
    else:
        say("no AMIs yet; bake one: invoke bake --recipe minimal")


@task(
    help={
        "ami": "AMI of localec2 to publish: latest (the default) of --recipe, or an id",
        "recipe": "recipe whose latest AMI to publish",
        "arch": "architecture: x86_64 (the default) or arm64",
        "cloud": "where it goes: aws",
        "region": "region it goes to (default us-east-1)",
        "to-endpoint": "URL where the target's services are, as of another localec2 (default: AWS's own)",
        "workers": "blocks under way at a time (default 16)",
        "dry-run": "say what would be written, and write nothing",
        **_JSON_HELP,
    }
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
    from instant_env import listing
    from instant_env.cloud.session import connect
    from instant_env.publish import publish as publishing

    publishing.check(cloud, ami, recipe)
    wanted = _arch(arch)
    local = _settings(cloud="local")
    away = _settings(cloud="aws", region=region, endpoint_url=to_endpoint)
    with Reporter().live() as report:
        source_cloud = connect(local, report)
        source = publishing.find_source(source_cloud, ami, recipe, wanted)
        if not dry_run:
            result = publishing.publish(
                source_cloud, connect(away, report), source, workers=workers, progress=report,
                watch=lambda standing: report.show(listing.publish_line(standing)),
            )  # fmt: skip
    found = source.as_dict() if dry_run else result.as_dict()
    if json:
        print_json(found)
    elif dry_run:
        say("\n".join(listing.publish_plan(found)))
    else:
        say(listing.publish_summary(found))


@task(
    help={
        "keep": "newest AMIs to keep of each recipe and architecture (default 3)",
        "min-age-h": "keep AMIs that are younger, in hours (default 0)",
        "what": "only these kinds, as image,snapshot,volume,instance,key-pair (default: every kind)",
        "all": "machines, volumes, keys and the rest too that neither expired nor belong to a dead run",
        "dry-run": "say what would go, and remove nothing",
        "yes": "do not ask",
        **_CLOUD_HELP,
        **_JSON_HELP,
    }
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
    from instant_env import listing
    from instant_env.cloud import janitor
    from instant_env.cloud.session import connect

    policy = janitor.policy(keep=keep, min_age_h=min_age_h, what=what, everything=all)
    settings = _settings(cloud=cloud, region=region)
    connection = connect(settings, Reporter())
    survey = janitor.survey(connection, policy)
    removals = survey.removals
    if not json:
        for caption, rows in (("to remove", removals), ("kept", survey.kept)):
            if rows:
                show(listing.removal_table(rows, caption))
    go = bool(removals) and not dry_run and (yes or listing.confirmed(f"remove these {len(removals)}?"))
    failures = janitor.remove(connection, removals, Reporter()) if go else []
    if json:
        print_json(
            {
                "removed": go,
                "found": [removal.as_dict() for removal in removals],
                "kept": [row.as_dict() for row in survey.kept],
                "failures": [{**removal.as_dict(), "error": why} for removal, why in failures],
            }
        )
    elif not removals:
        say("nothing to remove")
    elif not go:
        say("nothing was removed" + ("" if dry_run else "; run it with --yes"))
    else:
        say(f"removed {len(removals) - len(failures)} of {len(removals)}")
        for removal, why in failures:
            say(f"still there: {removal.kind} {removal.id}: {why}")
    if failures:
        raise Exit(code=1)


@task(help=_JSON_HELP)
@verb
def recipes(_: Context, json: bool = False) -> None:
    """List the recipes, with what they extend and the parameters they take."""
    from instant_env import listing
    from instant_env.bake import show as showing

    found = showing.list_recipes(_settings().recipes_dir)
    if json:
        print_json({"recipes": found})
    else:
        show(listing.recipe_table(found))


@task(
    name="show",
    positional=["name"],
    iterable=["set"],
    help={
        "name": "recipe: a folder under recipes/",
        "base": "base to render it for (default debian-12, with --cloud aws al2023)",
        "arch": "architecture: x86_64 (the default) or arm64",
        "cloud": "whose default base it is: local (the default) or aws",
        **_SET_HELP,
        **_JSON_HELP,
    },
)
@verb
def recipe_show(
    _: Context, name: str, base: str = "", arch: str = "x86_64", set: list[str] | None = None,
    cloud: str = "", json: bool = False,
) -> None:  # fmt: skip
    """Print a recipe's plan with every script rendered; no cloud, machine or build is needed."""
    from instant_env.bake import parameters
    from instant_env.bake import show as showing
    from instant_env.cloud.session import default_base

    settings = _settings(cloud=cloud)
    plan = showing.rendered(
        settings.recipes_dir, name, base or default_base(settings), _arch(arch), parameters.split(set or ())
    )
    if json:
        print_json(plan)
    else:
        say("\n".join(showing.as_text(plan)))


@task(
    help={
        "subnet": "subnet that machines will use (default: the best of the default VPC)",
        "dry-run": "say what is missing, and make nothing",
        **_CLOUD_HELP,
        **_JSON_HELP,
    }
)
@verb
def setup(
    _: Context, subnet: str = "", dry_run: bool = False, cloud: str = "", region: str = "", json: bool = False
) -> None:
    """Make what an AWS account needs once, and check its quotas and our permissions. Run it again at will."""
    from instant_env.cloud import account
    from instant_env.cloud.session import connect

    connection = connect(account.only_aws(_settings(cloud=cloud, region=region, subnet=subnet)), Reporter())
    found = account.set_up(connection, dry_run=dry_run, progress=Reporter())
    if json:
        print_json({"found": [finding.as_dict() for finding in found]})
    else:
        say("\n".join(account.advice(found)))
    if any(finding.state == "trouble" for finding in found):
        raise Exit(code=1)


@task(help={"dry-run": "say what would go, and remove nothing", **_CLOUD_HELP, **_JSON_HELP})
@verb
def teardown(
    _: Context, dry_run: bool = False, cloud: str = "", region: str = "", json: bool = False
) -> None:
    """Remove what `setup` made. AMIs and machines are `clean`'s."""
    from instant_env.cloud import account
    from instant_env.cloud.session import connect

    connection = connect(account.only_aws(_settings(cloud=cloud, region=region)), Reporter())
    found = account.tear_down(connection, dry_run=dry_run, progress=Reporter())
    if json:
        print_json({"found": [finding.as_dict() for finding in found]})
    elif not found:
        say("nothing to remove")


@task(help=_JSON_HELP)
@verb
def doctor(_: Context, json: bool = False) -> None:
    """Say what this machine lacks, and the exact command that installs it."""
    from instant_env import doctor as physician

    report = physician.check(_settings())
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        say(report.render())
    if not report.ok:
        raise Exit(code=1)


@task(name="build", help={"arch": "architecture: x86_64 or arm64 (default: both)", **_JSON_HELP})
@verb
def init_build(_: Context, arch: str = "", json: bool = False) -> None:
    """Build the static init; print each binary's path, size and SHA-256."""
    from instant_env.arch import Arch
    from instant_env.bake.plan import file_sha256
    from instant_env.toolchain import go_build

    built = [(one, go_build("init", one)) for one in ([_arch(arch)] if arch else list(Arch))]
    rows = [
        {"arch": one.value, "path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for one, path in built
    ]
    if json:
        print_json({"binaries": rows})
        return
    for row in rows:
        say(f"{row['arch']:7} {row['bytes']:>9} bytes  sha256:{row['sha256']}  {row['path']}")


@task(help=_JSON_HELP)
@verb
def up(_: Context, json: bool = False) -> None:
    """Start the embedded EC2, if it is not running."""
    from instant_env.localec2 import starter

    with Reporter().live() as report:
        endpoint = starter.up(_settings(), report)
    if json:
        print_json(endpoint.model_dump(mode="json", exclude={"secret_access_key", "admin_token"}))
    else:
        say(f"localec2 is up at {endpoint.url} (pid {endpoint.pid}, accelerator {endpoint.accelerator})")


@task(help=_JSON_HELP)
@verb
def down(_: Context, json: bool = False) -> None:
    """Stop the embedded EC2 and its machines; AMIs stay."""
    from instant_env.localec2 import starter

    stopped = starter.down(_settings())
    if json:
        print_json({"stopped": stopped})
    else:
        say("localec2 is down" if stopped else "localec2 was not running")


@task(help=_JSON_HELP)
@verb
def status(_: Context, json: bool = False) -> None:
    """Say whether the embedded EC2 runs, where, and what runs in it."""
    from instant_env import listing
    from instant_env.localec2 import starter

    found = starter.status(_settings())
    if json:
        print_json(listing.status_dict(found))
    else:
        listing.print_status(found)


@task
@verb
def env(_: Context) -> None:
    """Print shell exports that point any AWS client at the embedded EC2: eval "$(invoke local.env)"."""
    from instant_env import listing
    from instant_env.localec2 import starter

    say(listing.shell_exports(starter.up(_settings(), Reporter())))


local = Collection("local", up, down, status, env)
local.add_collection(fault)
namespace = Collection(
    bake, bench, report, compare, amis, publish, clean, recipes, setup, teardown, doctor, local
)
namespace.add_collection(Collection("init", init_build))
namespace.add_collection(Collection("recipe", recipe_show))
