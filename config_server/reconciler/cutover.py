"""Migrations: from the agent's claim of the disks to the proof of identity. Called by ``reconciler/loop.py`` with a job that is open.

``core/cutover.py`` decides; here its decisions are written down. The agent names the final cut; requests are keyed by job and cut, times
are kept in the job's context: a restart at any point goes on from there. Nothing here deletes or changes a replica or recovery point; a
final disk that differs from its source makes the points of its disk suspect, in the transaction in which the job fails.
"""

from __future__ import annotations

from typing import Final, Literal, cast

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import steps
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.cutover import (
    CutoverFacts,
    Failed,
    MakeFinalDisks,
    Proved,
    ProveIdentity,
    WaitForFinalPoint,
    WaitForSource,
    Work,
    next_step,
)
from config_server.core.job import JobState
from config_server.core.protected_item import MigrationFailed, MigrationSucceeded
from config_server.divergences import note_divergences
from config_server.events import SYSTEM
from config_server.items import agent_age, apply_event, item_disks
from config_server.job_documents import JobProblem, MigrationContext, MigrationParameters, MigrationResult
from config_server.jobs import context_of, end_job, keep_context, parameters_of, set_progress, set_step
from config_server.made_disks import FINAL, keep_made, made_disks, mark_unwanted, plan_disks, results_of
from config_server.tables import JobRow, MachineRow, MadeDiskRow, ProtectedItemRow, RecoveryPointRow, WriterRequestRow
from config_server.tracking_losses import mark_points
from config_server.writer_requests import answer_of, ask_writer, make_disks_key, request_for, request_id
from replication.store_documents import HashDisk, MadeDisk, MakeDiskItem, MakeDisks, RecoveryPoint

OVERDUE_S: Final = 120.0
"""A final point that is not there so long after its epoch was sealed is worth a look."""


async def follow_migration(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, heartbeat: HeartbeatSettings, ages: Ages, now_ns: int
) -> None:
    """One step of a migration, as far as it goes now."""
    facts = await _facts(session, job, item, heartbeat, ages)
    context = context_of(job, MigrationContext)
    if facts.point is not None and context.point_ns is None:
        context = context.model_copy(update={"point_ns": now_ns})
        keep_context(job, context)
    match next_step(facts):
        case WaitForSource(message=message, operator=operator):
            set_step(job, now_ns, steps.WAITING_FOR_SOURCE, message, waiting_for_input=operator)
        case WaitForFinalPoint(message=message, done_bytes=done, total_bytes=total):
            sealed_s = 0.0 if context.sealed_ns is None else (now_ns - context.sealed_ns) / 1e9
            if sealed_s > OVERDUE_S:
                message += f"; it was sealed {sealed_s:.0f} s ago: see that process server and replica writer run"
            set_step(job, now_ns, steps.SHIPPING, message)
            set_progress(job, now_ns, done, total)
        case MakeFinalDisks(message=message, done_bytes=done, total_bytes=total):
            set_step(job, now_ns, steps.MAKING_DISKS, message)
            set_progress(job, now_ns, done, total)
            await _ask_for_disks(session, job, item, _final_cut(context), now_ns)
        case ProveIdentity(made=made, message=message, done_bytes=done, total_bytes=total):
            if context.usable_ns is None:
                keep_context(job, context.model_copy(update={"usable_ns": now_ns}))
            await keep_made(session, job, _final_cut(context), list(made), now_ns)
            set_step(job, now_ns, steps.HASHING, message)
            set_progress(job, now_ns, done, total)
            await _ask_for_hashes(session, job, item, _final_cut(context), made, now_ns)
        case Proved(made=made, sha256=sha256):
            for row in await made_disks(session, job_id=job.id, cut=_final_cut(context)):
                row.sha256 = sha256.get(row.disk_id)
            result = await _result(session, job, context, now_ns)
            apply_event(session, item, MigrationSucceeded(), SYSTEM, now_ns)
            message = f"{len(made)} disks, each proved identical to its source"
            end_job(session, job, item, JobState.SUCCEEDED, now_ns, result=result, message=message)
        case Failed(code=code, message=message, hint=hint, source_released=released, divergent=divergent):
            keep_context(job, context.model_copy(update={"released": released}))
            if divergent:
                note_divergences(session, item, job, divergent, now_ns)
                await session.flush()
                await mark_points(session, item, now_ns)
            apply_event(session, item, MigrationFailed(message), SYSTEM, now_ns)
            problem = JobProblem(code=code, message=message, hint=hint)
            end_job(session, job, item, JobState.FAILED, now_ns, problem=problem)


