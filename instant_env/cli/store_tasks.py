"""The verbs of the service's store: copies of its promises."""

from __future__ import annotations

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import CLOUD_HELP, JSON_HELP, read_settings
from instant_env.cli.verb import print_json, say, verb


@task(
    klass=VerbTask,
    positional=["file"],
    help={"file": "where the copy goes; an older one is replaced", **CLOUD_HELP, **JSON_HELP},
)
@verb
def back_up(_: Context, file: str, cloud: str = "", region: str = "", json: bool = False) -> None:
    """Copy the service's store to FILE; the service may run meanwhile."""
    from pathlib import Path

    from instant_env.service.server.files import store_of
    from instant_env.service.store import sqlite

    store = store_of(read_settings(cloud=cloud, region=region))
    sqlite.back_up(store, Path(file))
    if json:
        print_json({"store": str(store), "copy": file})
    else:
        say(f"{store} is copied to {file}")


@task(
    klass=VerbTask,
    positional=["file"],
    help={"file": "a copy that store.back-up made", **CLOUD_HELP, **JSON_HELP},
)
@verb
def restore(_: Context, file: str, cloud: str = "", region: str = "", json: bool = False) -> None:
    """Put the copy FILE in the place of the store of a service that has ended, and keep the old one."""
    from pathlib import Path

    from instant_env.service.server.files import store_of
    from instant_env.service.store import sqlite

    store = store_of(read_settings(cloud=cloud, region=region))
    old = sqlite.restore(Path(file), store)
    if json:
        print_json({"store": str(store), "copy": file, "old": str(old) if old else None})
    else:
        say(f"{store} is restored from {file}" + (f"; the old one is {old}" if old else ""))


store = Collection("store", back_up, restore)
