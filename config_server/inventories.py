"""Reading what agents reported. Called by the verbs, by readiness and by the API."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.tables import InventoryRow
from replication.control_plane import MachineInventory


async def inventory_of(session: AsyncSession, machine_id: str) -> tuple[MachineInventory, int] | None:
    """The newest inventory of a machine and when it came, or None."""
    row = await session.get(InventoryRow, machine_id)
    return None if row is None else (MachineInventory.decode(row.document.encode()), row.received_ns)
