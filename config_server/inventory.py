"""The inventory that agents report: stored whole, and the owner of each disk settled. Called by ``api/agent.py``.

R11: a disk belongs to the machine that reported it first. The same disk reported by another machine is a second incarnation (a clone,
a test-migrated disk that boots with the agent in it): it is refused and recorded, and the owner stays.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.events import Actor, record_event
from config_server.tables import DiskRow, InventoryRow, MachineRow
from replication.control_plane import MachineInventory
from replication.errors import Conflict, Refused


async def report_inventory(
    session: AsyncSession, machine: MachineRow, inventory: MachineInventory, now_ns: int
) -> None:
    """Store ``inventory`` and register the disks that are new.

    :raises Refused: if it comes from another installation than the one that enrolled.
    :raises Conflict: if it names a disk of another machine; nothing of it is stored, the event is (see ``foreign_disks``).
    """
    check_same_machine(machine, inventory.machine_fingerprint)
    foreign = await foreign_disks(session, machine, inventory)
    if foreign:
        raise Conflict(
            f"cannot accept the inventory of {inventory.hostname}: disk {foreign[0].id} belongs to another machine",
            hint="a cloned machine must be given its own identity: remove the agent's state directory and enrol anew",
        )
    actor = Actor(f"agent:{machine.id}")
    if machine.hostname != inventory.hostname:
        record_event(
            session,
            now_ns,
            actor,
            "renamed",
            f"{machine.hostname} is now called {inventory.hostname}",
            machine_id=machine.id,
        )
        machine.hostname = inventory.hostname
    machine.clock_offset_ns = inventory.clock_unix_ns - now_ns
    known = {disk.id: disk for disk in await session.scalars(select(DiskRow).where(DiskRow.machine_id == machine.id))}
    reported = {disk.disk: disk for disk in inventory.disks}
    for identifier, disk in reported.items():
        row = known.get(identifier)
        if row is None:
            row = DiskRow(id=identifier, machine_id=machine.id, path=disk.path, size_bytes=disk.size_bytes)
            session.add(row)
        row.path, row.size_bytes, row.present, row.seen_ns = disk.path, disk.size_bytes, True, now_ns
    for identifier in known.keys() - reported.keys():
        known[identifier].present = False
    stored = await session.get(InventoryRow, machine.id)
    if stored is None:
        stored = InventoryRow(machine_id=machine.id)
        session.add(stored)
        record_event(
            session, now_ns, actor, "discovered", f"first inventory of {inventory.hostname}", machine_id=machine.id
        )
    stored.document, stored.received_ns = inventory.model_dump_json(), now_ns


def check_same_machine(machine: MachineRow, machine_fingerprint: str) -> None:
    """:raises Refused: if a message signed with ``machine``'s certificate comes from other hardware or another installation."""
    if machine.machine_fingerprint != machine_fingerprint:
        raise Refused(
            f"cannot accept this message as {machine.hostname}'s: it comes from another machine",
            hint="a clone must be given its own identity: remove the agent's state directory and enrol anew",
        )


async def foreign_disks(session: AsyncSession, machine: MachineRow, inventory: MachineInventory) -> list[DiskRow]:
    """The disks of ``inventory`` that another machine owns."""
    found = await session.scalars(
        select(DiskRow).where(DiskRow.id.in_([disk.disk for disk in inventory.disks]), DiskRow.machine_id != machine.id)
    )
    return list(found)