async def _facts(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, heartbeat: HeartbeatSettings, ages: Ages
) -> CutoverFacts:
    machine = await session.get_one(MachineRow, item.machine_id)
    cutover = context_of(job, MigrationContext).cutover
    point = make = None
    planned: list[MadeDiskRow] = []
    if cutover is not None and cutover.cut is not None:
        point = await session.get(RecoveryPointRow, (item.id, cutover.cut))
        make = await request_for(session, make_disks_key(job.id, cutover.cut))
        planned = await made_disks(session, job_id=job.id, cut=cutover.cut)
    hashes = {}
    for row in planned:
        asked = await request_for(session, _hash_key(job, row.cut, row.name))
        if asked is not None:
            hashes[row.name] = _work(asked)
    return CutoverFacts(
        mode=parameters_of(job, MigrationParameters).mode,
        disks=[disk.disk_id for disk in await item_disks(session, item.id)],
        agent_silent=(heard := agent_age(machine, ages)) is None or heard.exceeds(heartbeat.agent_timeout_s),
        cutover=cutover,
        point=None if point is None else RecoveryPoint.decode(point.document.encode()),
        planned=[MakeDiskItem(disk=row.disk_id, name=row.name) for row in planned],
        make=None if make is None else _work(make),
        hashes=hashes,
    )


def _work(row: WriterRequestRow) -> Work:
    state = cast("Literal['new', 'put', 'succeeded', 'failed']", row.state)
    return Work(state, answer_of(row), row.problem)


def _final_cut(context: MigrationContext) -> str:
    if context.cutover is None or context.cutover.cut is None:
        raise AssertionError("the decision to go on rests on the final cut")
    return context.cutover.cut


def _hash_key(job: JobRow, cut: str, name: str) -> str:
    return f"hash-disk/{job.id}/{cut}/{name}"


async def _ask_for_disks(session: AsyncSession, job: JobRow, item: ProtectedItemRow, cut: str, now_ns: int) -> None:
    earlier = [row for row in await made_disks(session, job_id=job.id) if row.cut != cut]
    await mark_unwanted(session, earlier)
    if any(row.unwanted for row in await made_disks(session, item_id=item.id)):
        set_step(job, now_ns, steps.MAKING_DISKS, "the disks of an earlier attempt are deleted first")
        return
    key = make_disks_key(job.id, cut)
    disks = await plan_disks(session, item, job, cut, FINAL)
    request = MakeDisks(request=request_id(key), item=item.id, cut=cut, disks=disks)
    await ask_writer(session, key, request, now_ns, item_id=item.id, job_id=job.id)


async def _ask_for_hashes(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, cut: str, made: tuple[MadeDisk, ...], now_ns: int
) -> None:
    for disk in made:
        key = _hash_key(job, cut, disk.name)
        request = HashDisk(request=request_id(key), name=disk.name, size_bytes=disk.size_bytes)
        await ask_writer(session, key, request, now_ns, item_id=item.id, job_id=job.id)


async def _result(session: AsyncSession, job: JobRow, context: MigrationContext, now_ns: int) -> MigrationResult:
    begun_ns = context.claimed_ns or job.created_ns
    return MigrationResult(
        cut=_final_cut(context),
        mode=parameters_of(job, MigrationParameters).mode,
        identity="proved",
        disks=await results_of(session, job, _final_cut(context)),
        seconds_to_usable=((context.usable_ns or now_ns) - begun_ns) / 1e9,
        seconds_to_proof=(now_ns - begun_ns) / 1e9,
    )
