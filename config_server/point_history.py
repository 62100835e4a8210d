"""Recovery points in the order of their history: taking one in at its place, and the newest ones. Called by the verbs and the reconciler.

A point's place is the sum of its disks' generations, then of their epochs. From one cut of an item to the next no disk's (generation,
epoch) falls, so these sums order them as every single disk does, without any clock (docs/decisions/0012-order-of-recovery-points.md).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, UnaryExpression, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.point_state import PointState, next_point_state
from config_server.core.point_times import Cut, counted
from config_server.events import SYSTEM, record_event
from config_server.tables import MachineRow, ProtectedItemRow, RecoveryPointRow
from replication.documents import MAX_NUMBER
from replication.store_documents import RecoveryPoint

AVAILABLE = PointState.AVAILABLE.value
PRUNING = PointState.PRUNING.value
LOST = PointState.LOST.value
DELETED = PointState.DELETED.value

NEWEST_FIRST: tuple[UnaryExpression[Any], ...] = (
    RecoveryPointRow.history_generation.desc(),
    RecoveryPointRow.history_epoch.desc(),
    RecoveryPointRow.counted_ns.desc(),
    RecoveryPointRow.cut.desc(),
)
"""The order of the history; the last two only make it total."""


def place_of(point: RecoveryPoint) -> tuple[int, int]:
    """Where a point stands in the history of its item."""
    generation, epoch = sum(disk.generation for disk in point.disks), sum(disk.epoch for disk in point.disks)
    return min(generation, MAX_NUMBER), min(epoch, MAX_NUMBER)


def place_in_rows() -> ColumnElement[Any]:
    """``place_of`` a row, to compare with."""
    return tuple_(RecoveryPointRow.history_generation, RecoveryPointRow.history_epoch)


def good_points(item_id: str) -> Select[RecoveryPointRow]:
    """Those that can be used and are not suspect, newest first."""
    return (
        select(RecoveryPointRow)
        .where(
            RecoveryPointRow.item_id == item_id,
            RecoveryPointRow.state == AVAILABLE,
            RecoveryPointRow.suspect.is_(None),
        )
        .order_by(*NEWEST_FIRST)
    )


async def newest_good_point(session: AsyncSession, item_id: str) -> RecoveryPointRow | None:
    """The last one that is not suspect."""
    found: RecoveryPointRow | None = await session.scalar(good_points(item_id).limit(1))
    return found


async def take_in(session: AsyncSession, point: RecoveryPoint, suspect: str | None, found_ns: int) -> None:
    """Write a verified point down, with a time to count with; a clock that cannot be believed is told when it begins. One that was lost is
    offered again, as its record says it now.
    """
    item = await session.get_one(ProtectedItemRow, point.item)
    known = await session.get(RecoveryPointRow, (point.item, point.cut))
    if known is not None:
        if known.state == LOST:
            known.state = next_point_state(PointState.LOST, PointState.AVAILABLE).value
            known.document, known.suspect = point.model_dump_json(), suspect
            message = f"recovery point {point.cut} is in the store again"
            record_event(
                session, found_ns, SYSTEM, "point-found-again", message, machine_id=item.machine_id, item_id=item.id
            )
        return
    machine = await session.get_one(MachineRow, item.machine_id)
    place = place_of(point)
    before = await _neighbour(session, point.item, place_in_rows() <= place, NEWEST_FIRST)
    after = await _neighbour(
        session, point.item, place_in_rows() > place, tuple(column.element.asc() for column in NEWEST_FIRST)
    )
    cut = counted(point.time_ns, found_ns, machine.clock_offset_ns or 0, before, item.created_ns)
    counted_ns = cut.counted_ns
    if after is not None and after.clock_error_ns is None:
        counted_ns = min(counted_ns, after.counted_ns)
    session.add(
        RecoveryPointRow(
            item_id=point.item,
            cut=point.cut,
            time_ns=point.time_ns,
            consistency=point.consistency,
            final=point.final,
            document=point.model_dump_json(),
            state=AVAILABLE,
            suspect=suspect,
            found_ns=found_ns,
            history_generation=place[0],
            history_epoch=place[1],
            counted_ns=counted_ns,
        )
    )
    # What comes later in the history is not counted as earlier: it was found first, and its own time could not be believed.
    await session.execute(
        update(RecoveryPointRow)
        .where(RecoveryPointRow.item_id == point.item, place_in_rows() > place)
        .where(RecoveryPointRow.counted_ns < counted_ns)
        .values(counted_ns=counted_ns)
        .execution_options(synchronize_session=False)
    )
    error_ns = cut.clock_error_ns
    if error_ns is not None and (before is None or before.clock_error_ns is None):
        message = (
            f"recovery point {point.cut} carries a time that is {abs(error_ns) / 1e9:.0f} s {'ahead' if error_ns > 0 else 'behind'}: "
            f"the clock of {machine.hostname} is wrong, or this server's; nothing is pruned because of it"
        )
        record_event(session, found_ns, SYSTEM, "point-time-wrong", message, machine_id=machine.id, item_id=point.item)


async def settle_pruning(session: AsyncSession, item_id: str, cuts: list[str], *, done: bool) -> None:
    """What the answer to a request to prune makes of its points: deleted, or as they were."""
    await session.execute(
        update(RecoveryPointRow)
        .where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.cut.in_(cuts))
        .where(RecoveryPointRow.state == PRUNING)
        .values(state=DELETED if done else AVAILABLE)
        .execution_options(synchronize_session=False)
    )


async def _neighbour(
    session: AsyncSession, item_id: str, where: ColumnElement[bool], order: tuple[UnaryExpression[Any], ...]
) -> Cut | None:
    row = await session.scalar(
        select(RecoveryPointRow).where(RecoveryPointRow.item_id == item_id, where).order_by(*order).limit(1)
    )
    return None if row is None else Cut(row.time_ns, row.found_ns, row.counted_ns)
