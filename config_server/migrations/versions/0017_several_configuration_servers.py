"""Several configuration servers on one database: who they are, who leads, which keys they share; and what they must know of agents alike

Called by Alembic, after 0016. Incarnations that were known are forgotten once: whoever reports first counts.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("machines", sa.Column("incarnations", sa.Text(), nullable=True))
    op.create_table(
        "config_servers",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("hostname", sa.String(255), nullable=False),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("heard_ns", sa.BigInteger(), nullable=False),
        sa.Column("clock_offset_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_config_servers")),
    )
    op.create_table(
        "leadership",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("server_id", sa.String(36), nullable=False),
        sa.Column("since_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leadership")),
    )
    op.create_table(
        "site_keys",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("authority_fingerprint", sa.String(128), nullable=False),
        sa.Column("key_check", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site_keys")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
