"""The reconciler: what is desired becomes requests to the writer; answers, points and observations become state; jobs go on.

Called by ``daemon.py``; woken by the API after each change. One pass follows the items on which something is
to be done; every ``point_interval_s`` it also looks for new recovery points, prunes, and judges the health of all. Every step reads its
facts anew, is idempotent, and commits on its own, so that a restart at any point continues. What the store or an item's step complains of
is shown (health board, job) and tried again in the next pass; it does not keep the other items waiting. One leader runs it: this process
is the only one on an SQLite database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from sqlalchemy import select, union
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.config import HeartbeatSettings, ReconcilerSettings
from config_server.core.job import OPEN_STATES, JobKind
from config_server.database import Database
from config_server.desired import DesiredFeed, publish
from config_server.events import Clock
from config_server.jobs import find_job, open_jobs
from config_server.observations import follow_observation
from config_server.reconciler.cutover import follow_migration
from config_server.reconciler.deletion import follow_deletion
from config_server.reconciler.drills import follow_clean_up, follow_test_migration
from config_server.reconciler.figures import Figures, take_snapshot
from config_server.reconciler.heartbeats import notice_health, notice_silence, place_waiting_items
from config_server.reconciler.made_disk_removal import remove_unwanted
from config_server.reconciler.mailbox import Mailbox
from config_server.reconciler.recovery_points import RecoveryPoints
from config_server.reconciler.replication_jobs import follow_enabling, follow_recovery_point, follow_resync
from config_server.store_status import StoreStatus
from config_server.tables import JobRow, MadeDiskRow, ProtectedItemRow
from replication.blob_client.api import BlobClient
from replication.documents import WriterPublicKey
from replication.errors import BlockferryError
from replication.service.health import HealthBoard, HealthState
from replication.store_layout import CONTAINERS

MIN_GAP_S: Final = 0.05
"""However often it is woken, passes are at least this far apart."""

ROUNDS_BETWEEN_THOROUGH: Final = 12
"""Items on which nothing is to be done are followed only in every so manieth round, as a safety net."""

HURRY_S: Final = 0.2
"""Between passes while an answer or a point is awaited from the store: during a cutover these count as downtime."""

_logger = logging.getLogger(__name__)


class Reconciler:
    """``run`` until cancelled; ``run_once`` is one pass."""

    def __init__(
        self,
        *,
        database: Database,
        store: BlobClient,
        writer: WriterPublicKey,
        feed: DesiredFeed,
        status: StoreStatus,
        board: HealthBoard,
        settings: ReconcilerSettings,
        heartbeat: HeartbeatSettings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._store = store
        self._feed = feed
        self._status = status
        self._board = board
        self._settings = settings
        self._heartbeat = heartbeat
        self._clock = clock
        self._mailbox = Mailbox(database, store, writer, clock, settings.answer_keep_s)
        self._points = RecoveryPoints(database, store, writer, clock)
        self._woken = asyncio.Event()
        self._containers_made = False
        self._round_due_ns = 0
        self._rounds = 0
        self._store_is_awaited = False
        self.figures = Figures(clock)

    def wake(self) -> None:
        """Let the next pass begin now."""
        self._woken.set()

    def look_around_soon(self) -> None:
        """Let the next pass look at every item, whenever the next round would be due."""
        self._round_due_ns = 0

    async def run(self) -> None:
        """Pass after pass; returns only by cancellation."""
        while True:
            self._woken.clear()
            try:
                await self.run_once()
            except OperationalError as error:
                self._board.report("database", HealthState.FAILED, str(error.orig))
                _logger.exception("the database does not answer")
            else:
                self._board.report("database", HealthState.OK)
            await asyncio.sleep(MIN_GAP_S)
            with contextlib.suppress(TimeoutError):
                hurry_s = HURRY_S if self._store_is_awaited else self._settings.interval_s
                await asyncio.wait_for(self._woken.wait(), min(hurry_s, self._settings.interval_s))

    async def run_once(self) -> None:
        """Every step once."""
        async with self._database.write() as session:
            await notice_silence(session, self._heartbeat, self._clock())
            placed = await place_waiting_items(session, self._heartbeat, self._clock())
        if placed:
            self._feed.wake()
        look_around = self._clock() >= self._round_due_ns
        async with self._database.read() as session:
            every_item = await _items(session)
            busy = await _busy_items(session)
        await self._exchange_with_store(busy, every_item if look_around else [])
        thorough = look_around and self._rounds % ROUNDS_BETWEEN_THOROUGH == 0
        for item_id in every_item if thorough else busy:
            await self._follow_item(item_id)
        with self._store_watched():
            await self._mailbox.deliver()
        if look_around:
            self._rounds += 1
            self._round_due_ns = self._clock() + int(self._settings.point_interval_s * 1e9)
            await self._look_around()

    async def _look_around(self) -> None:
        """Health of every item, and the figures."""
        async with self._database.write() as session:
            await notice_health(session, self._heartbeat, self._status.problem, self._clock())
        async with self._database.read() as session:
            self.figures.snapshot = await take_snapshot(
                session, store_reachable=self._status.reachable, now_ns=self._clock()
            )

    # -- the store --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _store_watched(self) -> Iterator[None]:
        """Turn what the store complains of into status and health; the next pass tries again."""
        try:
            yield
        except BlockferryError as error:
            if self._status.problem != str(error):
                _logger.warning("the store does not answer as it should", extra={"fields": {"error": str(error)}})
            self._status.failed(str(error))
            self._board.report("store", HealthState.DEGRADED, str(error))
        else:
            self._status.answered(self._clock())
            self._board.report("store", HealthState.OK)

    async def _exchange_with_store(self, busy: list[str], looked_at: list[str]) -> None:
        with self._store_watched():
            if not self._containers_made:
                for container in CONTAINERS:
                    await self._store.create_container(container)
                self._containers_made = True
            await self._mailbox.deliver()
            awaited = await self._mailbox.collect()
            await self._mailbox.retire()
            for item_id in busy:
                awaited += await self._points.find_awaited(item_id)
            self._store_is_awaited = awaited > 0
            for item_id in looked_at:
                await self._points.find_all(item_id)
                await self._points.prune(item_id)

    # -- items ------------------------------------------------------------------------------------------------

    async def _follow_item(self, item_id: str) -> None:
        published = False
        async with self._database.read() as session:
            jobs = [job.id for job in await open_jobs(session, item_id)]
        for job_id in jobs:
            try:
                async with self._database.write() as session:
                    published |= await self._follow_job(session, job_id, item_id)
            except BlockferryError as error:
                _logger.warning("a job's step failed", extra={"fields": {"job": job_id, "error": str(error)}})
                async with self._database.write() as session:
                    job = await find_job(session, job_id)
                    job.message = f"a step failed and is tried again: {error}"
        async with self._database.write() as session:
            item = await session.get_one(ProtectedItemRow, item_id)
            await follow_observation(session, item, self._clock())
            await remove_unwanted(session, item_id, self._clock())
            published |= await publish(session, item.machine_id)
        if published:
            self._feed.wake()

    async def _follow_job(self, session: AsyncSession, job_id: str, item_id: str) -> bool:
        """One step of one job; returns whether the agent is told something new."""
        job = await session.get_one(JobRow, job_id)
        item = await session.get_one(ProtectedItemRow, item_id)
        if job.ended_ns is not None:
            return False
        now_ns, timeout_s = self._clock(), self._settings.point_timeout_s
        match JobKind(job.kind):
            case JobKind.ENABLE_REPLICATION:
                await follow_enabling(session, job, item, now_ns)
            case JobKind.RESYNC:
                await follow_resync(session, job, item, now_ns)
            case JobKind.RECOVERY_POINT:
                await follow_recovery_point(session, job, item, now_ns, timeout_s)
            case JobKind.TEST_MIGRATE:
                await follow_test_migration(session, job, item, now_ns, timeout_s)
            case JobKind.CLEAN_UP:
                await follow_clean_up(session, job, item, now_ns)
            case JobKind.MIGRATE:
                await follow_migration(session, job, item, self._heartbeat, now_ns)
            case JobKind.COMPLETE | JobKind.STOP:
                await follow_deletion(session, job, item, self._heartbeat, now_ns)
        return await publish(session, item.machine_id)


async def _items(session: AsyncSession) -> list[str]:
    """Items that have not ended, oldest first."""
    query = select(ProtectedItemRow.id).where(ProtectedItemRow.ended_ns.is_(None))
    return list(await session.scalars(query.order_by(ProtectedItemRow.created_ns)))


async def _busy_items(session: AsyncSession) -> list[str]:
    """Items on which something is to be done: an open job, or disks to be deleted."""
    jobs = select(JobRow.item_id).where(JobRow.state.in_([state.value for state in OPEN_STATES]))
    disks = select(MadeDiskRow.item_id).where(MadeDiskRow.unwanted, MadeDiskRow.deleted_ns.is_(None))
    return sorted(set(await session.scalars(union(jobs, disks))))
