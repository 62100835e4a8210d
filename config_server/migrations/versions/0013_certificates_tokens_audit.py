"""Certificates are kept and their use is known; secrets that are used once; the audit log

Called by Alembic, after 0010. Certificates from before count as used since they were issued.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("certificates", sa.Column("pem", sa.Text(), nullable=True))
    op.add_column("certificates", sa.Column("used_ns", sa.BigInteger(), nullable=True))
    op.execute(sa.text("UPDATE certificates SET used_ns = issued_ns"))
    op.add_column(
        "administrator_tokens", sa.Column("single_use", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("administrator_tokens", sa.Column("created_by", sa.String(255), nullable=True))
    op.create_table(
        "audit_records",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("time_ns", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("credential", sa.String(64), nullable=True),
        sa.Column("remote", sa.String(255), nullable=False),
        sa.Column("action", sa.String(255), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_records")),
        sa.UniqueConstraint("previous", name=op.f("uq_audit_records_previous")),
    )
    op.create_index(op.f("ix_audit_records_time_ns"), "audit_records", ["time_ns"])


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
