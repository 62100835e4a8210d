"""An item's health, from rows to facts to verdict. Called by ``item_status.py`` (shown), the reconciler (recorded) and its metrics."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.agent_limits import in_force
from config_server.ages import Ages
from config_server.certificate_ages import conditions_of
from config_server.config import HeartbeatSettings
from config_server.core.age import Age, at_least_s, known_s
from config_server.core.agent_limits import limit_reached
from config_server.core.health import DiskFacts, HealthFacts, Verdict, assess
from config_server.core.job import JobKind
from config_server.core.point_times import TOLERANCE_S
from config_server.core.protected_item import State
from config_server.divergences import differing_disks
from config_server.items import agent_age, item_disks, observation_of
from config_server.jobs import open_jobs
from config_server.point_history import AVAILABLE, LOST, newest_good_point
from config_server.point_problems import point_problem
from config_server.process_servers import health_facts
from config_server.resumptions import resumed_age_s
from config_server.source_watch import source_hold
from config_server.tables import (
    ItemDiskRow,
    MachineRow,
    PolicyRow,
    ProcessServerRow,
    ProtectedItemRow,
    RecoveryPointRow,
)
from config_server.writer_requests import refused_answer, writer_silence_s

WRONG_TIMES_SHOWN_S: Final = 86400.0


def disk_facts(row: ItemDiskRow, ages: Ages) -> DiskFacts:
    """A disk's newest observation with its ages."""
    which = f"{row.item_id}/{row.disk_id}"
    return DiskFacts(
        disk=row.disk_id,
        observation=observation_of(row),
        observation_age_s=known_s(observation_age(row, ages)),
        progress_age_s=at_least_s(ages.of("progress", which, row.progress_ns)) or 0.0,
        falling_behind_s=_backlog_growing_s(row, ages, which),
    )


def _backlog_growing_s(row: ItemDiskRow, ages: Ages, which: str) -> float | None:
    """From when the disk began to fall behind until its backlog was greatest."""
    since_s = at_least_s(ages.of("falling-behind", which, row.falling_behind_since_ns))
    peak_s = at_least_s(ages.of("backlog-peak", which, row.falling_behind_peak_ns))
    return None if since_s is None or peak_s is None else max(0.0, since_s - peak_s)


def observation_age(row: ItemDiskRow, ages: Ages) -> Age | None:
    return ages.of("observed", f"{row.item_id}/{row.disk_id}", row.observed_ns)


def _point_age_s(newest: RecoveryPointRow | None, ages: Ages) -> float | None:
    """Its cut was counted by this server's clock, whatever that said then; the age grows in any case from when it was first seen.

    By what it is counted as, too: a point that is found late may raise that (``point_history.py``). This is no new stamp, written since the
    last look, but another time of the same cut.
    """
    if newest is None:
        return None
    return at_least_s(ages.of("newest-point", f"{newest.item_id}/{newest.cut}/{newest.counted_ns}", newest.counted_ns))


async def _points_with_a_wrong_time(session: AsyncSession, item_id: str, now_ns: int) -> int:
    """How many of the points that were found within ``WRONG_TIMES_SHOWN_S`` carry a time that is not when they were cut."""
    found = await session.scalar(
        select(func.count())
        .select_from(RecoveryPointRow)
        .where(
            RecoveryPointRow.item_id == item_id,
            RecoveryPointRow.state == AVAILABLE,
            RecoveryPointRow.found_ns > now_ns - int(WRONG_TIMES_SHOWN_S * 1e9),
            func.abs(RecoveryPointRow.time_ns - RecoveryPointRow.counted_ns) > int(TOLERANCE_S * 1e9),
        )
    )
    return found or 0


async def assess_item(
    session: AsyncSession,
    item: ProtectedItemRow,
    heartbeat: HeartbeatSettings,
    store_problem: str | None,
    ages: Ages,
    now_ns: int,
) -> Verdict:
    """The verdict of this moment."""
    machine = await session.get_one(MachineRow, item.machine_id)
    policy = await session.get_one(PolicyRow, item.policy_id)
    server = None if item.process_server_id is None else await session.get(ProcessServerRow, item.process_server_id)
    newest = await newest_good_point(session, item.id)
    suspects = await session.scalar(
        select(func.count())
        .select_from(RecoveryPointRow)
        .where(
            RecoveryPointRow.item_id == item.id,
            RecoveryPointRow.state == "available",
            RecoveryPointRow.suspect.is_not(None),
        )
    )
    lost = await session.scalar(
        select(func.count())
        .select_from(RecoveryPointRow)
        .where(RecoveryPointRow.item_id == item.id, RecoveryPointRow.state == LOST)
    )
    certificates = await conditions_of(session, machine.id, f"the agent of {machine.hostname}", now_ns)
    if server is not None:
        certificates += await conditions_of(session, server.id, f"process server {server.hostname}", now_ns)
    return assess(
        HealthFacts(
            state=State(item.state),
            reason=item.reason,
            agent_age=agent_age(machine, ages),
            agent_timeout_s=heartbeat.agent_timeout_s,
            critical_after_s=heartbeat.critical_after_s,
            process_server=None if server is None else health_facts(server, heartbeat, ages),
            disks=[disk_facts(row, ages) for row in await item_disks(session, item.id)],
            seeded_age_s=at_least_s(ages.of("seeded", item.id, item.seeded_ns)),
            point_age_s=_point_age_s(newest, ages),
            suspect_points=suspects or 0,
            lost_points=lost or 0,
            rpo_threshold_s=policy.rpo_threshold_s,
            recovery_point_interval_s=policy.recovery_point_interval_s,
            store_problem=store_problem,
            paused=item.paused,
            resumed_age_s=await resumed_age_s(session, item.id, ages),
            writer_silence_s=await writer_silence_s(session, item.id, ages),
            answer_refused=await refused_answer(session, item.id),
            differing=await differing_disks(session, item.id),
            certificate_conditions=certificates,
            source_hold=await source_hold(session, item),
            placement_problem=item.placement_problem,
            wrong_times=await _points_with_a_wrong_time(session, item.id, now_ns),
            clock_offset_s=(machine.clock_offset_ns or 0) / 1e9,
            repair_ordered=bool(await open_jobs(session, item.id, JobKind.RESYNC)),
            point_problem=point_problem(machine, item, "crash"),
            limit_reached=limit_reached(in_force(machine)),
        )
    )
