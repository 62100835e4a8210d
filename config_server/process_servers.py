"""Process servers as the core sees them: alive, draining, how loaded. Called by the verbs, readiness, health and the reconciler."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.age import Age
from config_server.core.health import ProcessServerFacts
from config_server.core.readiness import ProcessServerReadiness
from config_server.tables import ProcessServerRow, ProtectedItemRow
from replication.control_plane import ProcessServerAddress, ProcessServerObservation
from replication.surroundings import MAX_TRIED

HEARD: Final = "process-server-heard"


def heartbeat_of(row: ProcessServerRow) -> ProcessServerObservation | None:
    return None if row.observation is None else ProcessServerObservation.decode(row.observation.encode())


def heard_age(row: ProcessServerRow, ages: Ages) -> Age | None:
    """Since its newest heartbeat; None: there was none."""
    return ages.of(HEARD, row.id, row.heard_ns)


async def item_counts(session: AsyncSession) -> dict[str, int]:
    """Active items by process server."""
    rows = await session.execute(
        select(ProtectedItemRow.process_server_id, func.count())
        .where(ProtectedItemRow.ended_ns.is_(None), ProtectedItemRow.process_server_id.is_not(None))
        .group_by(ProtectedItemRow.process_server_id)
    )
    return {str(server): count for server, count in rows}


async def readiness_of_all(
    session: AsyncSession, heartbeat: HeartbeatSettings, ages: Ages
) -> list[ProcessServerReadiness]:
    found = []
    for row in await session.scalars(select(ProcessServerRow).order_by(ProcessServerRow.hostname)):
        observed = heartbeat_of(row)
        problem = None if observed is None else observed.upload_problem
        found.append(
            ProcessServerReadiness(
                name=row.hostname,
                url=row.service_url,
                heard_age=heard_age(row, ages),
                timeout_s=heartbeat.process_server_timeout_s,
                draining=row.draining,
                spool_free_fraction=None if observed is None else observed.spool_free_fraction,
                upload_problem=None if problem is None else problem.message,
            )
        )
    return found


async def could_take(session: AsyncSession, heartbeat: HeartbeatSettings, ages: Ages) -> list[ProcessServerAddress]:
    """Those on which disks could be placed now, as agents reach them; at most as many as an agent tries."""
    rows = await session.scalars(
        select(ProcessServerRow).where(ProcessServerRow.draining.is_(False)).order_by(ProcessServerRow.hostname)
    )
    heard = [(row, heard_age(row, ages)) for row in rows]
    return [
        ProcessServerAddress(identifier=row.id, url=row.service_url)
        for row, age in heard
        if age is not None and age.is_within(heartbeat.process_server_timeout_s)
    ][:MAX_TRIED]


def health_facts(row: ProcessServerRow, heartbeat: HeartbeatSettings, ages: Ages) -> ProcessServerFacts:
    observed = heartbeat_of(row)
    problem = None if observed is None else observed.upload_problem
    return ProcessServerFacts(
        name=row.hostname,
        heard_age=heard_age(row, ages),
        timeout_s=heartbeat.process_server_timeout_s,
        spool_free_fraction=None if observed is None else observed.spool_free_fraction,
        backlog_age_s=0.0 if observed is None else observed.upload_backlog_age_s,
        upload_problem=None if problem is None else problem.message,
    )
