"""Jobs: list and one. Served by ``routes``."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field
from sqlalchemy import select

from config_server.api.routes import Access, Call, Query, Route
from config_server.items import find_item
from config_server.job_feed import MAX_JOB_WAIT_S
from config_server.job_status import job_status
from config_server.jobs import find_job
from config_server.operator_plane import DEFAULT_PAGE, MAX_PAGE, JobStatus, Page
from config_server.tables import JobRow
from replication.errors import NotFound


class JobsQuery(Query):
    """``after``: the ``next`` of the page before; ``item``: of one item (or server); ``state``: in one state."""

    after: str | None = None
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    item: str | None = None
    state: Literal["in-progress", "waiting-for-input", "succeeded", "failed", "cancelled"] | None = None


async def list_jobs(call: Call) -> Page[JobStatus]:
    query = call.parameters(JobsQuery)
    wanted = select(JobRow).order_by(JobRow.created_ns.desc(), JobRow.id.desc())
    async with call.site.database.read() as session:
        if query.item is not None:
            wanted = wanted.where(JobRow.item_id == (await find_item(session, query.item)).id)
        if query.state is not None:
            wanted = wanted.where(JobRow.state == query.state)
        if query.after is not None:
            before = await session.get(JobRow, query.after)
            if before is None:
                raise NotFound("cannot find the job that the page before ended with")
            wanted = wanted.where(
                (JobRow.created_ns < before.created_ns)
                | ((JobRow.created_ns == before.created_ns) & (JobRow.id < before.id))
            )
        rows = list(await session.scalars(wanted.limit(query.limit + 1)))
        shown = [await job_status(session, row) for row in rows[: query.limit]]
    return Page[JobStatus](items=shown, next=shown[-1].id if len(rows) > query.limit else None)


class JobQuery(Query):
    """``wait_s``: how long to wait for the job's end."""

    wait_s: float = Field(default=0.0, ge=0.0, le=MAX_JOB_WAIT_S)


async def get_job(call: Call) -> JobStatus:
    await call.site.jobs.wait(call.path["job"], call.parameters(JobQuery).wait_s)
    async with call.site.database.read() as session:
        return await job_status(session, await find_job(session, call.path["job"]))


ROUTES: Final = (
    Route(
        "GET",
        "/jobs",
        list_jobs,
        Access.READER,
        "Jobs, newest first",
        "jobs",
        query=JobsQuery,
        answer=Page[JobStatus],
    ),
    Route(
        "GET",
        "/jobs/{job}",
        get_job,
        Access.READER,
        "A job: step, progress, result or cause of failure; waits for its end for up to wait_s",
        "jobs",
        query=JobQuery,
        answer=JobStatus,
        answers={404: "no such job"},
    ),
)
