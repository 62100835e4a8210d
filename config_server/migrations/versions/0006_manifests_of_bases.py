"""Which manifest a closed generation ended with: the number of its final epoch alone does not say which history was applied

Called by Alembic, after 0005. Generations that were closed before have none: who continues them sends everything.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("final_manifest_hash", "torn_manifest_hash"):
        op.add_column("generations", sa.Column(name, sa.String(64), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
