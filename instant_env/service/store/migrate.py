"""The store's tables made, or brought up to date, by migrations/. No alembic.ini: all is set here."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from instant_env.service.store import schema
from instant_env.service.store.protocol import StoreError

SCRIPTS = Path(__file__).with_name("migrations")


def revision_of(connection: Connection, name: str) -> str | None:
    """The migration that the store ``name`` is at; None for an empty one. Raises StoreError for a database of
    something else."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if "alembic_version" not in tables or not tables & set(schema.metadata.tables):
        raise StoreError(
            f"the database {name} has tables, and they are not those of a store of this service",
            hint="give the service a file of its own",
        )
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def check_known(revision: str, name: str) -> None:
    """Raises StoreError for a store of a version that this program does not know."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(SCRIPTS).walk_revisions()}
    if revision not in known:
        raise StoreError(
            f"the store {name} is of a newer version (revision {revision}; this program knows up to "
            f"{schema.REVISION})",
            hint="start the newer version of instant-env, or restore a copy from before the upgrade",
        )


def upgrade(connection: Connection) -> None:
    """Run what is missing, in this connection's transaction."""
    from alembic import command  # takes 0.2 s, and is needed once for a store
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
