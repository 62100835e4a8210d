"""Which disks sizing counts, with their bytes and their churn alike, and which it leaves out. Called by ``sizing.py``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.tables import DiskRow, InventoryRow, ItemDiskRow, MachineRow, ProtectedItemRow
from replication.control_plane import MachineInventory


@dataclass(frozen=True, slots=True)
class SizedDisks:
    """``size_bytes``: of each disk that counts; ``left_out``: the others that are there, each with its server and why."""

    size_bytes: Mapping[str, int]
    left_out: tuple[str, ...]


async def sized_disks(session: AsyncSession, measured: Collection[str]) -> SizedDisks:
    """Protected disks, with their size as replicated. Of servers without protection all that can be protected.

    Of protected servers also those of their other disks that were ``measured``: whoever asks for that means to replicate them.
    """
    of_items = await session.execute(
        select(ItemDiskRow.disk_id, ItemDiskRow.size_bytes, ProtectedItemRow.machine_id)
        .join(ProtectedItemRow, ProtectedItemRow.id == ItemDiskRow.item_id)
        .where(ProtectedItemRow.ended_ns.is_(None))
    )
    counted: dict[str, int] = {}
    protected: set[str] = set()
    for disk, size_bytes, machine in of_items:
        counted[disk] = size_bytes
        protected.add(machine)
    why_not = await _not_protectable(session)
    left_out = []
    rows = await session.execute(
        select(DiskRow.id, DiskRow.machine_id, DiskRow.size_bytes, MachineRow.hostname, DiskRow.path)
        .join(MachineRow, MachineRow.id == DiskRow.machine_id)
        .where(DiskRow.present)
        .order_by(MachineRow.hostname, DiskRow.path)
    )
    for disk, machine, size_bytes, hostname, path in rows:
        if disk in counted:
            continue
        if disk in why_not:
            left_out.append(f"{hostname} {path} ({why_not[disk]})")
        elif machine in protected and disk not in measured:
            left_out.append(f"{hostname} {path} (not protected)")
        else:
            counted[disk] = size_bytes
    return SizedDisks(counted, tuple(left_out))


async def _not_protectable(session: AsyncSession) -> dict[str, str]:
    """Why not, by disk, as the agents say."""
    return {
        disk.disk: disk.not_protectable
        for document in await session.scalars(select(InventoryRow.document))
        for disk in MachineInventory.decode(document.encode()).disks
        if disk.not_protectable is not None
    }
