"""Events: what happened, through whom. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from pydantic import Field
from sqlalchemy import select

from config_server.api.routes import Access, Call, Query, Route
from config_server.items import find_machine
from config_server.operator_plane import DEFAULT_PAGE, MAX_PAGE, EventStatus, Page, timestamp
from config_server.tables import EventRow


class EventsQuery(Query):
    """Oldest first, after event ``after``; without it the newest ``limit``. ``next`` is where to go on, also when nothing is left."""

    after: int | None = Field(default=None, ge=0)
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)
    server: str | None = None
    kind: str | None = None


async def list_events(call: Call) -> Page[EventStatus]:
    query = call.parameters(EventsQuery)
    wanted = select(EventRow)
    async with call.site.database.read() as session:
        if query.server is not None:
            wanted = wanted.where(EventRow.machine_id == (await find_machine(session, query.server)).id)
        if query.kind is not None:
            wanted = wanted.where(EventRow.kind == query.kind)
        if query.after is None:
            newest = await session.scalars(wanted.order_by(EventRow.id.desc()).limit(query.limit))
            rows = list(newest)[::-1]
        else:
            wanted = wanted.where(EventRow.id > query.after).order_by(EventRow.id)
            rows = list(await session.scalars(wanted.limit(query.limit)))
    cursor = rows[-1].id if rows else query.after
    return Page[EventStatus](items=[_status(row) for row in rows], next=None if cursor is None else str(cursor))


def _status(row: EventRow) -> EventStatus:
    return EventStatus(
        id=row.id,
        at=timestamp(row.time_ns),
        actor=row.actor,
        kind=row.kind,
        message=row.message,
        server=row.machine_id,
        item=row.item_id,
        job=row.job_id,
    )


ROUTES: Final = (
    Route(
        "GET",
        "/events",
        list_events,
        Access.READER,
        "What happened, when and through whom, oldest first",
        "events",
        query=EventsQuery,
        answer=Page[EventStatus],
    ),
)
