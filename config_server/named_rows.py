"""Finding rows by what operators call them, and forgetting those that ended long ago: what several nouns do alike.

Called by ``items.py``, ``process_server_verbs.py`` and ``certificates.py`` (find), ``discoveries.py`` and ``reconciler/housekeeping.py``
(forget).
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from config_server.discovery_tables import AgentInstallationRow, DiscoveryRunRow
from config_server.tables import MachineRow, ProcessServerRow

EnrolledT = TypeVar("EnrolledT", MachineRow, ProcessServerRow)


async def enrolled_as(
    session: AsyncSession, row: type[EnrolledT], text: str, *also: ColumnElement[bool]
) -> list[EnrolledT]:
    """Of this identifier, which is one; else of this host name, or what is ``also`` meant. More than one: the name is not unique."""
    found = await session.get(row, text)
    if found is not None:
        return [found]
    return list(await session.scalars(select(row).where(or_(row.hostname == text, *also)).limit(2)))


async def forget_ended(
    session: AsyncSession,
    row: type[DiscoveryRunRow | AgentInstallationRow],
    before_ns: int,
    most: int,
    *parts: InstrumentedAttribute[str],
) -> int:
    """Delete at most so many that ended before, the oldest first; returns how many it were. ``parts``: columns that refer to them, whose
    rows go first."""
    ended = select(row.id).where(row.ended_ns < before_ns).order_by(row.ended_ns).limit(most)
    old = list(await session.scalars(ended))
    if old:
        for part in parts:
            await session.execute(delete(part.class_).where(part.in_(old)))
        await session.execute(delete(row).where(row.id.in_(old)))
    return len(old)
