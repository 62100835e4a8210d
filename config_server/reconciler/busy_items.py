"""Which items there are to look after. Called by ``reconciler/loop.py`` and ``reconciler/store_exchange.py``."""

from __future__ import annotations

from sqlalchemy import select, union
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.job import OPEN_STATES
from config_server.tables import JobRow, MadeDiskRow, ProtectedItemRow


async def all_items(session: AsyncSession) -> list[str]:
    """Items that have not ended, oldest first."""
    query = select(ProtectedItemRow.id).where(ProtectedItemRow.ended_ns.is_(None))
    return list(await session.scalars(query.order_by(ProtectedItemRow.created_ns)))


async def busy_items(session: AsyncSession) -> list[str]:
    """Items on which something is to be done: an open job, or disks to be deleted."""
    jobs = select(JobRow.item_id).where(JobRow.state.in_([state.value for state in OPEN_STATES]))
    disks = select(MadeDiskRow.item_id).where(MadeDiskRow.unwanted, MadeDiskRow.deleted_ns.is_(None))
    return sorted(set(await session.scalars(union(jobs, disks))))
