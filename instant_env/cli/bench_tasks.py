"""The verbs of measuring: bench, report, compare."""

from __future__ import annotations

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask, takes_numbers
from instant_env.cli.common import CLOUD_HELP, JSON_HELP, open_cloud, read_settings
from instant_env.cli.verb import print_json, reporter, say, verb, writing_to_stdout
from instant_env.progress import Doing


@task(
    klass=takes_numbers(iterations=int, timeout_s=int, parallel=int, seed=int, max_usd=float),
    iterable=["technique"],
    help={
        "ami": "which AMIs to measure: latest (the default), or the id of one",
        "technique": "technique to measure; repeatable (default: cold and every baked one)",
        "iterations": "attempts of each technique (default 3)",
        "arch": "architecture: x86_64 (the default) or arm64",
        "instance-type": "instance type (default m7i.large, m7g.large)",
        "market": "spot (the default on aws) or on-demand; pools are on demand in any case",
        "timeout-s": "seconds after which an attempt counts as timed out (default 600)",
        "experiment": "an experiment to run in place of a race: experiments/hop-limit.yml",
        "resume": "CSV of an interrupted run: make the attempts it did not come to",
        "dry-run": "print the plan and what it would cost; nothing is launched",
        "max-usd": "stop before an attempt that might cost more than this in all",
        "subnet": "subnet of the machines (default: one of the default VPC)",
        "ssh-private": "reach them by their private addresses, from within the VPC",
        "security-group": "their security group, which has to admit SSH (default: one made for the run)",
        "parallel": "launches in flight at a time (default 1)",
        "seed": "seed of the order within the blocks (default: random, recorded)",
        "name": "name in the file names of the results (default bench)",
        **CLOUD_HELP,
        **JSON_HELP,
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
    market: str = "",
    timeout_s: int | None = None,
    parallel: int | None = None,
    experiment: str = "",
    resume: str = "",
    dry_run: bool = False,
    max_usd: float | None = None,
    subnet: str = "",
    ssh_private: bool = False,
    security_group: str = "",
    seed: int | None = None,
    name: str = "",
    cloud: str = "",
    region: str = "",
    json: bool = False,
) -> None:
    """Race the techniques against cold; one CSV row per attempt under results/."""
    from harness.figures import bench_progress, summary_table
    from harness.plan import arguments
    from harness.run import runner

    settings = read_settings(
        cloud=cloud, region=region, subnet=subnet, security_group=security_group,
        ssh_private=ssh_private or None,
    )  # fmt: skip
    request = arguments.Request(
        experiment=experiment, resume=resume, ami=ami, techniques=tuple(technique or ()),
        iterations=iterations, arch=arch, instance_type=instance_type, seed=seed, name=name,
        timeout_s=timeout_s, parallel=parallel, market=market,
    )  # fmt: skip
    settings, planner = arguments.read(request, settings)
    progress = reporter()
    progress(Doing("preparing the attempts"))
    if dry_run:
        say("\n".join(runner.dry_run(settings, planner, progress, open_cloud)))
        return
    result = runner.carry_out(
        settings, planner, max_usd=max_usd, progress=progress,
        watch=lambda standing: progress.show(bench_progress.render(standing)), open_cloud=open_cloud,
    )  # fmt: skip
    if json:
        print_json({**runner.result_dict(result), "csv": str(result.csv_path)})
    else:
        with writing_to_stdout():
            for summary in result.summaries:
                summary_table.print_summary(summary)
        for line in summary_table.filling_lines(result.fillings):
            say(line)
        if result.spent_usd:
            say(f"spent: about ${result.spent_usd:.2f}")
        if result.left_out:
            say(f"{result.left_out} attempts were left out: they might have cost more than --max-usd allows")
        say(f"rows: {result.csv_path}")
    if result.failures or result.left_out:
        raise Exit(code=1)


@task(
    klass=VerbTask,
    help={
        "csv": "results to report on (default: the newest in results/)",
        "format": "what to write, several with commas: html, md, png, svg (default html)",
        "output": "directory to write to (default: results/reports/<name of the CSV>)",
        "fill": "fill the figures of this document from the CSVs that it names, and write no report",
        **JSON_HELP,
    },
)
@verb
def report(
    _: Context, csv: str = "", format: str = "html", output: str = "", fill: str = "", json: bool = False
) -> None:
    """Draw a run: where the time goes, how techniques differ, and which one to use."""
    from pathlib import Path

    from harness.figures import reading

    results_dir = read_settings().results_dir
    reporter()(Doing("drawing the report"))
    # Read before what draws is imported, which takes a second.
    results = None if fill else reading.read_results(Path(csv) if csv else reading.newest(results_dir))

    from harness.figures import quote
    from harness.figures.report import formats, make

    if results is None:
        changed = quote.fill(Path(fill))
        if json:
            print_json({"document": fill, "changed": changed})
        else:
            say(f"{fill}: {'filled anew' if changed else 'as its CSVs have it'}")
        return
    chosen_formats = formats(format)
    document = make(results)
    paths = document.write(
        Path(output) if output else results_dir / "reports" / document.results.name, chosen_formats
    )
    if json:
        print_json({**document.as_json(), "files": [str(path) for path in paths]})
        return
    for section in document.sections:
        say(f"{section.caption}: {section.recommendation.headline}")
        for reason in section.recommendation.reasons:
            say(f"  {reason}")
    for path in paths:
        say(str(path))


@task(
    klass=VerbTask,
    positional=["a", "b"],
    help={
        "a": "what it was: a CSV, an AMI id, or a git revision with a run in results/",
        "b": "what it is now: the same",
        "fail-if-slower": "exit with 1 when something is slower by more than this, as 10%: when the whole "
        "95 % interval lies above it (t4; in localec2 t2→t4)",
        "force": "compare also what ran on different hosts, accelerators or clouds",
        **JSON_HELP,
    },
)
@verb
def compare(
    _: Context, a: str, b: str, fail_if_slower: str = "", force: bool = False, json: bool = False
) -> None:
    """Say what got slower or faster from A to B, with intervals."""
    reporter()(Doing("comparing the runs"))
    from harness.figures.compare import compare_runs, render

    comparison = compare_runs(read_settings().results_dir, a, b, force=force, fail_if_slower=fail_if_slower)
    if json:
        print_json(comparison.as_json())
    else:
        say(render(comparison))
    if comparison.too_slow:
        raise Exit(code=1)
