"""What ``/metrics`` shows of placement: items, load and drain of each process server, changes by cause, items that wait.

Called by ``figures.py`` for its snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.core.placement import loads_of
from config_server.placement import candidates, placed_items
from config_server.process_servers import item_counts
from config_server.tables import ProcessServerRow, ProtectedItemRow


@dataclass(slots=True)
class PlacementFigures:
    """By host name and address of the process server; ``changes`` by cause, since the start."""

    items: dict[tuple[str, str], int] = field(default_factory=dict)
    loads: dict[tuple[str, str], float] = field(default_factory=dict)
    draining: dict[tuple[str, str], int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    waiting: int = 0


async def placement_figures(session: AsyncSession, ages: Ages, changes: Mapping[str, int]) -> PlacementFigures:
    """Read everything that is shown."""
    found, counts = PlacementFigures(changes=dict(changes)), await item_counts(session)
    loads = loads_of(await candidates(session, ages), await placed_items(session, ages))
    for row in await session.scalars(select(ProcessServerRow)):
        key = (row.hostname, row.service_url)
        found.items[key], found.loads[key] = counts.get(row.id, 0), loads[row.id]
        found.draining[key] = int(row.draining)
    waiting = select(func.count()).select_from(ProtectedItemRow)
    waiting = waiting.where(ProtectedItemRow.ended_ns.is_(None), ProtectedItemRow.placement_problem.is_not(None))
    found.waiting = await session.scalar(waiting) or 0
    return found


def families(shown: PlacementFigures) -> Iterator[Metric]:
    labels = ["name", "address"]
    items = GaugeMetricFamily("blockferry_process_server_items", "Protected items of a process server", labels=labels)
    loads = GaugeMetricFamily("blockferry_process_server_load", "Its load as a part of its capacity", labels=labels)
    draining = GaugeMetricFamily("blockferry_process_server_draining", "1 while it is drained", labels=labels)
    for key, count in shown.items.items():
        items.add_metric(list(key), count)
        loads.add_metric(list(key), shown.loads[key])
        draining.add_metric(list(key), shown.draining[key])
    changes = CounterMetricFamily(
        "blockferry_process_server_changes", "Items that were given a process server by themselves", labels=["cause"]
    )
    for cause, count in shown.changes.items():
        changes.add_metric([cause], count)
    waiting = GaugeMetricFamily("blockferry_items_waiting_for_process_server", "Items that should have another one")
    waiting.add_metric([], shown.waiting)
    yield from (items, loads, draining, changes, waiting)
