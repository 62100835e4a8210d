"""Processor and memory of process servers as alerts judge them: a mean over about a minute. Called by ``observations.py`` and the alerts.

A heartbeat tells of the few seconds since the one before it. A machine that is busy all the time has moments in which it is not: judged
by these, it would never have been busy for a quarter of an hour.
"""

from __future__ import annotations

import math
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.alert_tables import ProcessServerLoadRow
from config_server.core.age import at_least_s
from replication.control_plane import ProcessServerObservation

MEAN_OVER_S: Final = 60.0
FORGOTTEN_AFTER_S: Final = 300.0


async def follow_load(
    session: AsyncSession, process_server_id: str, seen: ProcessServerObservation, ages: Ages, now_ns: int
) -> None:
    """Let a heartbeat count in the means by the time since the one before it; after a silence they begin anew."""
    row = await session.get(ProcessServerLoadRow, process_server_id)
    if row is None:
        row = ProcessServerLoadRow(process_server_id=process_server_id, cpu_fraction=0.0, memory_fraction=0.0)
        session.add(row)
        weight = 1.0
    else:
        since_s = at_least_s(ages.of("load", process_server_id, row.measured_ns)) or 0.0
        weight = 1.0 if since_s > FORGOTTEN_AFTER_S else 1.0 - math.exp(-since_s / MEAN_OVER_S)
    row.cpu_fraction += (seen.cpu_fraction - row.cpu_fraction) * weight
    row.memory_fraction += (seen.memory_fraction - row.memory_fraction) * weight
    row.measured_ns = now_ns
