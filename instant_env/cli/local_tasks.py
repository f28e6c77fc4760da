"""The verbs of the embedded EC2: local.up, down, status, strict, env."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import JSON_HELP, read_settings
from instant_env.cli.verb import print_json, reporter, say, show, verb
from instant_env.progress import Doing

if TYPE_CHECKING:
    from instant_env.settings import Settings


@task(klass=VerbTask, help=JSON_HELP)
@verb
def up(_: Context, json: bool = False) -> None:
    """Start the embedded EC2, if it is not running."""
    from instant_env.localec2 import starter

    endpoint = starter.up(read_settings(), reporter())
    if json:
        print_json(endpoint.model_dump(mode="json", exclude={"secret_access_key", "admin_token"}))
    else:
        say(f"localec2 is up at {endpoint.url} (pid {endpoint.pid}, accelerator {endpoint.accelerator})")


@task(
    klass=VerbTask,
    help={
        "force": "kill a server that does not answer",
        "yes": "do not ask, even if somebody has a machine in it",
        **JSON_HELP,
    },
)
@verb
def down(_: Context, force: bool = False, yes: bool = False, json: bool = False) -> None:
    """Stop the embedded EC2 and its machines; AMIs stay. Asks first when somebody has one of the machines."""
    from instant_env.localec2 import starter

    settings = read_settings()
    if not force and not _may_end_leases(settings, yes=yes):
        say("localec2 goes on; end it with them: invoke local.down --yes")
        raise Exit(code=1)
    reporter()(Doing("stopping the embedded EC2 and its machines"))
    stopped = starter.down(settings, force=force)
    if json:
        print_json({"stopped": stopped})
    else:
        say("localec2 is down" if stopped else "localec2 was not running")


def _may_end_leases(settings: Settings, *, yes: bool) -> bool:
    """Whether nobody has a machine, or these may be ended; their tags then say by whom."""
    from datetime import UTC, datetime

    from instant_env.cli import tables
    from instant_env.cloud import in_use
    from instant_env.cloud.session import connect
    from instant_env.localec2 import starter
    from instant_env.settings import CloudName

    endpoint = starter.status(settings).endpoint
    if endpoint is None:
        return True
    # Whatever the settings name: it is this server that is about to end.
    cloud = connect(settings.model_copy(update={"cloud": CloudName.LOCAL, "region": endpoint.region}))
    machines = in_use.machines_in_use(cloud, datetime.now(UTC))
    if not machines:
        return True
    for machine in machines:
        say(f"{machine.instance_id}: {machine.why}")
    if not yes and not tables.confirmed(f"end these {len(machines)} with localec2?"):
        return False
    in_use.say_ended_by_operator(cloud, machines)
    return True


@task(klass=VerbTask, help=JSON_HELP)
@verb
def status(_: Context, json: bool = False) -> None:
    """Say whether the embedded EC2 runs, where, and what runs in it."""
    from instant_env.cli import tables
    from instant_env.localec2 import starter

    reporter()(Doing("asking the embedded EC2"))
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

    say(tables.shell_exports(starter.up(read_settings(), reporter())))


@task(
    klass=VerbTask,
    help={
        "set": "switches that change: late_ms=300,posted_console=true (until the server ends)",
        **JSON_HELP,
    },
)
@verb
def strict(_: Context, set: str = "", json: bool = False) -> None:
    """List how strict the embedded EC2 is, switch by switch, and what each is about."""
    from instant_env.cli import tables
    from instant_env.localec2 import starter

    settings = read_settings()
    switches = starter.strictness(starter.running(settings), **tables.switch_values(set))
    if json:
        print_json({"strictness": switches.model_dump(mode="json")})
    else:
        show(tables.switches(switches))
