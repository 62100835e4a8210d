"""Protected items as rows: finding them, their disks as the core sees them, and the one place where an item changes its state.

Called by the verbs, by ``observations.py`` and by the reconciler inside their transactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.age import Age
from config_server.core.job import JobKind
from config_server.core.observation import ObservedDisk, progress_of
from config_server.core.protected_item import (
    ENDED_STATES,
    Event,
    Progress,
    State,
    next_state,
    reason_of,
)
from config_server.events import Actor, record_event
from config_server.job_documents import ResyncContext
from config_server.jobs import context_of, open_jobs
from config_server.named_rows import enrolled_as
from config_server.tables import ItemDiskRow, MachineRow, ProtectedItemRow
from replication.control_plane import DiskObservation
from replication.errors import Conflict, NotFound

AGENT_HEARD: Final = "agent-heard"


def agent_age(machine: MachineRow, ages: Ages) -> Age | None:
    """Since the newest observation; None: there was none."""
    return ages.of(AGENT_HEARD, machine.id, machine.heard_ns)


async def active_item(session: AsyncSession, machine_id: str) -> ProtectedItemRow | None:
    """The item of a machine that has not ended."""
    found: ProtectedItemRow | None = await session.scalar(
        select(ProtectedItemRow).where(ProtectedItemRow.machine_id == machine_id, ProtectedItemRow.ended_ns.is_(None))
    )
    return found


async def find_machine(session: AsyncSession, text: str) -> MachineRow:
    """A machine by identifier or host name.

    :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
    """
    named = await enrolled_as(session, MachineRow, text)
    if len(named) > 1:
        raise Conflict(f"cannot tell which server {text!r} is: several have this name", hint="use the identifier")
    if not named:
        raise NotFound(f"cannot find the server {text[:100]!r}", hint="`migratectl servers` lists them")
    return named[0]


async def find_item(session: AsyncSession, text: str) -> ProtectedItemRow:
    """An item by its own identifier, or the newest one of a server given by identifier or host name: the one that has not ended, else
    the one that the server's agent was told of last.

    :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
    """
    row = await session.get(ProtectedItemRow, text)
    if row is not None:
        return row
    machine = await find_machine(session, text)
    newest: ProtectedItemRow | None = await session.scalar(
        select(ProtectedItemRow)
        .where(ProtectedItemRow.machine_id == machine.id)
        .order_by(
            ProtectedItemRow.ended_ns.is_(None).desc(),
            ProtectedItemRow.first_revision.desc(),
            ProtectedItemRow.created_ns.desc(),
        )
        .limit(1)
    )
    if newest is None:
        raise NotFound(f"cannot find a protected item of {machine.hostname}", hint="`migratectl protect` makes one")
    return newest


async def item_disks(session: AsyncSession, item_id: str) -> list[ItemDiskRow]:
    """The disks of an item in the operator's order."""
    return list(
        await session.scalars(select(ItemDiskRow).where(ItemDiskRow.item_id == item_id).order_by(ItemDiskRow.ordinal))
    )


def observation_of(disk: ItemDiskRow) -> DiskObservation | None:
    return None if disk.observation is None else DiskObservation.decode(disk.observation.encode())


async def ordered_resyncs(session: AsyncSession, item_id: str) -> set[str]:
    """The disks that the operator has told to resynchronize and that are not done yet."""
    ordered: set[str] = set()
    for job in await open_jobs(session, item_id, JobKind.RESYNC):
        ordered |= {order.disk for order in context_of(job, ResyncContext).orders}
    return ordered


async def observed_progress(
    session: AsyncSession, item_id: str, disks: Sequence[ItemDiskRow] | None = None
) -> tuple[Progress, str | None]:
    """Where replication of the item stands by its newest observations and open resyncs. ``disks``: all of the item's, if at hand."""
    ordered = await ordered_resyncs(session, item_id)
    return progress_of(
        [
            ObservedDisk(disk.disk_id, observation_of(disk), disk.seeded_ns is not None, disk.disk_id in ordered)
            for disk in (await item_disks(session, item_id) if disks is None else disks)
        ]
    )


def apply_event(session: AsyncSession, item: ProtectedItemRow, event: Event, actor: Actor, now_ns: int) -> bool:
    """Change the item's state as the table says, and record it if it is another; returns whether it is.

    :raises Conflict: if the event has no place in the present state.
    """
    before, after = State(item.state), next_state(State(item.state), event)
    reason = reason_of(event)
    if before is after:
        if reason is not None:
            item.reason = reason
        return False
    item.state, item.reason, item.state_since_ns = after.value, reason, now_ns
    if after in ENDED_STATES:
        item.ended_ns = now_ns
    message = f"{before} → {after}" if reason is None else f"{before} → {after}: {reason}"
    record_event(session, now_ns, actor, "item-state", message, machine_id=item.machine_id, item_id=item.id)
    return True
