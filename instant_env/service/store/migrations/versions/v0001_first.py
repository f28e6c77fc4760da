"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("max_leases", sa.Integer),
        sa.Column("max_usd_per_hour", sa.Double),
        sa.Column("instance_types", sa.JSON),
        sa.UniqueConstraint("sha256", name="tokens_sha256"),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("technique", sa.Text, nullable=False),
        sa.Column("source", sa.Text),
        sa.Column("selection", sa.JSON),
        sa.Column("machine_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("instance_id", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("host_keys", sa.JSON, nullable=False),
        sa.Column("host_keys_known_by", sa.Text, nullable=False),
        sa.Column("market", sa.Text),
        sa.Column("usd_per_hour", sa.Double, nullable=False),
        sa.Column("timing", sa.JSON, nullable=False),
        sa.Column("ready_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("reason", sa.Text),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
    )
    op.create_index("leases_by_time", "leases", ["created_at", "id"])
    op.create_index("leases_by_owner", "leases", ["owner", "created_at", "id"])
    op.create_index("leases_by_use", "leases", ["owner", "state", "usd_per_hour"])
    op.create_index("leases_by_state", "leases", ["state", "machine_id", "usd_per_hour"])
    op.create_table(
        "events",
        sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id", name="events_of_lease"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column(
            "lease_id",
            sa.Text,
            sa.ForeignKey("leases.id", name="idempotency_keys_of_lease"),
            nullable=False,
        ),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("idempotency_keys_by_lease", "idempotency_keys", ["lease_id"])
    _create_machines()
    op.create_table(
        "pool_controls",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("target", sa.Integer),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("open_until", sa.BigInteger),
        sa.Column("last_error", sa.Text, nullable=False),
    )
    op.create_table(
        "samples",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("technique", sa.Text, nullable=False),
        sa.Column("arch", sa.Text, nullable=False),
        sa.Column("instance_type", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("ms", sa.Double, nullable=False),
        sa.Column("ok", sa.Boolean, nullable=False),
    )
    op.create_index("samples_by_kind", "samples", ["technique", "arch", "instance_type", "at"])


def _create_machines() -> None:
    op.create_table(
        "machines",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("technique", sa.Text, nullable=False),
        sa.Column("arch", sa.Text, nullable=False),
        sa.Column("instance_type", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("market", sa.Text, nullable=False),
        sa.Column("client_token", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("pool", sa.Text),
        sa.Column("lease_id", sa.Text),
        sa.Column("instance_id", sa.Text),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("host_keys", sa.JSON, nullable=False),
        sa.Column("ready_at", sa.BigInteger),
        sa.Column("usd_per_hour", sa.Double, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.UniqueConstraint("instance_id", name="machines_instance_id"),
        sa.UniqueConstraint("client_token", name="machines_client_token"),
    )
    op.create_index("machines_by_pool", "machines", ["pool", "state", "created_at", "id"])
    op.create_index("machines_by_state", "machines", ["state", "usd_per_hour"])
    op.create_index("machines_by_lease", "machines", ["lease_id"])
