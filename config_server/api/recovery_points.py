"""Recovery points of an item, newest first. Served by ``routes``."""

from __future__ import annotations

import re
from typing import Final, Literal, cast

from pydantic import Field
from sqlalchemy import select

from config_server.api.routes import Access, Call, Query, Route
from config_server.core.point_times import clock_error_ns
from config_server.items import find_item
from config_server.operator_plane import DEFAULT_PAGE, MAX_PAGE, Page, RecoveryPointStatus, timestamp
from config_server.point_history import NEWEST_FIRST, place_in_rows
from config_server.tables import RecoveryPointRow
from replication.documents import MAX_NUMBER
from replication.errors import InvalidInput
from replication.store_documents import RecoveryPoint


class PointsQuery(Query):
    """``after``: the ``next`` of the page before."""

    after: str | None = None
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)


async def list_points(call: Call) -> Page[RecoveryPointStatus]:
    query = call.parameters(PointsQuery)
    async with call.site.database.read() as session:
        item = await find_item(session, call.path["item"])
        wanted = select(RecoveryPointRow).where(
            RecoveryPointRow.item_id == item.id, RecoveryPointRow.state == "available"
        )
        if query.after is not None:
            wanted = wanted.where(place_in_rows() < _cursor(query.after))
        ordered = wanted.order_by(*NEWEST_FIRST).limit(query.limit + 1)
        rows = list(await session.scalars(ordered))
    now_ns = call.site.clock()
    shown = [_status(row, now_ns) for row in rows[: query.limit]]
    last = rows[query.limit - 1] if len(rows) > query.limit else None
    return Page[RecoveryPointStatus](
        items=shown, next=None if last is None else f"{last.history_generation}.{last.history_epoch}"
    )


def _cursor(text: str) -> tuple[int, int]:
    """The place in the history of the last point of the page before."""
    found = re.fullmatch(r"([0-9]{1,19})\.([0-9]{1,19})", text)
    if found is None or max(place := (int(found[1]), int(found[2]))) > MAX_NUMBER:
        raise InvalidInput(f"cannot use {text[:40]!r} as a cursor", hint="give back `next` of the page before")
    return place


def _status(row: RecoveryPointRow, now_ns: int) -> RecoveryPointStatus:
    error_ns = clock_error_ns(row.time_ns, row.counted_ns)
    return RecoveryPointStatus(
        cut=row.cut,
        taken_at=timestamp(row.counted_ns),
        clock_error_s=None if error_ns is None else error_ns / 1e9,
        age_s=max(0.0, (now_ns - row.counted_ns) / 1e9),
        consistency=cast("Literal['crash', 'app']", row.consistency),
        final=row.final,
        suspect=row.suspect,
        disks=[disk.disk for disk in RecoveryPoint.decode(row.document.encode()).disks],
    )


ROUTES: Final = (
    Route(
        "GET",
        "/protected-items/{item}/recovery-points",
        list_points,
        Access.READER,
        "Recovery points of an item, newest first",
        "protected items",
        query=PointsQuery,
        answer=Page[RecoveryPointStatus],
        answers={404: "no such item"},
    ),
)
