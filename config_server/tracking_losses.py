"""Losses of tracking as rows, and the recovery points that they make suspect (R12). ``core/doubt.py`` says what they mean.

Called by ``observations.py`` with what an agent reports, by ``generations.py`` when an agent asks for a generation that continues another
one (which every resync does, also one that is over before the next heartbeat), and by the reconciler for each point that is found later.
Everything happens in the caller's transaction: a generation is never granted before its loss is written down.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.doubt import (
    END_OF_GENERATION,
    Position,
    TrackingLoss,
    lost_tracking,
    proved_position,
    suspicion,
)
from config_server.core.job import JobKind
from config_server.divergences import divergences
from config_server.events import SYSTEM, record_event
from config_server.items import item_disks, observation_of
from config_server.job_documents import ResyncContext
from config_server.jobs import context_of
from config_server.point_history import good_points
from config_server.tables import ItemDiskRow, JobRow, ProtectedItemRow, RecoveryPointRow, TrackingLossRow
from replication.control_plane import DiskObservation
from replication.store_documents import RecoveryPoint

_AT_A_TIME: Final = 50
"""Usually the newest or the one before it is proved."""


async def follow_tracking(
    session: AsyncSession, item: ProtectedItemRow, row: ItemDiskRow, observation: DiskObservation, now_ns: int
) -> None:
    """Take in what an observation proves, or that tracking is lost; ``row`` still holds the observation before."""
    before = observation_of(row)
    was_lost = before is not None and before.generation == observation.generation and lost_tracking(before) is not None
    lost, proved = lost_tracking(observation), proved_position(observation)
    if lost is not None or was_lost:
        # Found again only now: what was cut since the observation before is not vouched for either.
        until = Position(observation.generation or 0, observation.sealed_epoch)
        await _note(session, item, row, until, lost or "the change tracker had failed", now_ns)
    if proved is not None:
        row.proved_generation, row.proved_epoch = _later(row, proved)


def _later(row: ItemDiskRow, proved: Position) -> tuple[int, int]:
    newest = max(proved, Position(row.proved_generation, row.proved_epoch))
    return newest.generation, newest.epoch


async def note_resync(
    session: AsyncSession, item: ProtectedItemRow, disk: str, last_generation: int, reason: str, now_ns: int
) -> None:
    """An agent gives generation ``last_generation`` up and compares everything: unless an operator told it to, tracking was lost."""
    if await _was_ordered(session, item.id, disk, reason):
        return
    row = await session.get(ItemDiskRow, (item.id, disk))
    if row is not None:
        until = Position(last_generation, END_OF_GENERATION)
        await _note(session, item, row, until, f"it had to be resynchronized: {reason}", now_ns)


async def _was_ordered(session: AsyncSession, item_id: str, disk: str, reason: str) -> bool:
    """An order's reason carries its own identifier (``protection.resync``), and comes back as that of the generation it leads to; that
    of an order that followed upon another one, with both.
    """
    jobs = select(JobRow).where(JobRow.item_id == item_id, JobRow.kind == JobKind.RESYNC.value)
    left = reason
    for job in await session.scalars(jobs):
        for order in context_of(job, ResyncContext).orders:
            if order.disk == disk:
                left = left.replace(order.reason, "")
    return left != reason and not left.strip("; ")


async def _note(
    session: AsyncSession, item: ProtectedItemRow, row: ItemDiskRow, until: Position, reason: str, now_ns: int
) -> None:
    """Write the loss down, or how far it has come, and mark the points that it reaches."""
    key = (item.id, row.disk_id, row.proved_generation, row.proved_epoch)
    known = await session.get(TrackingLossRow, key)
    if known is None:
        known = TrackingLossRow(
            item_id=item.id,
            disk_id=row.disk_id,
            proved_generation=row.proved_generation,
            proved_epoch=row.proved_epoch,
            until_generation=until.generation,
            until_epoch=until.epoch,
            reason=reason,
            noticed_ns=now_ns,
        )
        session.add(known)
    elif Position(known.until_generation, known.until_epoch) >= until:
        return
    else:
        known.until_generation, known.until_epoch = until.generation, until.epoch
    await session.flush()
    await mark_points(session, item, now_ns)


async def _losses(session: AsyncSession, item_id: str) -> list[TrackingLoss]:
    """Everything that makes points suspect; divergences, too."""
    rows = await session.scalars(
        select(TrackingLossRow).where(TrackingLossRow.item_id == item_id).order_by(TrackingLossRow.noticed_ns)
    )
    return [
        TrackingLoss(
            row.disk_id,
            Position(row.proved_generation, row.proved_epoch),
            Position(row.until_generation, row.until_epoch),
            row.reason,
        )
        for row in rows
    ] + [divergence.as_loss() for divergence in await divergences(session, item_id)]


async def mark_points(session: AsyncSession, item: ProtectedItemRow, now_ns: int) -> None:
    """Mark the points that losses and divergences reach, as far as these are written down."""
    losses = await _losses(session, item.id)
    reasons = []
    for row in await session.scalars(
        select(RecoveryPointRow).where(
            RecoveryPointRow.item_id == item.id, RecoveryPointRow.state != "deleted", RecoveryPointRow.suspect.is_(None)
        )
    ):
        row.suspect = suspicion(_parts(row), losses)
        if row.suspect is not None:
            reasons.append(row.suspect)
    if reasons:
        record_event(
            session,
            now_ns,
            SYSTEM,
            "points-suspect",
            f"{len(reasons)} recovery points are suspect: {reasons[-1]}",
            machine_id=item.machine_id,
            item_id=item.id,
        )


async def suspicion_of(session: AsyncSession, point: RecoveryPoint) -> str | None:
    """Why a point that is found now, perhaps long after it was cut, may miss writes."""
    parts = ((part.disk, Position(part.generation, part.epoch)) for part in point.disks)
    return suspicion(parts, await _losses(session, point.item))


async def newest_proved_cut(session: AsyncSession, item_id: str) -> str | None:
    """The newest good point of which every disk was reported as tracked later: no loss that is still to be noticed makes it suspect."""
    proved = {
        row.disk_id: Position(row.proved_generation, row.proved_epoch) for row in await item_disks(session, item_id)
    }
    points = good_points(item_id).limit(_AT_A_TIME)
    nothing, seen = Position(0, 0), 0
    while rows := list(await session.scalars(points.offset(seen))):
        for row in rows:
            if all(place <= proved.get(disk, nothing) for disk, place in _parts(row)):
                return row.cut
        seen += len(rows)
    return None


def _parts(row: RecoveryPointRow) -> list[tuple[str, Position]]:
    document = RecoveryPoint.decode(row.document.encode())
    return [(part.disk, Position(part.generation, part.epoch)) for part in document.disks]
