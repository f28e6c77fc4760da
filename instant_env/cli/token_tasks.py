"""The verbs of tokens: who may ask the service for machines, and for how many."""

from __future__ import annotations

from typing import Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask, takes_numbers
from instant_env.cli.common import JSON_HELP, read_settings
from instant_env.cli.lease_tasks import _URL_HELP, client_of
from instant_env.cli.verb import print_json, say, show, verb


@task(
    klass=takes_numbers(max_leases=int, max_usd_per_hour=float),
    help={
        "name": "for whom it is",
        "scopes": "what it may: read, lease, admin, separated by commas (default: lease)",
        "ttl": "how long it is valid: 1d, 30d (default: until it is revoked)",
        "max-leases": "live leases at a time (default: the service's limit)",
        "max-usd-per-hour": "price of its leases together (default: the service's limit)",
        "types": "instance types that it may ask for, separated by commas (default: the service's)",
        **_URL_HELP,
        **JSON_HELP,
    },
)
@verb
def new(
    _: Context, name: str, scopes: str = "lease", ttl: str = "", max_leases: int | None = None,
    max_usd_per_hour: float | None = None, types: str = "", url: str = "", json: bool = False,
) -> None:  # fmt: skip
    """Make a token and print its secret, which is shown this once."""
    from instant_env.cli import lease_tables

    body: dict[str, Any] = {"name": name, "scopes": _words(scopes)}
    body |= {"ttl_seconds": lease_tables.seconds_of(ttl, "--ttl")} if ttl else {}
    body |= {} if max_leases is None else {"max_leases": max_leases}
    body |= {} if max_usd_per_hour is None else {"max_usd_per_hour": max_usd_per_hour}
    body |= {"instance_types": _words(types)} if types else {}
    with client_of(read_settings(), url) as client:
        made = client.request("POST", "/v1/tokens", json=body)
    if json:
        print_json(made)
    else:
        say(made["secret"])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@task(klass=VerbTask, name="list", help={**_URL_HELP, **JSON_HELP})
@verb
def list_tokens(_: Context, url: str = "", json: bool = False) -> None:
    """List tokens; their secrets are not kept."""
    from instant_env.cli import lease_tables

    with client_of(read_settings(), url) as client:
        tokens = client.request("GET", "/v1/tokens")
    if json:
        print_json(tokens)
    else:
        show(lease_tables.token_table(tokens["tokens"]))


@task(
    klass=VerbTask,
    positional=["id"],
    help={"id": "the token's id, as token.list prints it", **_URL_HELP, **JSON_HELP},
)
@verb
def revoke(_: Context, id: str, url: str = "", json: bool = False) -> None:
    """Revoke a token; leases that it took go on until their time."""
    from instant_env.errors import UsageError

    if not id.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{id!r} is no token's id", hint="invoke token.list prints them")
    with client_of(read_settings(), url) as client:
        token = client.request("DELETE", f"/v1/tokens/{id}")
    if json:
        print_json(token)
    else:
        say(f"{token['id']} ({token['name']}) is revoked")


token = Collection("token", new, list_tokens, revoke)
