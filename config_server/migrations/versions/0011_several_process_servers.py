"""Several process servers: where an item is and since when, how a drain goes, which heartbeats come without a gap, steady churn

Called by Alembic, after 0012. Items that are known already count as settled where they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("process_servers", sa.Column("heard_since_ns", sa.BigInteger(), nullable=True))
    op.add_column("process_servers", sa.Column("on_appliance", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("process_servers", sa.Column("drain_began_ns", sa.BigInteger(), nullable=True))
    op.add_column(
        "process_servers", sa.Column("drain_items", sa.Integer(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("process_servers", sa.Column("drained_ns", sa.BigInteger(), nullable=True))
    op.add_column("protected_items", sa.Column("placed_ns", sa.BigInteger(), nullable=True))
    op.add_column("protected_items", sa.Column("placement_problem", sa.Text(), nullable=True))
    op.add_column("item_disks", sa.Column("steady_churn_bytes_per_s", sa.Double(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
