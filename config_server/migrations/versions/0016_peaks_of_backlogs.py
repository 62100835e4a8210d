"""How high a disk's backlog was when, since it began to fall behind

Called by Alembic, after 0013. A disk that was falling behind is noticed anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("item_disks", sa.Column("falling_behind_peak_bytes", sa.BigInteger(), nullable=True))
    op.add_column("item_disks", sa.Column("falling_behind_peak_ns", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
