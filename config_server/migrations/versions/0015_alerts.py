"""Alerts, notifications about them, how fast disks change, load of process servers

Called by Alembic, after the migration that is named below. Nothing was kept of these before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0017"
branch_labels = None
depends_on = None

_OPEN = sa.text("cleared_ns IS NULL")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _alerts()
    _deliveries()
    _figures()


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("code", sa.String(40), nullable=False),
        sa.Column("subject_kind", sa.String(40), nullable=False),
        sa.Column("subject_id", sa.String(36), nullable=False),
        sa.Column("subject_name", sa.String(255), nullable=False),
        sa.Column("machine_id", sa.String(36), nullable=True),
        sa.Column("severity", sa.String(40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("remedy", sa.Text(), nullable=False),
        sa.Column("warning_latch", sa.String(40), nullable=False),
        sa.Column("warning_since_ns", sa.BigInteger(), nullable=False),
        sa.Column("critical_latch", sa.String(40), nullable=False),
        sa.Column("critical_since_ns", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_ns", sa.BigInteger(), nullable=False),
        sa.Column("looked_ns", sa.BigInteger(), nullable=False),
        sa.Column("raised_ns", sa.BigInteger(), nullable=True),
        sa.Column("changed_ns", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_by", sa.String(255), nullable=True),
        sa.Column("acknowledged_ns", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_until_ns", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_note", sa.Text(), nullable=True),
        sa.Column("cleared_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    op.create_index("ix_alerts_cleared", "alerts", ["cleared_ns"])
    op.create_index(
        "uq_alerts_subject_not_cleared",
        "alerts",
        ["code", "subject_kind", "subject_id"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )


def _deliveries() -> None:
    op.create_table(
        "alert_deliveries",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("alert_id", sa.String(36), nullable=False),
        sa.Column("change", sa.String(40), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("state", sa.String(40), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("attempted_ns", sa.BigInteger(), nullable=True),
        sa.Column("ended_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_alert_deliveries")),
        sa.UniqueConstraint("id", name=op.f("uq_alert_deliveries_id")),
    )
    op.create_index("ix_alert_deliveries_alert_id", "alert_deliveries", ["alert_id"])
    op.create_index("ix_alert_deliveries_state_sequence", "alert_deliveries", ["state", "sequence"])


def _figures() -> None:
    op.create_table(
        "disk_churn",
        sa.Column("item_id", sa.String(36), nullable=False),
        sa.Column("disk_id", sa.String(36), nullable=False),
        sa.Column("counted_bytes", sa.BigInteger(), nullable=False),
        sa.Column("counted_ns", sa.BigInteger(), nullable=False),
        sa.Column("rate_bytes_per_s", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["disk_id"], ["disks.id"], name=op.f("fk_disk_churn_disk_id_disks")),
        sa.ForeignKeyConstraint(
            ["item_id"], ["protected_items.id"], name=op.f("fk_disk_churn_item_id_protected_items")
        ),
        sa.PrimaryKeyConstraint("item_id", "disk_id", name=op.f("pk_disk_churn")),
    )
    op.create_table(
        "process_server_load",
        sa.Column("process_server_id", sa.String(36), nullable=False),
        sa.Column("cpu_fraction", sa.Double(), nullable=False),
        sa.Column("memory_fraction", sa.Double(), nullable=False),
        sa.Column("measured_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("process_server_id", name=op.f("pk_process_server_load")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
