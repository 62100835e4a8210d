"""When replication of an item was resumed. Recorded by ``protection.py``; asked by ``item_health.py``, the reconciler's figures and alerts.

The event is the record. When it is old enough to be deleted (``reconciler/housekeeping.py``), no wait for a point begins there any more.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.age import at_least_s
from config_server.events import Actor, record_event
from config_server.tables import EventRow, ProtectedItemRow

RESUMED: Final = "replication-resumed"


def record_resumed(session: AsyncSession, item: ProtectedItemRow, actor: Actor, now_ns: int) -> None:
    message = "replication goes on; from now on recovery points are due again"
    record_event(session, now_ns, actor, RESUMED, message, machine_id=item.machine_id, item_id=item.id)


async def resumed_ns(session: AsyncSession, item_id: str) -> int | None:
    """When last; None if never. By the order of the events: the clock may have been set."""
    found: int | None = await session.scalar(
        select(EventRow.time_ns)
        .where(EventRow.item_id == item_id, EventRow.kind == RESUMED)
        .order_by(EventRow.id.desc())
        .limit(1)
    )
    return found


async def resumed_age_s(session: AsyncSession, item_id: str, ages: Ages) -> float | None:
    """How long ago that was, at least; None if never."""
    return at_least_s(ages.of("resumed", item_id, await resumed_ns(session, item_id)))
