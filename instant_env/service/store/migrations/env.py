"""Run by Alembic, in the transaction of the connection that migrate.py hands over."""

from __future__ import annotations

from alembic import context

from instant_env.service.store import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
