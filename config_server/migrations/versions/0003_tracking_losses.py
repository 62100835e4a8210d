"""Losses of tracking, and up to where the tracking of each disk is proved

Called by Alembic, after 0002. What was proved is reported anew with the next heartbeat.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("protected_items", "proved_point_time_ns")
    for name in ("proved_generation", "proved_epoch"):
        op.add_column("item_disks", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "tracking_losses",
        sa.Column("item_id", sa.String(36), nullable=False),
        sa.Column("disk_id", sa.String(36), nullable=False),
        sa.Column("proved_generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("proved_epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("until_generation", sa.BigInteger(), nullable=False),
        sa.Column("until_epoch", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("noticed_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["disk_id"], ["disks.id"], name=op.f("fk_tracking_losses_disk_id_disks")),
        sa.ForeignKeyConstraint(
            ["item_id"], ["protected_items.id"], name=op.f("fk_tracking_losses_item_id_protected_items")
        ),
        sa.PrimaryKeyConstraint(
            "item_id", "disk_id", "proved_generation", "proved_epoch", name=op.f("pk_tracking_losses")
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
