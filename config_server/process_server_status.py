"""Process servers as administrators see them: load, capacity, progress of a drain, items that wait. Called by ``api/process_servers``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.age import at_least_s
from config_server.core.placement import Candidate, PlacedItem, loads_of
from config_server.operator_plane import (
    DrainProgress,
    ProcessServerCapacity,
    ProcessServerStatus,
    WaitingItem,
    timestamp,
)
from config_server.placement import candidates, placed_items
from config_server.process_servers import heard_age, heartbeat_of
from config_server.tables import MachineRow, ProcessServerRow, ProtectedItemRow
from config_server.upload_limits import limits_of


async def statuses(session: AsyncSession, ages: Ages, only: str | None = None) -> list[ProcessServerStatus]:
    """All of them by host name, or the one whose identifier is ``only``."""
    found = {candidate.identifier: candidate for candidate in await candidates(session, ages)}
    items = await placed_items(session, ages)
    loads = loads_of(found.values(), items)
    waiting = await _waiting(session)
    query = select(ProcessServerRow).order_by(ProcessServerRow.hostname, ProcessServerRow.service_url)
    if only is not None:
        query = query.where(ProcessServerRow.id == only)
    return [
        _status(
            row,
            ages,
            found[row.id],
            [item for item in items if item.server == row.id],
            loads[row.id],
            waiting.get(row.id, []),
        )
        for row in await session.scalars(query)
    ]


async def _waiting(session: AsyncSession) -> dict[str | None, list[WaitingItem]]:
    rows = await session.execute(
        select(ProtectedItemRow.process_server_id, MachineRow.hostname, ProtectedItemRow.placement_problem)
        .join(MachineRow, MachineRow.id == ProtectedItemRow.machine_id)
        .where(ProtectedItemRow.ended_ns.is_(None), ProtectedItemRow.placement_problem.is_not(None))
        .order_by(MachineRow.hostname)
    )
    found: dict[str | None, list[WaitingItem]] = {}
    for server, hostname, problem in rows:
        found.setdefault(server, []).append(WaitingItem(server=hostname, reason=problem or ""))
    return found


def _status(
    row: ProcessServerRow,
    ages: Ages,
    candidate: Candidate,
    items: Sequence[PlacedItem],
    load_fraction: float,
    waiting: list[WaitingItem],
) -> ProcessServerStatus:
    heard, observed, capacity = heard_age(row, ages), heartbeat_of(row), candidate.capacity
    drain = None
    if row.draining and row.drain_began_ns is not None:
        drain = DrainProgress(
            began_at=timestamp(row.drain_began_ns),
            ended_at=None if row.drained_ns is None else timestamp(row.drained_ns),
            items_at_begin=row.drain_items,
            items_left=len(items),
            backlog_bytes=0 if observed is None else observed.upload_backlog_bytes,
        )
    return ProcessServerStatus(
        id=row.id,
        hostname=row.hostname,
        url=row.service_url,
        connected=row.connected,
        heard_age_s=at_least_s(heard),
        heard_age_known=heard is None or heard.known,
        draining=row.draining,
        drain=drain,
        item_count=len(items),
        waiting=waiting,
        load_fraction=load_fraction,
        upload_limits=limits_of(row),
        churn_bytes_per_day=sum(item.churn_bytes_per_day for item in items),
        capacity=ProcessServerCapacity(
            table="appliance" if row.on_appliance else "process-server",
            tier=capacity.tier,
            churn_bytes_per_day=capacity.churn_bytes_per_day,
            servers=capacity.servers,
        ),
        observation=observed,
        enrolled_at=timestamp(row.enrolled_ns),
    )
