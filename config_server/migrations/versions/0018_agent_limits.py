"""How much of its server an agent may use

Called by Alembic, after 0014.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("agent_limits", sa.Text(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
