"""Test migrations and their clean-up. Called by ``reconciler/loop.py`` with a job that is open.

Steps of a test: its recovery point (the agent cuts one now, or it exists already) → disks are made from it → the job has succeeded and
the item waits for its clean-up. Clean-up deletes the disks; only then the drill counts. Replication goes on meanwhile.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import steps
from config_server.ages import Ages
from config_server.core.job import JobKind, JobState
from config_server.core.protected_item import (
    CleanupFailed,
    CleanupSucceeded,
    State,
    TestDisksMade,
    TestMigrationFailed,
    TestPointChosen,
)
from config_server.events import SYSTEM, record_event
from config_server.items import apply_event, observed_progress
from config_server.job_documents import JobProblem, TestMigrationContext, TestMigrationResult
from config_server.jobs import context_of, end_job, keep_context, newest_job, set_progress, set_step
from config_server.made_disks import TEST, keep_made, plan_disks, results_of
from config_server.point_history import DELETED, LOST
from config_server.point_problems import follow_waiting
from config_server.reconciler.made_disk_removal import remove_unwanted
from config_server.reconciler.replication_jobs import point_overdue
from config_server.tables import JobRow, ProtectedItemRow, RecoveryPointRow
from config_server.writer_requests import (
    SUCCEEDED,
    answer_of,
    ask_writer,
    failure_of,
    make_disks_key,
    request_id,
)
from replication.store_documents import MakeDisks, RecoveryPoint


async def follow_test_migration(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, ages: Ages, now_ns: int, timeout_s: float
) -> None:
    """One step of a test migration, as far as it goes now."""
    cut = context_of(job, TestMigrationContext).cut
    point = await session.get(RecoveryPointRow, (item.id, cut or job.id))
    if point is None or point.state in (DELETED, LOST):
        gone = JobProblem(code="point-gone", message=f"the recovery point {cut} is gone", hint="choose another point")
        problem: JobProblem | None = gone
        if cut is None:
            refused = await follow_waiting(session, job, item, "crash", now_ns)
            problem = refused or point_overdue(job, item, ages, timeout_s)
        if problem is not None:
            _fail(session, job, item, problem, now_ns)
        return
    if cut is None:
        keep_context(job, TestMigrationContext(cut=point.cut))
    if State(item.state) is State.TEST_PENDING:
        apply_event(session, item, TestPointChosen(), SYSTEM, now_ns)
    set_step(job, now_ns, steps.MAKING_DISKS)
    await _make(session, job, item, point, now_ns)


async def _make(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, point: RecoveryPointRow, now_ns: int
) -> None:
    key = make_disks_key(job.id, point.cut)
    planned = await plan_disks(session, item, job, point.cut, TEST)
    in_point = {disk.disk for disk in RecoveryPoint.decode(point.document.encode()).disks}
    missing = sorted({disk.disk for disk in planned} - in_point)
    if missing:
        message = f"the recovery point {point.cut} lacks disk {missing[0]}"
        _fail(session, job, item, JobProblem(code="incomplete-point", message=message), now_ns)
        return
    request = MakeDisks(request=request_id(key), item=item.id, cut=point.cut, disks=planned)
    asked = await ask_writer(session, key, request, now_ns, item_id=item.id, job_id=job.id)
    answer, failure = answer_of(asked), failure_of(asked)
    if failure is not None:
        problem = JobProblem(code=failure.code, message=failure.message, hint=failure.hint)
        _fail(session, job, item, problem, now_ns)
        return
    if answer is not None:
        set_progress(job, now_ns, answer.done_bytes, answer.total_bytes)
    if asked.state != SUCCEEDED or answer is None:
        set_step(job, now_ns, steps.MAKING_DISKS, f"an answer was refused: {asked.problem}" if asked.problem else "")
        return
    await keep_made(session, job, point.cut, answer.disks, now_ns)
    disks = await results_of(session, job, point.cut)
    if {disk.disk for disk in disks} != {disk.disk for disk in planned}:
        message = "the replica writer did not make every disk under its planned name"
        _fail(session, job, item, JobProblem(code="test-disks", message=message), now_ns)
        return
    result = TestMigrationResult(
        cut=point.cut,
        time_ns=point.time_ns,  # by the source's own clock, against which its commits are told
        consistency="app" if point.consistency == "app" else "crash",
        disks=disks,
    )
    apply_event(session, item, TestDisksMade(), SYSTEM, now_ns)
    end_job(session, job, item, JobState.SUCCEEDED, now_ns, result=result, message="try the disks, then clean up")


def _fail(session: AsyncSession, job: JobRow, item: ProtectedItemRow, problem: JobProblem, now_ns: int) -> None:
    apply_event(session, item, TestMigrationFailed(problem.message), SYSTEM, now_ns)
    end_job(session, job, item, JobState.FAILED, now_ns, problem=problem)


async def follow_clean_up(session: AsyncSession, job: JobRow, item: ProtectedItemRow, now_ns: int) -> None:
    """Ends when the writer has deleted every test disk; a drill that had succeeded counts from then."""
    removal = await remove_unwanted(session, item.id, now_ns, asked_since_ns=job.created_ns)
    if removal.problem is not None:
        problem = JobProblem(code=removal.problem.code, message=removal.problem.message, hint=removal.problem.hint)
        apply_event(session, item, CleanupFailed(problem.message), SYSTEM, now_ns)
        end_job(session, job, item, JobState.FAILED, now_ns, problem=problem)
        return
    if removal.left:
        return
    progress, _ = await observed_progress(session, item.id)
    apply_event(session, item, CleanupSucceeded(progress, item.paused), SYSTEM, now_ns)
    tested = await newest_job(session, item.id, JobKind.TEST_MIGRATE)
    if tested is not None and tested.state == JobState.SUCCEEDED.value:
        item.drill_ns, item.drill_cut = now_ns, context_of(tested, TestMigrationContext).cut
        record_event(
            session,
            now_ns,
            SYSTEM,
            "drill-counted",
            f"the test migration from {item.drill_cut} is done and cleaned up",
            machine_id=item.machine_id,
            item_id=item.id,
            job_id=tested.id,
        )
    end_job(session, job, item, JobState.SUCCEEDED, now_ns, message="the test disks are deleted")
