"""Of which type the disks are that are to be made of an item's disks: their churn limits go by it

Called by Alembic, after 0018. What there is becomes premium, as before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("policies", sa.Column("target_disk_type", sa.String(16), nullable=False, server_default="premium"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
