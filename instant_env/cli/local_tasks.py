"""The verbs of the embedded EC2: local.up, down, status, env."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import JSON_HELP, read_settings
from instant_env.cli.verb import Reporter, print_json, say, verb


@task(klass=VerbTask, help=JSON_HELP)
@verb
def up(_: Context, json: bool = False) -> None:
    """Start the embedded EC2, if it is not running."""
    from instant_env.localec2 import starter

    with Reporter().live() as report:
        endpoint = starter.up(read_settings(), report)
    if json:
        print_json(endpoint.model_dump(mode="json", exclude={"secret_access_key", "admin_token"}))
    else:
        say(f"localec2 is up at {endpoint.url} (pid {endpoint.pid}, accelerator {endpoint.accelerator})")


@task(klass=VerbTask, help={"force": "kill a server that does not answer", **JSON_HELP})
@verb
def down(_: Context, force: bool = False, json: bool = False) -> None:
    """Stop the embedded EC2 and its machines; AMIs stay."""
    from instant_env.localec2 import starter

    stopped = starter.down(read_settings(), force=force)
    if json:
        print_json({"stopped": stopped})
    else:
        say("localec2 is down" if stopped else "localec2 was not running")


@task(klass=VerbTask, help=JSON_HELP)
@verb
def status(_: Context, json: bool = False) -> None:
    """Say whether the embedded EC2 runs, where, and what runs in it."""
    from instant_env.cli import tables
    from instant_env.localec2 import starter

    state = starter.status(read_settings())
    if json:
        print_json(tables.status_dict(state))
    else:
        tables.print_status(state)


@task(klass=VerbTask)
@verb
def env(_: Context) -> None:
    """Print shell exports that point any AWS client at the embedded EC2: eval "$(invoke local.env)"."""
    from instant_env.cli import tables
    from instant_env.localec2 import starter

    say(tables.shell_exports(starter.up(read_settings(), Reporter())))
