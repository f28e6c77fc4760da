"""``invoke facts``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import CLOUD_HELP, JSON_HELP, parse_arch, read_settings
from instant_env.cli.verb import print_json, reporter, say, verb


@task(
    klass=VerbTask,
    help={
        "base": "base whose AMI is looked at (default debian-12 in the local cloud, al2023 on aws)",
        "base-ami": "AMI to take for that base: an id, an SSM parameter (/...) or a name with *",
        "arch": "architecture: x86_64 (the default) or arm64",
        "recipe": "recipe to compare with (default minimal)",
        "builder-type": "type of the machine (default m7i.large, m7g.large)",
        "output": "file to write (default: one in the state directory, named at the end)",
        "subnet": "subnet of the machine (default: one of the default VPC)",
        "ssh-private": "reach the machine by its private address, from within the VPC",
        "dry-run": "print what would be launched and asked, and what it costs; nothing is made",
        **CLOUD_HELP,
        **JSON_HELP,
    },
)
@verb
def facts(
    _: Context,
    base: str = "",
    base_ami: str = "",
    arch: str = "x86_64",
    recipe: str = "minimal",
    builder_type: str = "",
    output: str = "",
    subnet: str = "",
    ssh_private: bool = False,
    dry_run: bool = False,
    cloud: str = "",
    region: str = "",
    json: bool = False,
) -> None:
    """Read a stock machine's facts into one file, and compare them with what the recipes assume."""
    from instant_env.bake.facts.collect import collect, plan
    from instant_env.bake.request import Options, Request, split_commas
    from instant_env.cloud.session import connect
    from instant_env.files import write_json

    settings = read_settings(cloud=cloud, region=region, subnet=subnet)
    options = Options(
        base=base or None, base_ami=base_ami or None, builder_types=tuple(split_commas(builder_type)),
        ssh_private=ssh_private,
    )  # fmt: skip
    request = Request(recipe, parse_arch(arch), options)
    progress = reporter()
    connection = connect(settings, progress)
    planned = plan(connection, settings, request, progress)
    if dry_run:
        forecast = planned.as_dict(connection)
        if json:
            print_json(forecast)
        else:
            say("\n".join(_plan_lines(forecast)))
        return
    record = collect(connection, settings, planned, progress)
    name = f"{planned.base.base}-{request.arch}-{planned.image.id}-{request.run_id}.json"
    path = Path(output) if output else settings.state_dir / "facts" / name
    write_json(path, record)
    if json:
        print_json({"file": str(path), **record})
    else:
        say("\n".join([*_lines(record), f"all of it, without account, addresses and ids: {path}"]))


def _plan_lines(forecast: dict[str, Any]) -> list[str]:
    image, cost = forecast["base_image"], forecast["cost"]
    money = (
        f"about ${cost['likely_usd']:.2f}, at most ${cost['worst_usd']:.2f}"
        if cost["worst_usd"]
        else "nothing"
    )
    return [
        f"base    {forecast['base']} {forecast['arch']}: {image['id']} {image['name']}",
        *(f"makes   {one['kind']} {one['name']}, until the end" for one in forecast["resources"]),
        f"machine {' or '.join(forecast['instance_types'])}; ends itself after {forecast['ttl_s'] // 60} min",
        f"asks    {', '.join(forecast['questions'])}",
        f"costs   {money if cost['worst_usd'] else 'nothing: a machine of localec2'}",
    ]


def _lines(record: dict[str, Any]) -> list[str]:
    return [
        f"{one['verdict']:<8} {one['name']} {one['assumption']}: {' '.join(one['finding'].split())[:300]}"
        for one in record["comparisons"]
    ]
