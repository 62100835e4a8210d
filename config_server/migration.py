"""Operators' verbs on migration: test-migrate, clean up, migrate, cancel, complete. Called by the API.

Each is one transaction, as in ``protection.py``. No verb here deletes a replica or a recovery point but *complete* (P5).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import steps
from config_server.ages import Ages
from config_server.core.job import JobKind, JobState
from config_server.core.protected_item import (
    CleanupRequested,
    CompletionRequested,
    MigrationCancelled,
    MigrationRequested,
    State,
    TestMigrationRequested,
)
from config_server.desired import publish
from config_server.divergences import differing_disks
from config_server.events import Actor
from config_server.items import agent_age, apply_event, find_item, observed_progress
from config_server.job_documents import (
    LATEST,
    LATEST_PROCESSED,
    MigrationContext,
    MigrationParameters,
    NoContext,
    NoParameters,
    ResyncParameters,
    TestMigrationContext,
    TestMigrationParameters,
)
from config_server.jobs import context_of, end_job, keep_context, newest_job, open_jobs, start_job
from config_server.made_disks import TEST, made_disks, mark_unwanted, unwant_all_but_finished
from config_server.point_history import newest_good_point
from config_server.protection import begin_deletion, order_resync
from config_server.source_watch import require_held, source_hold
from config_server.tables import JobRow, MachineRow, ProtectedItemRow, RecoveryPointRow
from replication.control_plane import CutoverMode
from replication.errors import Conflict, NotFound, Unsupported

DIFFERED: Final = "a final disk differed from its source"
_MODES_TO_COME: Final[dict[CutoverMode, str]] = {
    "live-root-disk": "cutting over a live root disk comes with a later version",
    "writers-running": "cutting over with writers running comes with a later version",
}


async def test_migrate(
    session: AsyncSession, server: str, parameters: TestMigrationParameters, actor: Actor, now_ns: int
) -> JobRow:
    """Make disks from a recovery point, beside replication that goes on.

    :raises Conflict: if the item's state does not allow it, or there is no good recovery point.
    :raises NotFound: if the named point does not exist. :raises Refused: (as Conflict) for a suspect one without ``allow_suspect``.
    """
    item = await find_item(session, server)
    paused = item.paused
    if parameters.point == LATEST and not parameters.allow_suspect:
        await _require_no_difference(session, item, "test-migrate from a new point")
    apply_event(session, item, TestMigrationRequested(), actor, now_ns)
    cut = await _chosen_cut(session, item, parameters)
    if cut is None and paused:
        raise Conflict(
            "cannot cut a new recovery point while replication is paused", hint="resume, or test from an existing point"
        )
    job = await start_job(
        session,
        item,
        JobKind.TEST_MIGRATE,
        step=steps.WAITING_FOR_POINT,
        parameters=parameters,
        context=TestMigrationContext(cut=cut),
        actor=actor,
        now_ns=now_ns,
    )
    await publish(session, item.machine_id)
    return job


async def _chosen_cut(session: AsyncSession, item: ProtectedItemRow, parameters: TestMigrationParameters) -> str | None:
    """The cut to test from, or None for *latest*: the agent makes one."""
    if parameters.point == LATEST:
        return None
    if parameters.point == LATEST_PROCESSED:
        newest = await newest_good_point(session, item.id)
        if newest is None:
            raise Conflict("cannot test-migrate: there is no good recovery point yet", hint="wait for the first one")
        return newest.cut
    point = await session.get(RecoveryPointRow, (item.id, parameters.point))
    if point is None or point.state != "available":
        raise NotFound(
            f"cannot find the recovery point {parameters.point[:64]!r}", hint="`migratectl recovery-points` lists them"
        )
    if point.suspect is not None and not parameters.allow_suspect:
        raise Conflict(
            f"cannot test-migrate from {point.cut}: it may miss writes: {point.suspect}",
            hint="choose another point, or say that you accept it: --allow-suspect",
        )
    return point.cut


async def clean_up(session: AsyncSession, server: str, actor: Actor, now_ns: int) -> JobRow:
    """Delete the disks of the test migration; the drill counts after that.

    :raises Conflict: if there is no test migration to clean up.
    """
    item = await find_item(session, server)
    apply_event(session, item, CleanupRequested(), actor, now_ns)
    await mark_unwanted(session, await made_disks(session, item_id=item.id, purpose=TEST))
    return await start_job(
        session,
        item,
        JobKind.CLEAN_UP,
        step=steps.DELETING_DISKS,
        parameters=NoParameters(),
        context=NoContext(),
        actor=actor,
        now_ns=now_ns,
    )


async def migrate(session: AsyncSession, server: str, mode: CutoverMode, actor: Actor, now_ns: int) -> JobRow:
    """Cut over: final epoch, final disks, proof of identity. The agent names the final cut.

    :raises Unsupported: for a mode that this version cannot do. :raises Conflict: if the item's state does not allow it, or a replica is
        known to differ from its source.
    """
    if mode in _MODES_TO_COME:
        raise Unsupported(
            f"cannot migrate in mode {mode}: {_MODES_TO_COME[mode]}",
            hint="mode offline-disk: stop what uses the disks and unmount them; they are claimed until the end",
        )
    item = await find_item(session, server)
    await _require_no_difference(session, item, "migrate")
    apply_event(session, item, MigrationRequested(), actor, now_ns)
    await unwant_all_but_finished(session, item.id)  # of an earlier, failed migration
    waiting_points = await open_jobs(session, item.id, JobKind.RECOVERY_POINT)
    for job in waiting_points:
        end_job(session, job, item, JobState.CANCELLED, now_ns, actor=actor, message="the migration comes first")
    job = await start_job(
        session,
        item,
        JobKind.MIGRATE,
        step=steps.WAITING_FOR_SOURCE,
        parameters=MigrationParameters(mode=mode),
        context=MigrationContext(),
        actor=actor,
        now_ns=now_ns,
        message="the agent is told to claim the disks",
    )
    await publish(session, item.machine_id)
    return job


async def _require_no_difference(session: AsyncSession, item: ProtectedItemRow, verb: str) -> None:
    """:raises Conflict: while a replica is known to differ: what is made of it would differ again."""
    differing = await differing_disks(session, item.id)
    if not differing:
        return
    which = f"the replica of disk {', '.join(differing)} differs from its source and is not repaired yet"
    if State(item.state) is State.MIGRATION_FAILED:
        hint = "`migratectl cancel`: the source runs on and every block is sent anew; then migrate"
    elif await open_jobs(session, item.id, JobKind.RESYNC):
        hint = "wait for the end of the resync"
    else:
        hint = "`migratectl resync --distrust-digests`, and wait for its end"
    raise Conflict(f"cannot {verb}: {which}", disk=differing[0], hint=hint)


async def cancel(
    session: AsyncSession, server: str, *, delete_disks: bool, actor: Actor, now_ns: int
) -> ProtectedItemRow:
    """Go back to the source: it is released and replication goes on; replica and points are kept.

    The disks of an unfinished or failed migration are deleted; those of a finished one only with ``delete_disks``. Where a final disk was
    found to differ from its source, everything of that disk is sent anew.

    :raises Conflict: if there is no migration to cancel.
    """
    item = await find_item(session, server)
    finished = State(item.state) is State.MIGRATED
    differing = await differing_disks(session, item.id)
    if differing:
        order = ResyncParameters(disks=differing, reason=DIFFERED, distrust_digests=True)
        await order_resync(session, item, order, actor, now_ns, supersede=True)
    progress, _ = await observed_progress(session, item.id)
    apply_event(session, item, MigrationCancelled(progress), actor, now_ns)
    job = await newest_job(session, item.id, JobKind.MIGRATE)
    if job is None:
        raise NotFound("cannot find the migration to cancel")
    keep_context(job, context_of(job, MigrationContext).model_copy(update={"released": True}))
    if job.ended_ns is None:
        end_job(session, job, item, JobState.CANCELLED, now_ns, actor=actor, message="cancelled: the source runs on")
    if not finished or delete_disks:
        await mark_unwanted(session, await made_disks(session, job_id=job.id))
    await publish(session, item.machine_id)
    return item


async def complete(
    session: AsyncSession, server: str, *, discard_source_changes: bool, ages: Ages, actor: Actor, now_ns: int
) -> JobRow:
    """End a finished migration: replication stops, replica and points are deleted, the final disks stay.

    :raises Conflict: unless the item is migrated; without ``discard_source_changes`` also if the source was, or may have been, written to
        since the proof, or if its agent has been silent for hours.
    """
    item = await find_item(session, server)
    if not discard_source_changes:
        machine = await session.get_one(MachineRow, item.machine_id)
        require_held(await source_hold(session, item), agent_age(machine, ages))
    apply_event(session, item, CompletionRequested(), actor, now_ns)
    return await begin_deletion(session, item, JobKind.COMPLETE, actor, now_ns)
