"""The audit log: requests that change something, and those that were refused. Called by ``api/routes.py``, read by ``api/audit.py``.

It is told after the answer is known, so it has the outcome; the events (``events.py``) are in the transaction of the change itself, so they
have every change. Append-only: nothing changes a record, and the chain (``core/audit_chain.py``) shows it if somebody did. What is old is
dropped from the old end (``history.audit_keep_s``). The same refusal of the same caller is recorded once a minute, with how often it came:
an agent whose certificate is revoked asks every few seconds. Records hold no secrets: neither bodies nor headers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.audit_chain import BEGINNING, AuditRecord, digest_of, first_broken, may_be_summed_up
from config_server.database import Database
from config_server.postgresql import DatabaseUnavailable
from config_server.tables import AuditRow

SAME_REFUSAL_EVERY_S: Final = 60.0
MAX_REMEMBERED: Final = 1000
VERIFIED_AT_A_TIME: Final = 1000
ATTEMPTS: Final = 5
_FIELDS: Final = tuple(field.name for field in fields(AuditRecord))

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusals:
    since_ns: int
    unrecorded: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """``first_broken``: None: each record is as it was written and follows from the one before. ``last``: the newest's number, if any."""

    first_broken: int | None
    records: int
    last: int | None
    last_digest: str | None


class AuditLog:
    """Appends, and reads back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._refusals: OrderedDict[tuple[str, str, str, int], _Refusals] = OrderedDict()

    async def append(self, record: AuditRecord) -> None:
        """Write ``record`` unless it repeats a refusal of the last minute; durable on return. A database that fails is reported in the
        log: the request has its answer already.
        """
        counted = self._counted(record)
        if counted is None:
            return
        problem = "others append at the same moment again and again"
        for _attempt in range(ATTEMPTS):
            try:
                async with self._database.write() as session:
                    newest = await session.scalar(select(AuditRow.digest).order_by(AuditRow.id.desc()).limit(1))
                    previous = newest or BEGINNING
                    values = {name: getattr(counted, name) for name in _FIELDS}
                    session.add(AuditRow(**values, previous=previous, digest=digest_of(counted, previous)))
            except IntegrityError:
                continue  # another server of the site appended at the same moment: after it, then
            except DatabaseUnavailable as error:
                problem = str(error)
                break
            return
        _logger.error(
            "cannot write the audit log",
            extra={"fields": {"action": counted.action, "actor": counted.actor, "error": problem}},
        )

    def _counted(self, record: AuditRecord) -> AuditRecord | None:
        if not may_be_summed_up(record):
            return record
        key = (record.actor, record.remote, record.action, record.status)
        known = self._refusals.get(key)
        if known is not None and 0 <= record.time_ns - known.since_ns < SAME_REFUSAL_EVERY_S * 1e9:
            known.unrecorded += 1
            return None
        self._refusals[key] = _Refusals(record.time_ns)
        self._refusals.move_to_end(key)
        while len(self._refusals) > MAX_REMEMBERED:
            self._refusals.popitem(last=False)
        return record if known is None else replace(record, repeats=known.unrecorded)

    async def read(self, *, after: int | None, limit: int, actor: str | None) -> Sequence[AuditRow]:
        """Oldest first, after record ``after``; without it the newest ``limit``."""
        wanted = select(AuditRow)
        if actor is not None:
            wanted = wanted.where(AuditRow.actor == actor)
        async with self._database.read() as session:
            if after is None:
                return list(await session.scalars(wanted.order_by(AuditRow.id.desc()).limit(limit)))[::-1]
            return list(await session.scalars(wanted.where(AuditRow.id > after).order_by(AuditRow.id).limit(limit)))

    async def verify(self) -> Verification:
        """Read the whole chain. What it proves is in ``core/audit_chain.py``."""
        first: int | None = None
        records, newest = 0, None
        while True:
            page = await self.read(after=0 if newest is None else newest.id, limit=VERIFIED_AT_A_TIME, actor=None)
            if not page:
                break
            if first is None:
                rows = [*([] if newest is None else [newest]), *page]
                broken = first_broken((record_of(row), row.previous, row.digest) for row in rows)
                first = None if broken is None else rows[broken].id
            records, newest = records + len(page), page[-1]
        if newest is None:
            return Verification(None, 0, None, None)
        return Verification(first, records, newest.id, newest.digest)


def record_of(row: AuditRow) -> AuditRecord:
    return AuditRecord(**{name: getattr(row, name) for name in _FIELDS})


async def forget_old_records(session: AsyncSession, before_ns: int, batch: int) -> int:
    """Drop at most ``batch`` of the oldest that are older than ``before_ns``, from the old end only; the newest one stays.

    Returns how many it was.
    """
    newest = await session.scalar(select(AuditRow.id).order_by(AuditRow.id.desc()).limit(1))
    oldest = await session.execute(select(AuditRow.id, AuditRow.time_ns).order_by(AuditRow.id).limit(batch))
    doomed: list[int] = []
    for identifier, time_ns in oldest:
        if time_ns >= before_ns or identifier == newest:
            break
        doomed.append(identifier)
    if doomed:
        gone = delete(AuditRow).where(AuditRow.id <= doomed[-1])
        await session.execute(gone.execution_options(synchronize_session=False))
    return len(doomed)
