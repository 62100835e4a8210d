"""How much the protected disks change: a rate over the last minute, and a durable figure for a day. Called by ``observations.py``, which
hears it, and by the reconciler's alerts.

Agents report a counter that begins at 0 when the agent starts. It is looked at once a minute only, so that an observation costs no
further write: the counter loses nothing in between, and where it begins anew the newest report before that tells where it stood.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Float, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.alert_tables import DiskChurnRow, ItemChurnHourRow
from config_server.core.age import at_least_s
from config_server.tables import ProtectedItemRow
from replication.control_plane import DiskObservation

SAMPLE_S: Final = 60.0
DAY_HOURS: Final = 24
HOURS_KEPT: Final = 30 * DAY_HOURS
MOST_BYTES: Final = 2**50
"""More than any disk changes between two looks: an agent that lies shall not make sums overflow."""
HOUR_NS: Final = 3600 * 10**9


def hour_of(now_ns: int) -> int:
    return now_ns // HOUR_NS


async def follow_churn(
    session: AsyncSession,
    item_id: str,
    before: DiskObservation | None,
    now: DiskObservation,
    ages: Ages,
    now_ns: int,
) -> None:
    """Count what a disk has changed since ``before``, its report before this one."""
    row = await session.get(DiskChurnRow, (item_id, now.disk))
    if row is None:
        row = DiskChurnRow(item_id=item_id, disk_id=now.disk, hour=hour_of(now_ns), hour_bytes=0)
        row.counted_bytes, row.counted_ns = now.changed_bytes, now_ns
        session.add(row)
        return
    if before is not None and now.changed_bytes < before.changed_bytes:
        # The agent was started again: what it had counted stays to be added.
        row.counted_bytes = max(-MOST_BYTES, row.counted_bytes - before.changed_bytes)
    since_s = at_least_s(ages.of("churn", f"{item_id}/{now.disk}", row.counted_ns)) or 0.0
    if since_s < SAMPLE_S:
        return
    changed_bytes = min(MOST_BYTES, max(0, now.changed_bytes - row.counted_bytes))
    if row.hour != hour_of(now_ns):
        await _close_hour(session, row)
        row.hour, row.hour_bytes = hour_of(now_ns), 0
    row.hour_bytes += changed_bytes
    row.rate_bytes_per_s = changed_bytes / since_s
    row.counted_bytes, row.counted_ns = now.changed_bytes, now_ns


async def _close_hour(session: AsyncSession, row: DiskChurnRow) -> None:
    known = await session.get(ItemChurnHourRow, (row.item_id, row.disk_id, row.hour))
    if known is not None:
        known.changed_bytes += row.hour_bytes  # the clock was set back into an hour that was over
    else:
        session.add(
            ItemChurnHourRow(item_id=row.item_id, disk_id=row.disk_id, hour=row.hour, changed_bytes=row.hour_bytes)
        )


async def churn_of_day(session: AsyncSession, now_ns: int) -> dict[str | None, int]:
    """Bytes that the servers of each process server have changed within a day, by the process server that they are assigned to now."""
    this_hour = hour_of(now_ns)
    total: dict[str | None, int] = {}
    for row, column in ((ItemChurnHourRow, ItemChurnHourRow.changed_bytes), (DiskChurnRow, DiskChurnRow.hour_bytes)):
        found = await session.execute(
            select(ProtectedItemRow.process_server_id, func.sum(cast(column, Float)))
            .join(row, row.item_id == ProtectedItemRow.id)
            .where(ProtectedItemRow.ended_ns.is_(None), row.hour.between(this_hour - DAY_HOURS + 1, this_hour))
            .group_by(ProtectedItemRow.process_server_id)
        )
        for server, changed_bytes in found:
            total[server] = total.get(server, 0) + int(changed_bytes)
    return total
