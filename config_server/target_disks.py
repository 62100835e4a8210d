"""Which churn limit holds for which disk: by its item's policy, or for disks that nobody protects by what is asked for.

Called by ``sizing.py`` and ``reconciler/alarm_facts.py``.
"""

from __future__ import annotations

from typing import cast

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.target_disks import DEFAULT_DISK_TYPE, ChurnLimit, DiskType, churn_limit
from config_server.policies import DEFAULT_POLICY
from config_server.tables import DiskRow, ItemDiskRow, PolicyRow, ProtectedItemRow


async def churn_limits(
    session: AsyncSession, configured_bytes: int | None, unprotected: DiskType | None = None
) -> dict[str, ChurnLimit]:
    """By disk. ``unprotected``: the type that is planned for disks without protection; None: that of the default policy."""
    default = await session.scalar(select(PolicyRow.target_disk_type).where(PolicyRow.name == DEFAULT_POLICY))
    planned = unprotected or default or DEFAULT_DISK_TYPE
    types = await session.execute(
        select(ItemDiskRow.disk_id, PolicyRow.target_disk_type)
        .join(ProtectedItemRow, ProtectedItemRow.id == ItemDiskRow.item_id)
        .join(PolicyRow, PolicyRow.id == ProtectedItemRow.policy_id)
        .where(ProtectedItemRow.ended_ns.is_(None))
    )
    by_policy = {disk: disk_type for disk, disk_type in types}  # noqa: C416 -- rows
    disks = await session.execute(select(DiskRow.id, DiskRow.size_bytes))
    return {
        disk: churn_limit(cast("DiskType", by_policy.get(disk, planned)), size_bytes, configured_bytes)
        for disk, size_bytes in disks
    }
