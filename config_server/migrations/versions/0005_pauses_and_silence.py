"""Pauses that outlast a test migration; when the replica writer was last heard of about a request

Called by Alembic, after 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("protected_items", sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.text("FALSE")))
    op.execute("UPDATE protected_items SET paused = TRUE WHERE state = 'paused'")
    op.add_column("writer_requests", sa.Column("heard_ns", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
