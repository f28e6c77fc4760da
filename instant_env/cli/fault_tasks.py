"""The verbs of ``invoke local.fault``: make the embedded EC2 fail on purpose. Thin, as those of tasks.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.verb import print_json, say, verb

if TYPE_CHECKING:
    from instant_env.localec2.starter import Endpoint

_JSON_HELP = {"json": "print the result as one JSON object on stdout"}
_TIME_HELP = {"seconds": "over after this time (default: until it is cleared)", **_JSON_HELP}
_CALL_HELP = {"action": "the action to strike (RunInstances), or * for all", **_TIME_HELP}
_ONE_HELP = {
    "instance": "the instance's id, or next: the one that starts next",
    "after-ms": "milliseconds to wait first; with next, from the start of its machine",
    **_TIME_HELP,
}
_MANY_HELP = {
    "instance": "the instance's id, next: the one that starts next, or * (the default): all",
    **_TIME_HELP,
}


def _endpoint() -> Endpoint:
    """Faults are made in a server that runs; none is started for them, since it would have none."""
    from instant_env import settings
    from instant_env.localec2 import starter

    return starter.running(settings.load({}))


def _inject(json: bool, **fields: Any) -> None:
    from instant_env.cli import tables
    from instant_env.localec2 import starter

    fault = starter.inject(_endpoint(), **{name: value for name, value in fields.items() if value})
    if json:
        print_json({"fault": fault})
    else:
        say(tables.fault_line(fault))


@task(
    klass=VerbTask,
    help={"code": "EC2's error code", "times": "number of calls that fail (default 1)", **_CALL_HELP},
)
@verb
def error(
    _: Context, action: str, code: str = "InternalError", times: int = 1, seconds: float = 0.0,
    json: bool = False,
) -> None:  # fmt: skip
    """Let an action fail with RequestLimitExceeded, InsufficientInstanceCapacity, InternalError, ..."""
    _inject(json, kind="error", action=action, code=code, times=times, seconds=seconds)


@task(klass=VerbTask, help={"ms": "milliseconds", "times": "number of calls (default: all)", **_CALL_HELP})
@verb
def delay(_: Context, action: str, ms: int, times: int = 0, seconds: float = 0.0, json: bool = False) -> None:
    """Let an action take longer."""
    _inject(json, kind="delay", action=action, delay_ms=ms, times=times, seconds=seconds)


@task(
    klass=VerbTask,
    help={
        "when": "before the action is done (the default), or after: only its answer is lost",
        "times": "number of calls (default 1)",
        **_CALL_HELP,
    },
)
@verb
def drop(
    _: Context, action: str, when: str = "before", times: int = 1, seconds: float = 0.0, json: bool = False
) -> None:
    """Let the connection of a call end without an answer."""
    _inject(json, kind="drop", action=action, when=when, times=times, seconds=seconds)


@task(klass=VerbTask, help={"ms": "milliseconds from the launch", **_TIME_HELP})
@verb
def unknown(_: Context, ms: int, seconds: float = 0.0, json: bool = False) -> None:
    """Eventual consistency: InvalidInstanceID.NotFound for a while after a launch."""
    _inject(json, kind="unknown", delay_ms=ms, seconds=seconds)


@task(klass=VerbTask, help=_ONE_HELP)
@verb
def kill(_: Context, instance: str, after_ms: int = 0, seconds: float = 0.0, json: bool = False) -> None:
    """Kill a machine's QEMU."""
    _inject(json, kind="kill", instance=instance, after_ms=after_ms, seconds=seconds)


@task(klass=VerbTask, help=_ONE_HELP)
@verb
def freeze(_: Context, instance: str, after_ms: int = 0, seconds: float = 0.0, json: bool = False) -> None:
    """Stop a machine's processors; clearing the fault lets them go on."""
    _inject(json, kind="freeze", instance=instance, after_ms=after_ms, seconds=seconds)


@task(
    klass=VerbTask,
    help={
        "bytes-per-second": "bound of each volume's reads and writes together",
        "operations-per-second": "the same in operations",
        **_MANY_HELP,
    },
)
@verb
def disk(
    _: Context, instance: str = "*", bytes_per_second: int = 0, operations_per_second: int = 0,
    seconds: float = 0.0, json: bool = False,
) -> None:  # fmt: skip
    """Make a machine's disks slow."""
    _inject(
        json, kind="disk", instance=instance, bytes_per_second=bytes_per_second,
        operations_per_second=operations_per_second, seconds=seconds,
    )  # fmt: skip


@task(
    klass=VerbTask,
    help={
        "ms": "milliseconds by which it is late",
        "status": "HTTP status that it answers",
        "answer": "what it does instead of answering: refused, truncated, garbage",
        **_MANY_HELP,
    },
)
@verb
def imds(
    _: Context, instance: str = "*", ms: int = 0, status: int = 0, answer: str = "", seconds: float = 0.0,
    json: bool = False,
) -> None:  # fmt: skip
    """Make a machine's metadata service late or wrong."""
    _inject(json, kind="imds", instance=instance, delay_ms=ms, status=status, answer=answer, seconds=seconds)


@task(
    klass=VerbTask,
    help={
        "dhcp": "the guest's next this many DHCP messages are lost",
        "loss-percent": "of all packets, either way",
        "ms": "milliseconds by which every packet is late, either way",
        "silent-dns": "the resolver does not answer",
        **_MANY_HELP,
    },
)
@verb
def network(
    _: Context, instance: str = "*", dhcp: int = 0, loss_percent: float = 0.0, ms: int = 0,
    silent_dns: bool = False, seconds: float = 0.0, json: bool = False,
) -> None:  # fmt: skip
    """Lose or delay a machine's packets."""
    _inject(
        json, kind="network", instance=instance, drop_dhcp=dhcp, loss_percent=loss_percent, delay_ms=ms,
        silent_dns=silent_dns, seconds=seconds,
    )  # fmt: skip


@task(klass=VerbTask, help={"instance": "next (the default): the one that starts next", **_TIME_HELP})
@verb
def unplugged(_: Context, instance: str = "next", seconds: float = 0.0, json: bool = False) -> None:
    """Start the next machine without its network card; clearing the fault plugs it in."""
    _inject(json, kind="unplugged", instance=instance, seconds=seconds)


@task(klass=VerbTask, name="list", default=True, help=_JSON_HELP)
@verb
def list_(_: Context, json: bool = False) -> None:
    """List the faults that are active."""
    from instant_env.cli import tables
    from instant_env.localec2 import starter

    faults = starter.faults(_endpoint())
    if json:
        print_json({"faults": faults})
    for fault in [] if json else faults:
        say(tables.fault_line(fault))
    if not faults and not json:
        say("no faults")


@task(klass=VerbTask, help={"id": "only this one (default: all)", **_JSON_HELP})
@verb
def clear(_: Context, id: str = "", json: bool = False) -> None:
    """End faults and undo what can be undone: frozen machines go on, disks are fast again."""
    from instant_env.localec2 import starter

    cleared = starter.clear_faults(_endpoint(), id)
    if json:
        print_json({"cleared": cleared})
    else:
        say(f"cleared {', '.join(cleared)}" if cleared else "no faults")


fault = Collection(
    "fault", error, delay, drop, unknown, kill, freeze, disk, imds, network, unplugged, list_, clear
)  # fmt: skip
