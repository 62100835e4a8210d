"""What operators see of a job. Called by the API wherever a job is answered with."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.job_documents import JobProblem, MigrationResult, RecoveryPointResult, TestMigrationResult
from config_server.operator_plane import JobStatus, timestamp
from config_server.tables import JobRow, MachineRow, ProtectedItemRow

JobStateName = Literal["in-progress", "waiting-for-input", "succeeded", "failed", "cancelled"]
_RESULTS: TypeAdapter[RecoveryPointResult | TestMigrationResult | MigrationResult] = TypeAdapter(
    RecoveryPointResult | TestMigrationResult | MigrationResult
)


async def job_status(session: AsyncSession, job: JobRow) -> JobStatus:
    item = await session.get_one(ProtectedItemRow, job.item_id)
    machine = await session.get_one(MachineRow, item.machine_id)
    return JobStatus(
        id=job.id,
        kind=job.kind,
        state=cast("JobStateName", job.state),
        step=job.step,
        message=job.message,
        item=job.item_id,
        server=machine.hostname,
        actor=job.actor,
        created_at=timestamp(job.created_ns),
        updated_at=timestamp(job.updated_ns),
        ended_at=None if job.ended_ns is None else timestamp(job.ended_ns),
        done_bytes=job.done_bytes,
        total_bytes=job.total_bytes,
        rate_bytes_per_s=job.rate_bytes_per_s,
        eta_s=job.eta_s,
        result=None if job.result is None else _RESULTS.validate_json(job.result),
        problem=None if job.problem is None else JobProblem.decode(job.problem.encode()),
    )
