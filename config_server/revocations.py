"""Revocations at the other configuration servers of the site: what they revoked ends what is open here. Built and run by ``daemon.py``.

A request under a revoked certificate is refused at every server, since each asks the database. But one that had been let in may still be
waiting (for a new revision, for a file). At the server that revokes it is cut at once (``Certificates.on_revoked``); the others look every
``LOOK_S``, as often as a process server's heartbeat asks. On SQLite there are no others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.database import Database
from config_server.events import Clock
from config_server.postgresql import DatabaseUnavailable
from config_server.tables import CertificateRow

LOOK_S: Final = 5.0

_logger = logging.getLogger(__name__)


async def revoked_serials(session: AsyncSession, now_ns: int) -> list[str]:
    """Of all certificates that were revoked and have not ended."""
    found = await session.scalars(
        select(CertificateRow.serial)
        .where(CertificateRow.revoked_ns.is_not(None), CertificateRow.expires_ns > now_ns)
        .order_by(CertificateRow.serial)
    )
    return list(found)


class RevocationWatch:
    """``end`` is told the serial numbers that were not revoked when it looked before."""

    def __init__(self, database: Database, clock: Clock, end: Callable[[frozenset[str]], None]) -> None:
        self._database = database
        self._clock = clock
        self._end = end
        self._known: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except DatabaseUnavailable as error:
                _logger.warning("cannot look for revoked certificates now", extra={"fields": {"error": str(error)}})
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        async with self._database.read() as session:
            revoked = frozenset(await revoked_serials(session, self._clock()))
        news, self._known = revoked - self._known, revoked
        if news:
            self._end(news)
