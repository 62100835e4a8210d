"""Forgetting what is over: old events, audit records, certificates and churn, ended jobs, answered requests, points of ended items.

Called by ``reconciler/loop.py``. One small batch of each a turn, oldest first, so that nobody waits for it. What anything can still ask
for stays:

- A request stays while the store may hold it or its answer: asked again under the same identifier it would meet that answer. It also stays
  as long as anything could ask for the same again: requests of an open job, or of a job that has made disks which are still to be deleted;
  requests to prune while a point waits to be settled by one; what belongs to no job, as closing a generation, until the item ends.
- A job stays while a row refers to it; of an item that has not ended also the newest of each kind, and every resync (its orders say
  whether a generation is a loss of tracking).
- The newest events stay whatever their age: a clock that was set forward for a while shall not empty the log.

What is old enough is judged by this server's clock, which may be wrong: then it is forgotten later or earlier than it is set to be, but
never while anything above holds.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Delete, delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from config_server.alerts import forget_alerts
from config_server.audit import forget_old_records
from config_server.churn_history import forget_old_churn
from config_server.config import HistorySettings
from config_server.core.job import JobKind
from config_server.discoveries import forget_runs
from config_server.discovery_tables import AgentInstallationRow
from config_server.named_rows import forget_ended
from config_server.point_history import DELETED, PRUNING
from config_server.tables import (
    CertificateRow,
    DivergenceRow,
    EventRow,
    JobRow,
    MadeDiskRow,
    ProtectedItemRow,
    RecoveryPointRow,
    WriterRequestRow,
)
from config_server.writer_requests import BOTH_DELETED

EVERY_S: Final = 60.0
CERTIFICATES_KEPT_AFTER_END_NS: Final = 30 * 86400 * 10**9
BATCH: Final = 500
NEWEST_EVENTS_KEPT: Final = 10_000
_PRUNE_POINTS: Final = "prune-points"


async def forget_what_is_over(session: AsyncSession, settings: HistorySettings, now_ns: int) -> int:
    """Delete at most ``BATCH`` rows of each kind; returns how many rows it were."""
    forgotten = await _forget_requests(session, now_ns - int(settings.requests_keep_s * 1e9))
    forgotten += await _forget_jobs(session, now_ns - int(settings.jobs_keep_s * 1e9))
    forgotten += await _forget_events(session, now_ns - int(settings.events_keep_s * 1e9))
    forgotten += await forget_alerts(session, now_ns - int(settings.events_keep_s * 1e9), now_ns, BATCH)
    forgotten += await forget_old_records(session, now_ns - int(settings.audit_keep_s * 1e9), BATCH)
    forgotten += await _forget_certificates(session, now_ns - CERTIFICATES_KEPT_AFTER_END_NS)
    forgotten += await forget_old_churn(session, now_ns)
    forgotten += await forget_runs(session, now_ns - int(settings.jobs_keep_s * 1e9), BATCH)
    forgotten += await forget_ended(session, AgentInstallationRow, now_ns - int(settings.jobs_keep_s * 1e9), BATCH)
    return forgotten + await _forget_points(session)


async def _forget_requests(session: AsyncSession, before_ns: int) -> int:
    row = WriterRequestRow
    job_is_over = exists().where(JobRow.id == row.job_id, JobRow.ended_ns.is_not(None))
    disks_to_delete = exists().where(
        MadeDiskRow.job_id == row.job_id, MadeDiskRow.deleted_ns.is_(None), MadeDiskRow.unwanted
    )
    old = (
        select(row.id)
        .where(row.retired == BOTH_DELETED, row.answered_ns < before_ns)
        .where(
            or_(
                (row.kind == _PRUNE_POINTS) & ~_item_has_points_to_settle(row.item_id),
                job_is_over & ~disks_to_delete,
                _item_has_ended(row.item_id) & row.job_id.is_(None),
            )
        )
        .order_by(row.answered_ns)
        .limit(BATCH)
    )
    found = list(await session.scalars(old))
    return await _delete(session, delete(row).where(row.id.in_(found)), len(found))


async def _forget_jobs(session: AsyncSession, before_ns: int) -> int:
    newer = aliased(JobRow)
    followed = exists().where(newer.item_id == JobRow.item_id, newer.kind == JobRow.kind, newer.number > JobRow.number)
    old = (
        select(JobRow.id)
        .where(JobRow.ended_ns < before_ns)
        .where(or_(_item_has_ended(JobRow.item_id), followed & (JobRow.kind != JobKind.RESYNC.value)))
        .where(*(~exists().where(row.job_id == JobRow.id) for row in (WriterRequestRow, MadeDiskRow, DivergenceRow)))
        .order_by(JobRow.ended_ns)
        .limit(BATCH)
    )
    found = list(await session.scalars(old))
    return await _delete(session, delete(JobRow).where(JobRow.id.in_(found)), len(found))


async def _forget_events(session: AsyncSession, before_ns: int) -> int:
    newest_kept = await session.scalar(
        select(EventRow.id).order_by(EventRow.id.desc()).offset(NEWEST_EVENTS_KEPT - 1).limit(1)
    )
    if newest_kept is None:
        return 0
    oldest = await session.execute(
        select(EventRow.id, EventRow.time_ns).where(EventRow.id < newest_kept).order_by(EventRow.id).limit(BATCH)
    )
    found = [identifier for identifier, time_ns in oldest if time_ns < before_ns]
    return await _delete(session, delete(EventRow).where(EventRow.id.in_(found)), len(found))


async def _forget_certificates(session: AsyncSession, before_ns: int) -> int:
    """Those that ended long ago, whose holder has a newer one: nobody recovers anything with them (``renewals.py``)."""
    newer = aliased(CertificateRow)
    followed = exists().where(
        newer.holder_id == CertificateRow.holder_id,
        newer.issued_ns > CertificateRow.issued_ns,
        newer.used_ns.is_not(None),
    )
    found = list(
        await session.scalars(
            select(CertificateRow.serial).where(CertificateRow.expires_ns < before_ns, followed).limit(BATCH)
        )
    )
    return await _delete(session, delete(CertificateRow).where(CertificateRow.serial.in_(found)), len(found))


async def _forget_points(session: AsyncSession) -> int:
    """Of items that have ended: nobody lists these any more. Those of the others go when they are looked for."""
    row = RecoveryPointRow
    gone = await session.execute(
        select(row.item_id, row.cut).where(row.state == DELETED, _item_has_ended(row.item_id)).limit(BATCH)
    )
    by_item: dict[str, list[str]] = {}
    for item, cut in gone:
        by_item.setdefault(item, []).append(cut)
    forgotten = 0
    for item, cuts in by_item.items():
        doomed = delete(row).where(row.item_id == item, row.cut.in_(cuts), row.state == DELETED)
        forgotten += await _delete(session, doomed, len(cuts))
    return forgotten


def _item_has_points_to_settle(item_id: Any) -> Any:
    return exists().where(RecoveryPointRow.item_id == item_id, RecoveryPointRow.state == PRUNING)


def _item_has_ended(item_id: Any) -> Any:
    return exists().where(ProtectedItemRow.id == item_id, ProtectedItemRow.ended_ns.is_not(None))


async def _delete(session: AsyncSession, statement: Delete, count: int) -> int:
    if count:
        await session.execute(statement.execution_options(synchronize_session=False))
    return count
