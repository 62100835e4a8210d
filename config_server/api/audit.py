"""The audit log: who asked for what, from where, and what came of it. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from config_server.api.routes import Access, Call, Query, Route
from config_server.audit_plane import AuditEntry, AuditVerdict
from config_server.operator_plane import DEFAULT_PAGE, MAX_PAGE, Page, timestamp


class AuditQuery(Query):
    """Oldest first, after record ``after``; without it the newest ``limit``. ``next`` is where to go on, also when nothing is left."""

    after: int | None = Field(default=None, ge=0)
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    actor: str | None = None


async def list_audit(call: Call) -> Page[AuditEntry]:
    query = call.parameters(AuditQuery)
    rows = await call.site.audit.read(after=query.after, limit=query.limit, actor=query.actor)
    cursor = rows[-1].id if rows else query.after
    return Page[AuditEntry](
        items=[
            AuditEntry(
                id=row.id,
                at=timestamp(row.time_ns),
                time_ns=row.time_ns,
                actor=row.actor,
                credential=row.credential,
                remote=row.remote,
                action=row.action,
                target=row.target,
                status=row.status,
                detail=row.detail,
                repeats=row.repeats,
                previous=row.previous,
                digest=row.digest,
            )
            for row in rows
        ],
        next=None if cursor is None else str(cursor),
    )


async def verify_audit(call: Call) -> AuditVerdict:
    found = await call.site.audit.verify()
    return AuditVerdict(
        whole=found.first_broken is None,
        first_broken=found.first_broken,
        records=found.records,
        last=found.last,
        last_digest=found.last_digest,
    )


ROUTES: Final = (
    Route(
        "GET",
        "/audit",
        list_audit,
        Access.READER,
        "Who asked to change what, from where, with which outcome, and what was refused; oldest first",
        "audit",
        query=AuditQuery,
        answer=Page[AuditEntry],
    ),
    Route(
        "GET",
        "/audit/verification",
        verify_audit,
        Access.READER,
        "Whether every record is as it was written and follows from the one before",
        "audit",
        answer=AuditVerdict,
    ),
)
