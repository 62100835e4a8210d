"""Everything that operators see of a protected item, from its rows. Called by ``api/protected_items.py``."""

from __future__ import annotations

from typing import cast

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.agent_limits import in_force
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.forecast import SeedingDisk, seeding_forecast
from config_server.core.job import JobKind
from config_server.core.protected_item import ENDED_STATES, State
from config_server.item_health import assess_item, disk_facts
from config_server.items import item_disks, observation_of
from config_server.job_documents import MigrationContext
from config_server.jobs import context_of, newest_job, open_jobs
from config_server.operator_plane import (
    DiskStatus,
    HealthCondition,
    HealthLevel,
    ItemStatus,
    ProcessServerReference,
    timestamp,
)
from config_server.point_history import newest_good_point
from config_server.tables import (
    DiskRow,
    ItemDiskRow,
    MachineRow,
    PolicyRow,
    ProcessServerRow,
    ProtectedItemRow,
    RecoveryPointRow,
)


def health_level(name: str) -> HealthLevel:
    return cast("HealthLevel", name.lower())


def seeding_disk(row: ItemDiskRow) -> SeedingDisk:
    return SeedingDisk(row.size_bytes, observation_of(row), row.seeded_ns is not None)


async def status_of(
    session: AsyncSession,
    item: ProtectedItemRow,
    heartbeat: HeartbeatSettings,
    store_problem: str | None,
    ages: Ages,
    now_ns: int,
) -> ItemStatus:
    """The item at this moment. Lags are the worst of its disks and include the time since they were reported.

    Of an item that has ended no disk is observed: what its agent said last is no longer so.
    """
    ended = State(item.state) in ENDED_STATES
    machine = await session.get_one(MachineRow, item.machine_id)
    policy = await session.get_one(PolicyRow, item.policy_id)
    verdict = await assess_item(session, item, heartbeat, store_problem, ages, now_ns)
    rows = await item_disks(session, item.id)
    disks = [await _disk_status(session, row, ages, item.state if ended else None) for row in rows]
    forecast = None if ended else seeding_forecast([seeding_disk(row) for row in rows])
    reported_etas = [disk.observation.eta_s for disk in disks if disk.observation is not None]
    known_etas = [eta_s for eta_s in reported_etas if eta_s is not None]
    points, suspects, newest_ns = await _points(session, item.id)
    migration = await newest_job(session, item.id, JobKind.MIGRATE)
    context = None if migration is None else context_of(migration, MigrationContext)
    return ItemStatus(
        id=item.id,
        server=machine.hostname,
        server_id=machine.id,
        state=item.state,
        reason=item.reason,
        state_since_at=timestamp(item.state_since_ns),
        policy=policy.name,
        process_server=await _process_server(session, item),
        health=None if ended else health_level(verdict.health.name),
        going=verdict.going.value,
        conditions=[
            HealthCondition(
                code=condition.code,
                health=health_level(condition.health.name),
                message=condition.message,
                remedy=condition.remedy,
            )
            for condition in verdict.conditions
        ],
        fraction=None if forecast is None else forecast.fraction,
        done_bytes=None if forecast is None else forecast.done_bytes,
        total_bytes=None if forecast is None else forecast.total_bytes,
        rate_bytes_per_s=None if forecast is None else forecast.rate_bytes_per_s,
        eta_s=max(known_etas) if known_etas else None if forecast is None else forecast.eta_s,
        replication_lag_s=_worst([disk.replication_lag_s for disk in disks]),
        rpo_lag_s=_worst([disk.rpo_lag_s for disk in disks]),
        recovery_points=points,
        suspect_points=suspects,
        newest_point_at=None if newest_ns is None else timestamp(newest_ns),
        last_drill_at=None if item.drill_ns is None else timestamp(item.drill_ns),
        cutover=None if context is None else context.seen_since or context.cutover,
        disks=disks,
        open_jobs=[job.id for job in await open_jobs(session, item.id)],
        agent_limits=in_force(machine),
    )


def _worst(lags_s: list[float | None]) -> float | None:
    """The longest; None if one of them is not known."""
    known = [lag_s for lag_s in lags_s if lag_s is not None]
    return max(known) if known and len(known) == len(lags_s) else None


async def _disk_status(session: AsyncSession, row: ItemDiskRow, ages: Ages, ended: str | None) -> DiskStatus:
    """``ended``: the state in which the item has ended."""
    disk = await session.get_one(DiskRow, row.disk_id)
    if ended is not None:
        return DiskStatus(
            disk=row.disk_id,
            path=disk.path,
            size_bytes=row.size_bytes,
            phase=ended,
            fraction=None,
            replication_lag_s=None,
            rpo_lag_s=None,
            observation_age_s=None,
            observation=None,
        )
    facts, observed = disk_facts(row, ages), observation_of(row)
    return DiskStatus(
        disk=row.disk_id,
        path=disk.path,
        size_bytes=row.size_bytes,
        phase="waiting" if observed is None else observed.phase,
        fraction=seeding_forecast([seeding_disk(row)]).fraction,
        replication_lag_s=facts.replication_lag_s,
        rpo_lag_s=facts.rpo_lag_s,
        observation_age_s=facts.observation_age_s,
        observation=observed,
    )


async def _process_server(session: AsyncSession, item: ProtectedItemRow) -> ProcessServerReference | None:
    if item.process_server_id is None:
        return None
    server = await session.get_one(ProcessServerRow, item.process_server_id)
    return ProcessServerReference(id=server.id, hostname=server.hostname, url=server.service_url)


async def _points(session: AsyncSession, item_id: str) -> tuple[int, int, int | None]:
    """How many, how many of them suspect, and when the newest good one was cut."""
    rows = await session.execute(
        select(RecoveryPointRow.suspect.is_not(None), func.count())
        .where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.state == "available")
        .group_by(RecoveryPointRow.suspect.is_not(None))
    )
    count = suspects = 0
    for suspect, number in rows:
        count += number
        if suspect:
            suspects = number
    newest = await newest_good_point(session, item_id)
    return count, suspects, None if newest is None else newest.counted_ns
