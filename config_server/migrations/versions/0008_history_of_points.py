"""The place of recovery points in the history of their item, and a time to count with that does not trust the agent's clock

Called by Alembic, after 0007. Points that are known already are counted by their own time as far as it lies between the point before and
the moment at which they were found, else by that moment.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = ("history_generation", "history_epoch", "counted_ns")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("recovery_points", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    _place_known_points(op.get_bind())
    op.drop_index("ix_recovery_points_item_time", table_name="recovery_points")
    op.create_index(
        "ix_recovery_points_item_history", "recovery_points", ["item_id", "history_generation", "history_epoch"]
    )
    # To forget what is over without reading what is not.
    op.drop_index("ix_writer_requests_item_id", table_name="writer_requests")
    op.create_index("ix_writer_requests_item_kind", "writer_requests", ["item_id", "kind", "created_ns"])
    op.create_index("ix_writer_requests_retired", "writer_requests", ["retired", "answered_ns"])
    op.create_index("ix_writer_requests_job_id", "writer_requests", ["job_id"])
    op.create_index("ix_jobs_ended_ns", "jobs", ["ended_ns"])


def _place_known_points(connection: sa.Connection) -> None:
    points = sa.table(
        "recovery_points",
        *(sa.column(name) for name in ("item_id", "cut", "time_ns", "found_ns", "document", *_COLUMNS)),
    )
    found = connection.execute(
        sa.select(points.c.item_id, points.c.cut, points.c.time_ns, points.c.found_ns, points.c.document)
    )
    placed = []
    for item, cut, time_ns, found_ns, document in found:
        disks = json.loads(document)["disks"]
        place = sum(disk["generation"] for disk in disks), sum(disk["epoch"] for disk in disks)
        placed.append((item, place, found_ns, time_ns, cut))
    before_ns: dict[str, int] = {}
    for item, (generation, epoch), found_ns, time_ns, cut in sorted(placed):
        earliest_ns = before_ns.get(item, 0)
        believed = earliest_ns <= time_ns <= found_ns
        before_ns[item] = time_ns if believed else max(earliest_ns, found_ns)
        connection.execute(
            sa.update(points)
            .where(points.c.item_id == item, points.c.cut == cut)
            .values(history_generation=generation, history_epoch=epoch, counted_ns=before_ns[item])
        )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
