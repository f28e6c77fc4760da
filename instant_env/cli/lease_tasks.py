"""The verbs of leases: thin clients of the HTTP service, here or elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import JSON_HELP, read_settings
from instant_env.cli.verb import Reporter, print_json, reporter, say, show, verb

if TYPE_CHECKING:
    from instant_env.cli.service_client import ServiceClient
    from instant_env.settings import Settings

_URL_HELP = {
    "url": "address of the service (default: INSTANT_ENV_SERVICE_URL, or the one `invoke serve` started here)"
}
_ID_HELP = {"id": "the lease's id, as lease.list prints it", **_URL_HELP}


def client_of(settings: Settings, url: str) -> ServiceClient:
    from instant_env.cli import service_client

    return service_client.ServiceClient(service_client.locate(settings, url))


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    from instant_env.errors import UsageError

    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--label {pair} is not name=value", hint="for example: --label job=17")
        labels[name] = value
    return labels


def _login(lease: Mapping[str, Any], words: list[str]) -> dict[str, Any]:
    from instant_env.cli import lease_login

    return {**lease, "login": {"command": lease_login.line(words), "arguments": words}}


def _become(words: list[str]) -> None:
    """Let ssh take this process's place, so that its terminal and exit code are ssh's."""
    from instant_env.errors import MissingToolError

    program = shutil.which(words[0])
    if program is None:
        raise MissingToolError("ssh is not installed", hint="apt-get install openssh-client")
    reporter().rest()
    os.execv(program, words)  # noqa: S606 - no shell: the words are arguments


@task(
    klass=VerbTask,
    iterable=["label"],
    help={
        "key": "file of the public key to let in (default: the first of ~/.ssh/id_ed25519.pub, ...)",
        "technique": "how to get the machine: auto (the default), or one of `GET /v1/techniques`",
        "arch": "x86_64 or arm64 (default: the service's)",
        "type": "instance type (default: the architecture's)",
        "ttl": "how long it lives, from ready: 90s, 15m, 1h, 1d (default: the service's)",
        "fallback": "take another technique if the one named has no machine",
        "label": "a word of your own, name=value; may be repeated",
        "ssh": "log in as soon as it is ready",
        **_URL_HELP,
        **JSON_HELP,
    },
)
@verb
def new(
    _: Context, key: str = "", technique: str = "auto", arch: str = "", type: str = "", ttl: str = "",
    fallback: bool = False, label: list[str] | None = None, ssh: bool = False, url: str = "",
    json: bool = False,
) -> None:  # fmt: skip
    """Take a machine that lets a public key in, and print how to log in."""
    from instant_env.cli import lease_login, lease_tables
    from instant_env.cli.common import parse_arch

    settings = read_settings()
    own = lease_login.find_key(key)
    ask: dict[str, Any] = {"public_key": own.public.bare, "technique": technique}
    ask |= {"arch": parse_arch(arch).value} if arch else {}
    ask |= {"instance_type": type} if type else {}
    ask |= {"ttl_seconds": lease_tables.seconds_of(ttl, "--ttl")} if ttl else {}
    ask |= {"fallback": True} if fallback else {}
    ask |= {"labels": _labels(label)} if label else {}
    report = reporter()
    with client_of(settings, url) as client:
        lease = _followed(client, client.take(ask), report)
    words = lease_login.command(settings, lease, own.private)
    if ssh:
        _become(words)
    if json:
        print_json(_login(lease, words))
        return
    timing = lease["timing"]
    took = f" in {lease_tables.milliseconds(timing['t4_ms'])}" if timing["t4_ms"] is not None else ""
    left = lease_tables.left(lease)
    say(f"{lease['id']} is ready{took}: {lease['technique']} ({lease['source']}), ends in {left}")
    say(lease_login.line(words))


def _followed(client: ServiceClient, lease: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """Show its phases until it is ready. Raises ServiceError when it comes to nothing."""
    from instant_env.cli import lease_tables
    from instant_env.cli.service_client import ServiceError

    report(f"lease {lease['id']}, {lease['technique'] or lease['technique_asked']}")
    try:
        for event in client.events(lease["id"]):
            if event["kind"] != "requested":
                report(lease_tables.phase(event))
            if event["kind"] in ("ready", "ending"):
                break
    except KeyboardInterrupt:
        # Nobody waits for it any more, and its time would cost money.
        client.request("DELETE", f"/v1/instances/{lease['id']}")
        raise
    lease = client.request("GET", f"/v1/instances/{lease['id']}")
    if lease["state"] != "ready":
        reason = (lease["ended"] or {}).get("reason", "")
        detail = ": ".join(part for part in (reason, lease["detail"]) if part)
        raise ServiceError(
            f"lease {lease['id']} is {lease['state']}: {detail or 'without a reason'}",
            hint=f"invoke lease.show {lease['id']}", code="capacity" if reason == "failed-to-start" else "",
        )  # fmt: skip
    return lease


@task(
    klass=VerbTask,
    name="list",
    help={
        "state": "states, separated by commas (default: those that have not ended; all: every one)",
        "everybodys": "those of all tokens; admins only",
        **_URL_HELP,
        **JSON_HELP,
    },
)
@verb
def list_leases(
    _: Context, state: str = "", everybodys: bool = False, url: str = "", json: bool = False
) -> None:
    """List leases, newest first."""
    from instant_env.cli import lease_tables

    states = {"": "requested,provisioning,ready,ending", "all": ""}.get(state, state)
    query = {"limit": 200, **({"state": states} if states else {}), **({"all": "true"} if everybodys else {})}
    leases: list[dict[str, Any]] = []
    with client_of(read_settings(), url) as client:
        page = client.request("GET", "/v1/instances", params=query)
        leases += page["leases"]
        while page["cursor"]:
            page = client.request("GET", "/v1/instances", params={**query, "cursor": page["cursor"]})
            leases += page["leases"]
    if json:
        print_json({"leases": leases})
    elif leases:
        show(lease_tables.lease_table(leases))
    else:
        say("no leases; take one: invoke lease.new")


@task(klass=VerbTask, name="show", positional=["id"], help={**_ID_HELP, **JSON_HELP})
@verb
def show_lease(_: Context, id: str, url: str = "", json: bool = False) -> None:
    """Show one lease: times, host keys, why it was served as it was, and how to log in."""
    from instant_env.cli import lease_login, lease_tables

    settings = read_settings()
    with client_of(settings, url) as client:
        lease = client.request("GET", _path(id))
    if lease["state"] == "ready":
        private = lease_login.own_private_key(lease["public_key"]["fingerprint"])
        lease = _login(lease, lease_login.command(settings, lease, private))
    if json:
        print_json(lease)
        return
    say("\n".join(lease_tables.lease_lines(lease)))
    if "login" in lease:
        say(lease["login"]["command"])


def _path(lease_id: str) -> str:
    from instant_env.errors import UsageError

    if not lease_id.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{lease_id!r} is no lease's id", hint="invoke lease.list prints them")
    return f"/v1/instances/{lease_id}"


@task(
    klass=VerbTask,
    positional=["id"],
    help={
        "ttl": "its new time, from now: 90s, 15m, 1h, 1d",
        "shorten": "an end that is earlier than the present one is meant",
        **_ID_HELP,
        **JSON_HELP,
    },
)
@verb
def extend(
    _: Context, id: str, ttl: str = "1h", shorten: bool = False, url: str = "", json: bool = False
) -> None:
    """Give a lease a new end, counted from now."""
    from instant_env.cli import lease_tables

    body = {"ttl_seconds": lease_tables.seconds_of(ttl, "--ttl"), **({"shorten": True} if shorten else {})}
    with client_of(read_settings(), url) as client:
        lease = client.request("POST", f"{_path(id)}/ttl", json=body)
    if json:
        print_json(lease)
    else:
        say(f"{lease['id']} ends at {lease['expires_at']}, in {lease_tables.left(lease)}")


@task(klass=VerbTask, positional=["id"], help={**_ID_HELP, **JSON_HELP})
@verb
def end(_: Context, id: str, url: str = "", json: bool = False) -> None:
    """End a lease and its machine."""
    from instant_env.cli import lease_login

    settings = read_settings()
    with client_of(settings, url) as client:
        lease = client.request("DELETE", _path(id))
    lease_login.forget(settings, lease["id"])
    if json:
        print_json(lease)
    else:
        say(f"{lease['id']} is {lease['state']}")


@task(klass=VerbTask, positional=["id"], help={"key": "the public key that was asked for", **_ID_HELP})
@verb
def ssh(_: Context, id: str, key: str = "", url: str = "") -> None:
    """Log in to a lease; its host key is checked from the first connect on."""
    from instant_env.cli import lease_login

    settings = read_settings()
    with client_of(settings, url) as client:
        lease = client.request("GET", _path(id))
    if key:
        private = lease_login.find_key(key).private
    else:
        private = lease_login.own_private_key(lease["public_key"]["fingerprint"])
    _become(lease_login.command(settings, lease, private))


lease = Collection("lease", new, list_leases, show_lease, extend, end, ssh)
