"""The order of an item's jobs, which does not depend on this server's clock

Called by Alembic, after 0009. Jobs that are known already are counted by when they were ordered, as they were until now.
"""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("number", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    _count_known_jobs(op.get_bind())
    op.create_index("uq_jobs_item_number", "jobs", ["item_id", "number"], unique=True)


def _count_known_jobs(connection: sa.Connection) -> None:
    jobs = sa.table("jobs", *(sa.column(name) for name in ("id", "item_id", "state", "created_ns", "number")))
    is_open = jobs.c.state.in_(("in-progress", "waiting-for-input"))
    known = sa.select(jobs.c.id, jobs.c.item_id).order_by(is_open, jobs.c.created_ns, jobs.c.id)
    counted: Counter[str] = Counter()
    for job, item in list(connection.execute(known)):
        counted[item] += 1
        connection.execute(sa.update(jobs).where(jobs.c.id == job).values(number=counted[item]))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
