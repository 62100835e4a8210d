"""How much each disk changed, hour by hour, for sizing: written with every observation, kept for fifteen days.

Called by ``observations.py`` (write), ``sizing.py`` (read) and ``reconciler/housekeeping.py`` (forget). Agents report counters, so that no
observation that is lost loses anything. Only what a disk changes while it replicates is counted: initial replication and resync re-read
what nobody wrote. An hour is this server's, at the end of the time that was observed.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.sizing import HourOfChurn
from config_server.core.target_disks import ChurnLimit
from config_server.tables import ChurnHourRow, DiskRow, MachineRow
from replication.control_plane import DiskObservation

HOUR_NS: Final = 3600 * 10**9
KEPT_HOURS: Final = 15 * 24
LONGEST_GAP_S: Final = 3600.0
"""After a longer silence nobody knows which hour it was: what changed meanwhile is left out."""
MOST_BYTES: Final = 2**50
"""More than any disk changes between two looks: an agent that lies shall not make its own figures overflow."""


async def note_churn(
    session: AsyncSession, before: DiskObservation | None, before_ns: int | None, now: DiskObservation, now_ns: int
) -> None:
    """Add what changed between two observations of a disk to the present hour."""
    if before is None or before_ns is None or (before.phase, now.phase) != ("replicating", "replicating"):
        return
    seconds = (now_ns - before_ns) / 1e9
    if before.generation != now.generation or not 0 < seconds <= LONGEST_GAP_S:
        return
    # A counter that went back was begun anew, with its agent.
    changed = now.changed_bytes - (before.changed_bytes if before.changed_bytes <= now.changed_bytes else 0)
    changed = min(MOST_BYTES, max(0, changed))
    row = await session.get(ChurnHourRow, (now.disk, now_ns // HOUR_NS))
    if row is None:
        row = ChurnHourRow(disk_id=now.disk, hour=now_ns // HOUR_NS, changed_bytes=0, observed_s=0.0)
        session.add(row)
    row.changed_bytes += changed
    row.observed_s += seconds


async def churn_by_hour(
    session: AsyncSession, since_hour: int, limits: Mapping[str, ChurnLimit], counted: Container[str]
) -> list[HourOfChurn]:
    """Of every disk that counts, in order of time; ``limits`` by disk."""
    rows = await session.execute(
        select(ChurnHourRow, MachineRow.hostname, DiskRow.path)
        .join(DiskRow, DiskRow.id == ChurnHourRow.disk_id)
        .join(MachineRow, MachineRow.id == DiskRow.machine_id)
        .where(ChurnHourRow.hour >= since_hour)
        .order_by(ChurnHourRow.hour, MachineRow.hostname, DiskRow.path)
    )
    return [
        HourOfChurn(hostname, path, row.hour, row.changed_bytes, row.observed_s, limits[row.disk_id])
        for row, hostname, path in rows
        if row.disk_id in counted
    ]


async def forget_old_churn(session: AsyncSession, now_ns: int) -> int:
    """Delete the oldest hour if it is older than is kept; returns how many rows it had."""
    oldest = await session.scalar(select(func.min(ChurnHourRow.hour)))
    if oldest is None or oldest >= now_ns // HOUR_NS - KEPT_HOURS:
        return 0
    count = await session.scalar(select(func.count()).where(ChurnHourRow.hour == oldest)) or 0
    await session.execute(
        delete(ChurnHourRow).where(ChurnHourRow.hour == oldest).execution_options(synchronize_session=False)
    )
    return count
