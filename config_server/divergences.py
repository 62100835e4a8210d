"""Replicas that were found to differ from their source, as rows. ``core/doubt.py`` says what a divergence means.

Called by the reconciler, which finds them when it judges a migration, by ``tracking_losses.py`` for what they make suspect, by
``observations.py`` with what shows that one is repaired, by the verbs and ``item_health.py``. All happens in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.cutover import Divergent
from config_server.core.doubt import Divergence, is_repaired
from config_server.events import SYSTEM, Actor, record_event
from config_server.tables import DivergenceRow, GenerationRow, JobRow, ProtectedItemRow
from replication.control_plane import DiskObservation


def note_divergences(
    session: AsyncSession, item: ProtectedItemRow, job: JobRow, found: Sequence[Divergent], now_ns: int
) -> None:
    """Write down what ``job`` found. The points that it makes suspect are marked by ``tracking_losses.mark_points``."""
    for divergent in found:
        session.add(
            DivergenceRow(
                item_id=item.id,
                disk_id=divergent.disk,
                job_id=job.id,
                generation=divergent.generation,
                reason=divergent.reason,
                noticed_ns=now_ns,
            )
        )
        record_event(
            session,
            now_ns,
            SYSTEM,
            "replica-differs",
            f"disk {divergent.disk}: {divergent.reason}",
            machine_id=item.machine_id,
            item_id=item.id,
            job_id=job.id,
        )


async def divergences(session: AsyncSession, item_id: str) -> list[Divergence]:
    """All that were ever found on an item, oldest first."""
    rows = await session.scalars(
        select(DivergenceRow).where(DivergenceRow.item_id == item_id).order_by(DivergenceRow.noticed_ns)
    )
    return [await _divergence(session, row) for row in rows]


async def differing_disks(session: AsyncSession, item_id: str) -> list[str]:
    """The disks whose replica differs, as far as is known: found, and not repaired since."""
    found = await session.scalars(
        select(DivergenceRow.disk_id)
        .where(DivergenceRow.item_id == item_id, DivergenceRow.repaired_ns.is_(None))
        .distinct()
        .order_by(DivergenceRow.disk_id)
    )
    return list(found)


async def follow_repair(
    session: AsyncSession, item: ProtectedItemRow, observation: DiskObservation, now_ns: int
) -> None:
    """Take in an observation that shows that everything was sent again."""
    rows = await session.scalars(
        select(DivergenceRow).where(
            DivergenceRow.item_id == item.id,
            DivergenceRow.disk_id == observation.disk,
            DivergenceRow.repaired_ns.is_(None),
        )
    )
    repaired = False
    for row in list(rows):
        if is_repaired(await _divergence(session, row), observation.generation, observation.phase):
            row.repaired_ns, repaired = now_ns, True
    if repaired:
        record_event(
            session,
            now_ns,
            Actor(f"agent:{item.machine_id}"),
            "replica-repaired",
            f"disk {observation.disk}: every block was sent again; recovery points from generation {observation.generation} on are good",
            machine_id=item.machine_id,
            item_id=item.id,
        )


async def resent_generation(session: AsyncSession, disk: str, after: int) -> int | None:
    """The first generation of ``disk`` after ``after`` in which its agent is bound to send every granule, if it has asked for one."""
    found: int | None = await session.scalar(
        select(func.min(GenerationRow.generation)).where(
            GenerationRow.disk_id == disk, GenerationRow.distrusts_digests, GenerationRow.generation > after
        )
    )
    return found


async def _divergence(session: AsyncSession, row: DivergenceRow) -> Divergence:
    return Divergence(
        row.disk_id, row.generation, row.reason, await resent_generation(session, row.disk_id, row.generation)
    )
