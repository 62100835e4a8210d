"""Ending an item: *stop replication* and *complete migration*. Called by ``reconciler/loop.py`` with a job that is open.

Steps: the agent has let go (or is not heard: a migrated source may be switched off) → generations are closed, so that nothing is
applied any more → test disks are deleted → the writer deletes replicas, points, segments and keys → the keys are erased here too.
The final disks of a migration stay. A failure leaves the item in its failed state, from where the operator asks again.
"""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import steps
from config_server.ages import Ages
from config_server.config import HeartbeatSettings
from config_server.core.job import JobState
from config_server.core.protected_item import DeletionFailed, ReplicasDeleted
from config_server.events import SYSTEM
from config_server.generations import DELETED, OPEN, close_generation, records_identity
from config_server.items import agent_age, apply_event, item_disks
from config_server.job_documents import DeletionContext, JobProblem
from config_server.jobs import context_of, end_job, set_progress, set_step
from config_server.reconciler.made_disk_removal import remove_unwanted
from config_server.tables import DiskRow, GenerationRow, JobRow, MachineRow, ProtectedItemRow, RecoveryPointRow
from config_server.writer_requests import SUCCEEDED, answer_of, ask_writer_anew, failure_of
from replication.control_plane import AgentObservation
from replication.store_documents import DeleteReplicas, WriterProblem


async def follow_deletion(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, heartbeat: HeartbeatSettings, ages: Ages, now_ns: int
) -> None:
    """One step, as far as it goes now."""
    if not await _agent_has_left(session, job, item, heartbeat, ages):
        set_step(job, now_ns, steps.WAITING_FOR_AGENT, "the agent is told to let go")
        return
    generations = list(
        await session.scalars(
            select(GenerationRow).where(GenerationRow.item_id == item.id).order_by(GenerationRow.generation)
        )
    )
    for row in generations:
        # One that the writer cannot close goes with its replica all the same.
        if row.state == OPEN and await close_generation(session, row, now_ns) is None and row.state == OPEN:
            set_step(job, now_ns, steps.CLOSING)
            return
    removal = await remove_unwanted(session, item.id, now_ns, asked_since_ns=job.created_ns)
    if removal.problem is not None:
        _fail(session, job, item, removal.problem, now_ns)
        return
    if removal.left:
        set_step(job, now_ns, steps.DELETING_DISKS)
        return
    await _delete_replicas(session, job, item, generations, now_ns)


async def _agent_has_left(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, heartbeat: HeartbeatSettings, ages: Ages
) -> bool:
    machine = await session.get_one(MachineRow, item.machine_id)
    silent = (heard := agent_age(machine, ages)) is None or heard.exceeds(heartbeat.agent_timeout_s)
    if silent or machine.observation is None:
        return True
    return AgentObservation.decode(machine.observation.encode()).revision >= context_of(job, DeletionContext).revision


async def _delete_replicas(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, generations: list[GenerationRow], now_ns: int
) -> None:
    set_step(job, now_ns, steps.DELETING_REPLICAS)
    disks = [disk.disk_id for disk in await item_disks(session, item.id)]
    if generations:
        asked = await ask_writer_anew(
            session,
            # Of these generations: after a restored backup the item may have begun others, which an earlier answer did not delete.
            f"delete-replicas/{item.id}/{records_identity(generations)}",
            lambda request: DeleteReplicas(request=request, item=item.id, disks=disks),
            now_ns,
            after_failure_before_ns=None,
            item_id=item.id,
            job_id=job.id,
        )
        answer, failure = answer_of(asked), failure_of(asked)
        if failure is not None:
            _fail(session, job, item, failure, now_ns)
            return
        if answer is not None:
            set_progress(job, now_ns, answer.done_bytes, answer.total_bytes)
        if asked.state != SUCCEEDED:
            return
    for row in generations:
        row.state, row.record = DELETED, None
    await session.execute(update(DiskRow).where(DiskRow.id.in_(disks)).values(digest_key=None))
    await session.execute(update(RecoveryPointRow).where(RecoveryPointRow.item_id == item.id).values(state="deleted"))
    apply_event(session, item, ReplicasDeleted(), SYSTEM, now_ns)
    end_job(session, job, item, JobState.SUCCEEDED, now_ns, message="replica, recovery points and keys are deleted")


def _fail(session: AsyncSession, job: JobRow, item: ProtectedItemRow, why: WriterProblem, now_ns: int) -> None:
    apply_event(session, item, DeletionFailed(why.message), SYSTEM, now_ns)
    problem = JobProblem(code=why.code, message=why.message, hint=why.hint)
    end_job(session, job, item, JobState.FAILED, now_ns, problem=problem)
