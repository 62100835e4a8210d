"""What there is to do for the reconciler, found by one statement: mostly nothing. Called by ``loop.py`` and ``store_exchange.py``.

A pass a second over a site on which nothing happens shall cost next to nothing. So each pass asks this first, and goes only where it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Executable, bindparam, literal, select, union
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.job import OPEN_STATES, JobKind
from config_server.discovery_tables import AgentInstallationRow
from config_server.tables import JobRow, MadeDiskRow, ProtectedItemRow, WriterRequestRow
from config_server.writer_requests import IN_STORE, NEW, PUT, REQUEST_DELETED

_DUE: Final = "answers_due_ns"
_JOB, _DISK, _REQUEST, _ANSWER, _INSTALLATION = "job", "disk", "request", "answer", "installation"
_WAIT_FOR_POINT: Final = frozenset({JobKind.TEST_MIGRATE, JobKind.RECOVERY_POINT, JobKind.MIGRATE})


@dataclass(frozen=True, slots=True)
class WorkAtHand:
    """``busy``: items with an open job or with disks to be deleted; ``expecting``: those of them with a job that may wait for a point;
    ``jobs``: of each item the open ones, oldest first.

    ``new``: requests are to be delivered; ``put``: answers to be looked for; ``settled``: something is to be deleted from the store;
    ``installations``: some are under way.
    """

    busy: tuple[str, ...]
    expecting: tuple[str, ...]
    jobs: Mapping[str, Sequence[str]]
    new: bool
    put: bool
    settled: bool
    installations: bool


def _statement() -> Executable:
    job, disk, request = JobRow, MadeDiskRow, WriterRequestRow
    nothing = literal("")
    return union(
        select(literal(_JOB), job.kind, job.item_id, job.id, job.number).where(
            job.state.in_([state.value for state in OPEN_STATES])
        ),
        select(literal(_DISK), nothing, disk.item_id, nothing, literal(0)).where(
            disk.unwanted, disk.deleted_ns.is_(None)
        ),
        select(literal(_REQUEST), request.state, nothing, nothing, literal(0)).where(request.retired == IN_STORE),
        select(literal(_ANSWER), nothing, nothing, nothing, literal(0)).where(
            request.retired == REQUEST_DELETED, request.answered_ns <= bindparam(_DUE, type_=BigInteger)
        ),
        select(literal(_INSTALLATION), nothing, nothing, nothing, literal(0)).where(
            AgentInstallationRow.ended_ns.is_(None)
        ),
    )


_STATEMENT: Final = _statement()
"""Made once: to put it together takes longer than to execute it."""


async def work_at_hand(session: AsyncSession, answers_due_ns: int) -> WorkAtHand:
    """``answers_due_ns``: answers that were taken in before it are to be deleted."""
    found = await session.execute(_STATEMENT, {_DUE: answers_due_ns})
    rows = [tuple(row) for row in found]
    requests = {detail for what, detail, *_ in rows if what == _REQUEST}
    kinds = {what for what, *_ in rows}
    jobs: dict[str, list[str]] = {}
    for _, item, job in sorted((number, item, job) for what, _, item, job, number in rows if what == _JOB):
        jobs.setdefault(item, []).append(job)
    return WorkAtHand(
        busy=tuple(sorted({item for what, _, item, *_ in rows if what in (_JOB, _DISK)})),
        expecting=tuple(sorted({item for what, kind, item, *_ in rows if what == _JOB and kind in _WAIT_FOR_POINT})),
        jobs=jobs,
        new=NEW in requests,
        put=PUT in requests,
        settled=_ANSWER in kinds or not requests <= {NEW, PUT},
        installations=_INSTALLATION in kinds,
    )


async def all_items(session: AsyncSession) -> list[str]:
    """Items that have not ended, oldest first."""
    query = select(ProtectedItemRow.id).where(ProtectedItemRow.ended_ns.is_(None))
    return list(await session.scalars(query.order_by(ProtectedItemRow.created_ns)))
