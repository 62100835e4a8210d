"""Which role a passphrase enrols: one that is carried to every server to be protected must make nobody a process server

Called by Alembic, after 0008. Passphrases that were made before are for agents.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("enrolment_passphrases", sa.Column("role", sa.String(40), nullable=False, server_default="agent"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
