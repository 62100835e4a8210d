"""Waiting for a job's end: ``GET /jobs/{job}?wait_s=…`` is answered when it has ended. Built by ``daemon.py``; used by ``api/jobs.py``.

Rung where jobs end: by the reconciler and by the operators' verbs. On PostgreSQL that may be another server, and the bell is this one's
only: so who waits looks again by himself, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from sqlalchemy import select

from config_server.database import Database
from config_server.tables import JobRow

RECHECK_S: Final = 1.0
MAX_JOB_WAIT_S: Final = 30.0


class JobFeed:
    """``wait`` until a job has ended; ``wake`` whenever one may have."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._rung = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    def release_waiters(self) -> None:
        """The daemon stops: nobody who waits shall hold that up."""
        self._stopping = True
        self.wake()

    async def wait(self, job_id: str, wait_s: float) -> None:
        """Until the job has ended, is not there, or ``wait_s`` have passed."""
        deadline_s = self._monotonic() + wait_s
        while True:
            rung, left_s = self._rung, deadline_s - self._monotonic()
            if left_s <= 0 or self._stopping or not await self._is_open(job_id):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, RECHECK_S)):
                    await rung.wait()

    async def _is_open(self, job_id: str) -> bool:
        async with self._database.read() as session:
            return (
                await session.scalar(select(JobRow.id).where(JobRow.id == job_id, JobRow.ended_ns.is_(None)))
                is not None
            )
