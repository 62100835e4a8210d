"""Generations that were closed with an epoch applied in part

Called by Alembic, after 0001. Of generations that are closed already, the writer's kept answers tell.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("torn", sa.Boolean(), nullable=False, server_default=sa.text("FALSE")))
    op.execute(
        "UPDATE generations SET torn = TRUE WHERE closed_ns IS NOT NULL AND EXISTS ("
        "SELECT 1 FROM writer_requests WHERE writer_requests.state = 'succeeded'"
        " AND writer_requests.key LIKE 'close-generation/' || generations.disk_id || '/' || generations.generation || '/%'"
        " AND writer_requests.answer LIKE '%\"torn-epoch\"%')"
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
