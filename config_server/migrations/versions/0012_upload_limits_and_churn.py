"""Upload limits of process servers as one document, with work hours; how much disks change, hour by hour, and measured on request

Called by Alembic, after the newest before it. What was set until now is kept.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0015"
branch_labels = None
depends_on = None

_THREADS, _LIMIT = "upload_threads_per_machine", "upload_limit_bits_per_s"
_DEFAULT_THREADS = 4
_LOWEST_BITS_PER_S, _HIGHEST_BITS_PER_S = 512_000, 1_023_000_000


def upgrade() -> None:
    op.add_column("process_servers", sa.Column("upload_limits", sa.Text(), nullable=True))
    _keep_what_was_set(op.get_bind())
    op.drop_column("process_servers", _THREADS)
    op.drop_column("process_servers", _LIMIT)
    op.create_table(
        "churn_hours",
        sa.Column(
            "disk_id", sa.String(36), sa.ForeignKey("disks.id", name="fk_churn_hours_disk_id_disks"), nullable=False
        ),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("changed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("observed_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("disk_id", "hour", name="pk_churn_hours"),
    )
    op.create_index("ix_churn_hours_hour", "churn_hours", ["hour"])
    op.create_table(
        "churn_profiles",
        sa.Column(
            "machine_id",
            sa.String(36),
            sa.ForeignKey("machines.id", name="fk_churn_profiles_machine_id_machines"),
            nullable=False,
        ),
        sa.Column("request", sa.String(36), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("machine_id", name="pk_churn_profiles"),
    )


def _keep_what_was_set(connection: sa.Connection) -> None:
    names = ("id", _THREADS, _LIMIT, "upload_limits")
    servers = sa.table("process_servers", *(sa.column(name) for name in names))
    known = sa.select(servers.c.id, servers.c[_THREADS], servers.c[_LIMIT])
    for server, threads, limit in list(connection.execute(known)):
        document: dict[str, int] = {}
        if threads > _DEFAULT_THREADS:
            document["threads_per_machine"] = threads
        if limit is not None:
            document["limit_bits_per_s"] = min(_HIGHEST_BITS_PER_S, max(_LOWEST_BITS_PER_S, limit))
        if document:
            connection.execute(
                sa.update(servers).where(servers.c.id == server).values(upload_limits=json.dumps(document))
            )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
