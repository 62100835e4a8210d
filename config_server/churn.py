"""How fast protected disks change, over the last minute, and what the servers of a process server have changed within a day.

Called by ``observations.py``, which hears it, and by the reconciler's alerts. The hours of a day are ``churn_history.py``'s.

Agents report a counter that begins at 0 when the agent starts. It is looked at once a minute only, so that an observation costs no
further write: the counter loses nothing in between, and where it begins anew the newest report before that tells where it stood.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Float, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.alert_tables import DiskChurnRow
from config_server.churn_history import HOUR_NS, MOST_BYTES
from config_server.core.age import at_least_s
from config_server.tables import ChurnHourRow, ItemDiskRow, ProtectedItemRow
from replication.control_plane import DiskObservation

SAMPLE_S: Final = 60.0
DAY_HOURS: Final = 24


async def follow_churn(
    session: AsyncSession,
    item_id: str,
    before: DiskObservation | None,
    now: DiskObservation,
    ages: Ages,
    now_ns: int,
) -> None:
    """Look at what a disk has changed since ``before``, its report before this one."""
    row = await session.get(DiskChurnRow, (item_id, now.disk))
    if row is None:
        session.add(DiskChurnRow(item_id=item_id, disk_id=now.disk, counted_bytes=now.changed_bytes, counted_ns=now_ns))
        return
    if before is not None and now.changed_bytes < before.changed_bytes:
        # The agent was started again: what it had counted stays to be added.
        row.counted_bytes = max(-MOST_BYTES, row.counted_bytes - before.changed_bytes)
    since_s = at_least_s(ages.of("churn", f"{item_id}/{now.disk}", row.counted_ns)) or 0.0
    if since_s < SAMPLE_S:
        return
    row.rate_bytes_per_s = min(MOST_BYTES, max(0, now.changed_bytes - row.counted_bytes)) / since_s
    row.counted_bytes, row.counted_ns = now.changed_bytes, now_ns


async def churn_of_day(session: AsyncSession, now_ns: int) -> dict[str | None, int]:
    """Bytes that the servers of each process server have changed within a day, by the process server that they are assigned to now.

    Summed as floating-point numbers: an agent that lies shall not make the sum overflow.
    """
    this_hour = now_ns // HOUR_NS
    found = await session.execute(
        select(ProtectedItemRow.process_server_id, func.sum(cast(ChurnHourRow.changed_bytes, Float)))
        .join(ItemDiskRow, ItemDiskRow.item_id == ProtectedItemRow.id)
        .join(ChurnHourRow, ChurnHourRow.disk_id == ItemDiskRow.disk_id)
        .where(ProtectedItemRow.ended_ns.is_(None), ChurnHourRow.hour.between(this_hour - DAY_HOURS + 1, this_hour))
        .group_by(ProtectedItemRow.process_server_id)
    )
    return {server: max(0, int(changed_bytes)) for server, changed_bytes in found}
