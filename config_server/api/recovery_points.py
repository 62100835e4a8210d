"""Recovery points of an item, newest first. Served by ``routes``."""

from __future__ import annotations

from typing import Final, Literal, cast

from pydantic import Field
from sqlalchemy import select

from config_server.api.routes import Access, Call, Query, Route
from config_server.items import find_item
from config_server.operator_plane import DEFAULT_PAGE, MAX_PAGE, Page, RecoveryPointStatus, timestamp
from config_server.process_servers import age_s
from config_server.tables import MachineRow, RecoveryPointRow
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
        machine = await session.get_one(MachineRow, item.machine_id)
        wanted = select(RecoveryPointRow).where(
            RecoveryPointRow.item_id == item.id, RecoveryPointRow.state == "available"
        )
        if query.after is not None:
            wanted = wanted.where(RecoveryPointRow.time_ns < _cursor(query.after))
        ordered = wanted.order_by(RecoveryPointRow.time_ns.desc(), RecoveryPointRow.cut).limit(query.limit + 1)
        rows = list(await session.scalars(ordered))
    offset_ns, now_ns = machine.clock_offset_ns or 0, call.site.clock()
    shown = [_status(row, offset_ns, now_ns) for row in rows[: query.limit]]
    return Page[RecoveryPointStatus](
        items=shown, next=str(rows[query.limit - 1].time_ns) if len(rows) > query.limit else None
    )


def _cursor(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > MAX_NUMBER:
        raise InvalidInput(f"cannot use {text[:40]!r} as a cursor", hint="give back `next` of the page before")
    return int(text)


def _status(row: RecoveryPointRow, clock_offset_ns: int, now_ns: int) -> RecoveryPointStatus:
    return RecoveryPointStatus(
        cut=row.cut,
        taken_at=timestamp(row.time_ns),
        age_s=age_s(row.time_ns - clock_offset_ns, now_ns) or 0.0,
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
        Access.ADMINISTRATOR,
        "Recovery points of an item, newest first",
        "protected items",
        query=PointsQuery,
        answer=Page[RecoveryPointStatus],
        answers={404: "no such item"},
    ),
)
