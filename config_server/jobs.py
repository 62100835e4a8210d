"""Job rows: creating, moving along, ending. Called by the verbs and the reconciler inside their transactions."""

from __future__ import annotations

import uuid
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.age import Age
from config_server.core.job import EXCLUSIVE_KINDS, OPEN_STATES, JobKind, JobState, next_job_state
from config_server.events import SYSTEM, Actor, record_event
from config_server.job_documents import JobProblem
from config_server.tables import JobRow, ProtectedItemRow
from replication.documents import Document
from replication.errors import BlockferryError, Conflict, NotFound

DocumentT = TypeVar("DocumentT", bound=Document)


def job_age(job: JobRow, ages: Ages) -> Age:
    """Since it was ordered."""
    age = ages.of("job", job.id, job.created_ns)
    if age is None:
        raise AssertionError("a job has always been ordered")
    return age


async def open_jobs(session: AsyncSession, item_id: str, kind: JobKind | None = None) -> list[JobRow]:
    """The jobs of an item that have not ended, oldest first."""
    query = select(JobRow).where(JobRow.item_id == item_id, JobRow.state.in_([state.value for state in OPEN_STATES]))
    if kind is not None:
        query = query.where(JobRow.kind == kind.value)
    return list(await session.scalars(query.order_by(JobRow.number)))


async def jobs_of_note(session: AsyncSession, item_id: str, kind: JobKind) -> tuple[list[JobRow], JobRow | None]:
    """``open_jobs`` and the ``newest_job`` of a kind, by one statement."""
    is_open = JobRow.state.in_([state.value for state in OPEN_STATES])
    query = select(JobRow).where(JobRow.item_id == item_id, is_open | (JobRow.kind == kind.value))
    found = list(await session.scalars(query.order_by(JobRow.number)))
    of_kind = [job for job in found if job.kind == kind]
    return [job for job in found if job.state in OPEN_STATES], of_kind[-1] if of_kind else None


async def newest_job(session: AsyncSession, item_id: str, kind: JobKind) -> JobRow | None:
    """The newest job of a kind, ended or not."""
    found: JobRow | None = await session.scalar(
        select(JobRow)
        .where(JobRow.item_id == item_id, JobRow.kind == kind.value)
        .order_by(JobRow.number.desc())
        .limit(1)
    )
    return found


async def start_job(
    session: AsyncSession,
    item: ProtectedItemRow,
    kind: JobKind,
    *,
    step: str,
    parameters: Document,
    context: Document,
    actor: Actor,
    now_ns: int,
    message: str = "",
) -> JobRow:
    """Create a job in progress.

    :raises Conflict: if a job of an exclusive kind is open on this item already.
    """
    if kind in EXCLUSIVE_KINDS and (already := await open_jobs(session, item.id, kind)):
        raise Conflict(f"cannot start: job {already[0].id} ({kind}) is under way", hint="wait for it, or cancel it")
    last = await session.scalar(select(func.max(JobRow.number)).where(JobRow.item_id == item.id))
    job = JobRow(
        id=str(uuid.uuid4()),
        item_id=item.id,
        number=(last or 0) + 1,
        kind=kind.value,
        state=JobState.IN_PROGRESS.value,
        step=step,
        message=message,
        actor=actor,
        parameters=parameters.model_dump_json(),
        context=context.model_dump_json(),
        done_bytes=0,
        total_bytes=0,
        created_ns=now_ns,
        updated_ns=now_ns,
    )
    session.add(job)
    await session.flush()
    record_event(
        session,
        now_ns,
        actor,
        "job-started",
        f"{kind} started",
        machine_id=item.machine_id,
        item_id=item.id,
        job_id=job.id,
    )
    return job


def parameters_of(job: JobRow, kind: type[DocumentT]) -> DocumentT:
    return kind.decode(job.parameters.encode())


def context_of(job: JobRow, kind: type[DocumentT]) -> DocumentT:
    return kind.decode(job.context.encode())


def keep_context(job: JobRow, context: Document) -> None:
    job.context = context.model_dump_json()


def set_step(job: JobRow, now_ns: int, step: str, message: str = "", *, waiting_for_input: bool = False) -> None:
    """Say where an open job is."""
    wanted = JobState.WAITING_FOR_INPUT if waiting_for_input else JobState.IN_PROGRESS
    state = next_job_state(JobState(job.state), wanted)
    if (job.state, job.step, job.message) != (state.value, step, message):
        if job.step != step:
            job.done_bytes, job.total_bytes, job.rate_bytes_per_s, job.eta_s = 0, 0, None, None
        job.state, job.step, job.message, job.updated_ns = state.value, step, message, now_ns


def set_progress(
    job: JobRow,
    now_ns: int,
    done_bytes: int,
    total_bytes: int,
    *,
    rate_bytes_per_s: float | None = None,
    eta_s: float | None = None,
) -> None:
    """Progress within the present step."""
    if (job.done_bytes, job.total_bytes) != (done_bytes, total_bytes):
        job.updated_ns = now_ns
    job.done_bytes, job.total_bytes, job.rate_bytes_per_s, job.eta_s = done_bytes, total_bytes, rate_bytes_per_s, eta_s


def end_job(
    session: AsyncSession,
    job: JobRow,
    item: ProtectedItemRow,
    state: JobState,
    now_ns: int,
    *,
    actor: Actor = SYSTEM,
    result: Document | None = None,
    problem: JobProblem | None = None,
    message: str = "",
) -> None:
    """End a job and record it.

    :raises Conflict: if it has ended already.
    """
    job.state = next_job_state(JobState(job.state), state).value
    job.message = message or (problem.message if problem is not None else "")
    job.result = None if result is None else result.model_dump_json()
    job.problem = None if problem is None else problem.model_dump_json()
    job.updated_ns = job.ended_ns = now_ns
    job.eta_s = None
    if state is JobState.SUCCEEDED:
        job.done_bytes = job.total_bytes
    text = f"{job.kind} {state.value}"
    record_event(
        session,
        now_ns,
        actor,
        f"job-{state.value}",
        f"{text}: {job.message}" if job.message else text,
        machine_id=item.machine_id,
        item_id=item.id,
        job_id=job.id,
    )


def problem_from(error: BlockferryError) -> JobProblem:
    return JobProblem(code=error.code, message=error.message, hint=error.hint)


async def find_job(session: AsyncSession, identifier: str) -> JobRow:
    """:raises NotFound: if there is none."""
    job = await session.get(JobRow, identifier)
    if job is None:
        raise NotFound(f"cannot find the job {identifier[:64]!r}", hint="`migratectl jobs` lists them")
    return job
