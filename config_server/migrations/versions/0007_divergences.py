"""Replicas that were found to differ from their source, and which generations send everything again

Called by Alembic, after 0006. Of what was found before nothing is known any more.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "generations", sa.Column("distrusts_digests", sa.Boolean(), nullable=False, server_default=sa.text("FALSE"))
    )
    op.create_table(
        "divergences",
        sa.Column("item_id", sa.String(36), nullable=False),
        sa.Column("disk_id", sa.String(36), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("noticed_ns", sa.BigInteger(), nullable=False),
        sa.Column("repaired_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["disk_id"], ["disks.id"], name=op.f("fk_divergences_disk_id_disks")),
        sa.ForeignKeyConstraint(
            ["item_id"], ["protected_items.id"], name=op.f("fk_divergences_item_id_protected_items")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_divergences_job_id_jobs")),
        sa.PrimaryKeyConstraint("item_id", "disk_id", "job_id", name=op.f("pk_divergences")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
