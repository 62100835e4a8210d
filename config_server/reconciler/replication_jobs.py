"""Jobs that end by replication itself: enabling, resync, a recovery point. Called by ``reconciler/loop.py`` with a job that is open.

Each function reads its facts anew and may be called any number of times.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import steps
from config_server.ages import Ages
from config_server.core.forecast import seeding_forecast
from config_server.core.job import JobState
from config_server.core.observation import SEEDED_PHASES
from config_server.core.protected_item import FAILED_STATES, State
from config_server.divergences import resent_generation
from config_server.item_status import seeding_disk
from config_server.items import item_disks, observation_of
from config_server.job_documents import JobProblem, RecoveryPointParameters, RecoveryPointResult, ResyncContext
from config_server.jobs import context_of, end_job, job_age, parameters_of, set_progress, set_step
from config_server.point_problems import follow_waiting
from config_server.tables import GenerationRow, JobRow, ProtectedItemRow, RecoveryPointRow

ABSORBED_AFTER_S: Final = 60.0
"""How long an agent has to ask for a generation because of an order, if it had another one on its way."""


async def follow_enabling(session: AsyncSession, job: JobRow, item: ProtectedItemRow, now_ns: int) -> None:
    """Ends when initial replication is over; a failure that the agent can recover from waits for input."""
    state = State(item.state)
    if item.seeded_ns is not None:
        end_job(session, job, item, JobState.SUCCEEDED, now_ns, message="initial replication is over")
        return
    if state is State.ENABLING:
        waiting = "the agent has not taken it up yet" if item.process_server_id else "no process server can take it yet"
        set_step(job, now_ns, steps.WAITING_FOR_AGENT, waiting)
        return
    failed = state in FAILED_STATES
    set_step(job, now_ns, steps.SEEDING, (item.reason or "") if failed else "", waiting_for_input=failed)
    forecast = seeding_forecast([seeding_disk(disk) for disk in await item_disks(session, item.id)])
    set_progress(
        job,
        now_ns,
        forecast.done_bytes,
        forecast.total_bytes,
        rate_bytes_per_s=forecast.rate_bytes_per_s,
        eta_s=forecast.eta_s,
    )


async def follow_resync(session: AsyncSession, job: JobRow, item: ProtectedItemRow, ages: Ages, now_ns: int) -> None:
    """Ends when every ordered disk replicates in a later generation than when it was ordered, or in the one that was about to begin; where
    the digests are distrusted, in one in which everything is sent.
    """
    context = context_of(job, ResyncContext)
    ordered = {order.disk for order in context.orders}
    distrusting = {order.disk for order in context.orders if order.distrust_digests}
    taken_up = await _taken_up(session, context)
    is_settled = job_age(job, ages).exceeds(ABSORBED_AFTER_S)
    done = total = finished = 0
    for disk in await item_disks(session, item.id):
        observed = observation_of(disk)
        if disk.disk_id not in ordered or observed is None:
            continue
        newest = context.generations.get(disk.disk_id, 0)
        # The agent had a newer generation on its way already, and asked for no other one: the order is fulfilled by that.
        absorbed = disk.disk_id not in taken_up and newest > context.observed.get(disk.disk_id, newest)
        if disk.disk_id in distrusting:
            # Another generation, whatever began it, rests on the digests. One that the agent had on its way already does as well.
            begun = await resent_generation(session, disk.disk_id, context.observed.get(disk.disk_id) or newest)
            later = begun is not None and (observed.generation or 0) >= begun
        else:
            later = (observed.generation or 0) > newest or (absorbed and is_settled and observed.generation == newest)
        total += observed.seeding_total_bytes or disk.size_bytes
        if later and observed.phase in SEEDED_PHASES:
            finished += 1
            done += observed.seeding_total_bytes or disk.size_bytes
        elif later:
            done += observed.seeding_done_bytes
    if finished == len(ordered):
        end_job(session, job, item, JobState.SUCCEEDED, now_ns, message=f"{finished} disks compared and repaired")
        return
    failed = State(item.state) in FAILED_STATES
    waiting = "" if taken_up == ordered else "the agent has not taken it up yet"
    if State(item.state) is State.PAUSED:
        waiting = "replication is paused: resume it"
    message = (item.reason or "") if failed else waiting
    set_step(job, now_ns, steps.RESYNCHRONIZING, message, waiting_for_input=failed)
    set_progress(job, now_ns, done, total)


async def _taken_up(session: AsyncSession, context: ResyncContext) -> set[str]:
    """The disks whose agent has asked for a generation because of the order: its reason carries the order's identifier."""
    found = set()
    for order in context.orders:
        rows = select(GenerationRow.generation).where(
            GenerationRow.disk_id == order.disk, GenerationRow.reason.contains(order.reason, autoescape=True)
        )
        if (await session.scalar(rows.limit(1))) is not None:
            found.add(order.disk)
    return found


async def follow_recovery_point(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, ages: Ages, now_ns: int, timeout_s: float
) -> None:
    """Ends when the point's record was found and verified; its cut is the job's identifier."""
    point = await session.get(RecoveryPointRow, (item.id, job.id))
    if point is not None:
        result = RecoveryPointResult(cut=point.cut, time_ns=point.counted_ns)
        end_job(session, job, item, JobState.SUCCEEDED, now_ns, result=result)
        return
    consistency = parameters_of(job, RecoveryPointParameters).consistency
    problem = await follow_waiting(session, job, item, consistency, now_ns) or point_overdue(job, item, ages, timeout_s)
    if problem is not None:
        end_job(session, job, item, JobState.FAILED, now_ns, problem=problem)


def point_overdue(job: JobRow, item: ProtectedItemRow, ages: Ages, timeout_s: float) -> JobProblem | None:
    """Why a job gives up waiting for a point, or None while it may go on."""
    if not job_age(job, ages).exceeds(timeout_s):
        return None
    return JobProblem(
        code="no-point",
        message=f"no recovery point came within {timeout_s:.0f} s; the item is in state {item.state}"
        + (f"; {job.message}" if job.message else ""),
        hint="see the item's health; an existing point can be used: latest-processed",
    )
