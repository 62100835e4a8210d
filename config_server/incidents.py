"""Events about refused callers, which must survive the rollback of what they tried, and must not fill the log when they try again.

Called by the API's handlers.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from config_server.database import Database
from config_server.events import Actor, record_event
from config_server.tables import EventRow

QUIET_S: Final = 3600.0
AHEAD_S: Final = 1.0


async def record_incident(
    database: Database, now_ns: int, actor: Actor, kind: str, message: str, machine_id: str | None
) -> None:
    """Record the event in a transaction of its own, unless the same was recorded within the last hour.

    One that was recorded in the future, before this server's clock was set back, keeps nothing quiet.
    """
    async with database.write() as session:
        same = await session.scalar(
            select(EventRow.id)
            .where(
                EventRow.kind == kind,
                EventRow.machine_id == machine_id,
                EventRow.message == message,
                EventRow.time_ns.between(now_ns - int(QUIET_S * 1e9), now_ns + int(AHEAD_S * 1e9)),
            )
            .limit(1)
        )
        if same is None:
            record_event(session, now_ns, actor, kind, message, machine_id=machine_id)
