"""What there is to do for the reconciler, found by one statement: mostly nothing. Called by ``loop.py`` and ``store_exchange.py``.

A pass a second over a site on which nothing happens shall cost next to nothing. So each pass asks this first, and goes only where it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import literal, select, union
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.job import OPEN_STATES, JobKind
from config_server.discovery_tables import AgentInstallationRow
from config_server.tables import JobRow, MadeDiskRow, ProtectedItemRow, WriterRequestRow
from config_server.writer_requests import IN_STORE, NEW, PUT, REQUEST_DELETED

_JOB, _DISK, _REQUEST, _ANSWER, _INSTALLATION = "job", "disk", "request", "answer", "installation"
_WAIT_FOR_POINT: Final = frozenset({JobKind.TEST_MIGRATE, JobKind.RECOVERY_POINT, JobKind.MIGRATE})


@dataclass(frozen=True, slots=True)
class WorkAtHand:
    """``busy``: items with an open job or with disks to be deleted; ``expecting``: those of them with a job that may wait for a point.

    ``new``: requests are to be delivered; ``put``: answers to be looked for; ``settled``: something is to be deleted from the store;
    ``installations``: some are under way.
    """

    busy: tuple[str, ...]
    expecting: tuple[str, ...]
    new: bool
    put: bool
    settled: bool
    installations: bool


async def work_at_hand(session: AsyncSession, answers_due_ns: int) -> WorkAtHand:
    """``answers_due_ns``: answers that were taken in before it are to be deleted."""
    job, disk, request = JobRow, MadeDiskRow, WriterRequestRow
    found = await session.execute(
        union(
            select(literal(_JOB), job.kind, job.item_id).where(job.state.in_([state.value for state in OPEN_STATES])),
            select(literal(_DISK), literal(""), disk.item_id).where(disk.unwanted, disk.deleted_ns.is_(None)),
            select(literal(_REQUEST), request.state, literal("")).where(request.retired == IN_STORE),
            select(literal(_ANSWER), literal(""), literal("")).where(
                request.retired == REQUEST_DELETED, request.answered_ns <= answers_due_ns
            ),
            select(literal(_INSTALLATION), literal(""), literal("")).where(AgentInstallationRow.ended_ns.is_(None)),
        )
    )
    rows = [(what, detail, item) for what, detail, item in found]
    requests = {detail for what, detail, _ in rows if what == _REQUEST}
    kinds = {what for what, _, _ in rows}
    return WorkAtHand(
        busy=tuple(sorted({item for what, _, item in rows if what in (_JOB, _DISK)})),
        expecting=tuple(sorted({item for what, kind, item in rows if what == _JOB and kind in _WAIT_FOR_POINT})),
        new=NEW in requests,
        put=PUT in requests,
        settled=_ANSWER in kinds or not requests <= {NEW, PUT},
        installations=_INSTALLATION in kinds,
    )


async def all_items(session: AsyncSession) -> list[str]:
    """Items that have not ended, oldest first."""
    query = select(ProtectedItemRow.id).where(ProtectedItemRow.ended_ns.is_(None))
    return list(await session.scalars(query.order_by(ProtectedItemRow.created_ns)))
