"""The reconciler: what is desired becomes requests to the writer; answers, points and observations become state; jobs go on.

Called by ``daemon.py``; woken by the API after each change. Two loops: one exchanges with the store (``store_exchange.py``), the other
follows the items on which something is to be done and, every ``point_interval_s``, judges the health of all; so that a store that hangs
does not hide an agent that is silent. Every step reads its facts anew, is idempotent, and is committed whole: a restart at any point
continues. What a job's step complains of is shown with the job, what an item's own one complains of in /healthz; both are tried again,
and keep neither each other nor other items waiting. One leader runs this (``leadership.py``): each of its transactions begins with the
question whether it still is one. A server that stands by looks on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import agent_installations
from config_server.ages import Ages
from config_server.config import HeartbeatSettings, HistorySettings, PlacementSettings, ReconcilerSettings
from config_server.core.health import WRITER_SILENT_S
from config_server.core.job import OPEN_STATES, JobKind
from config_server.database import Database
from config_server.desired import DesiredFeed, publish
from config_server.discoveries import end_overdue
from config_server.events import Clock
from config_server.item_health import assess_item
from config_server.jobs import find_job
from config_server.leadership import Leadership, SoleLeadership
from config_server.observations import follow_observation
from config_server.placement import Placement
from config_server.postgresql import DatabaseUnavailable
from config_server.reconciler.alarms import Alarms
from config_server.reconciler.cutover import follow_migration
from config_server.reconciler.deletion import follow_deletion
from config_server.reconciler.drills import follow_clean_up, follow_test_migration
from config_server.reconciler.figures import Figures, take_snapshot
from config_server.reconciler.heartbeats import look_at_heartbeats, notice_health, notice_silence
from config_server.reconciler.housekeeping import EVERY_S, forget_what_is_over
from config_server.reconciler.made_disk_removal import remove_unwanted
from config_server.reconciler.mailbox import Mailbox
from config_server.reconciler.recovery_points import RecoveryPoints
from config_server.reconciler.replication_jobs import follow_enabling, follow_recovery_point, follow_resync
from config_server.reconciler.store_exchange import StoreExchange
from config_server.reconciler.work_at_hand import all_items, work_at_hand
from config_server.store_status import StoreStatus
from config_server.tables import JobRow, ProtectedItemRow
from config_server.writer_requests import has_new_requests, writer_silence_s
from replication.blob_client.api import BlobClient
from replication.documents import WriterPublicKey
from replication.errors import BlockferryError
from replication.failpoint import reached
from replication.service.health import HealthBoard, HealthState

MIN_GAP_S: Final = 0.05
"""However often it is woken, passes are at least this far apart."""

HURRY_S: Final = 0.2
"""Between passes while an answer or a point is awaited from the store: during a cutover these count as downtime."""

ROUNDS_BETWEEN_THOROUGH: Final = 12
"""Items on which nothing is to be done are followed only in every so manieth round, as a safety net."""

_logger = logging.getLogger(__name__)


class Reconciler:
    """``run`` until cancelled; ``run_once`` is one pass of both loops. ``alarms`` None: nobody wants alerts (a simulation)."""

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
        placement: PlacementSettings,
        history: HistorySettings,
        clock: Clock,
        ages: Ages,
        leadership: Leadership | None = None,
        alarms: Alarms | None = None,
        job_ended: Callable[[], None] = lambda: None,
    ) -> None:
        leadership = leadership or SoleLeadership()
        database = database.guarded(leadership.guard)
        self._database = database
        self._alarms = alarms
        self._job_ended = job_ended
        self._feed = feed
        self._status = status
        self._board = board
        self._settings = settings
        self._heartbeat = heartbeat
        self._history = history
        self._clock = clock
        self._ages = ages
        self._exchange = StoreExchange(
            database,
            store,
            Mailbox(database, store, writer, ages, clock, settings.answer_keep_s, leadership.may_act),
            RecoveryPoints(database, store, writer, ages, clock),
            status,
            board,
            clock,
            settings.point_interval_s,
        )
        self._exchange_woken, self._follow_woken = asyncio.Event(), asyncio.Event()
        self._round_due_ns = self._housekeeping_due_ns = 0
        self._rounds = 0
        self._watch_due_s = 0.0
        """By the clock that nobody sets: when somebody may have become silent, or an item be in want of another process server."""
        self._placement = Placement(placement, heartbeat, ages)
        self.figures = Figures(ages)

    def wake(self) -> None:
        """Something was changed: let the next pass begin now."""
        self._watch_due_s = 0.0
        self.wake_for_jobs()

    def wake_for_jobs(self) -> None:
        """Somebody was heard: let the next pass begin now, for the sake of jobs that wait for it."""
        self._exchange_woken.set()
        self._follow_woken.set()

    def look_around_soon(self) -> None:
        """Let the next pass look at every item, whenever the next round would be due."""
        self._round_due_ns = 0
        self._exchange.look_around_soon()

    def note_points(self, item_id: str, cuts: frozenset[str]) -> None:
        """An agent names these points as its newest: those that are not known are looked for in the next pass."""
        self._exchange.note_points(item_id, cuts)

    async def run(self) -> None:
        """Pass after pass; returns only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._placement.listen())
            tasks.create_task(self._repeat(self._exchange_once, self._exchange_woken, lambda: self._exchange.awaited))
            tasks.create_task(self._repeat(self._follow_once, self._follow_woken, lambda: False))

    async def _repeat(
        self, act: Callable[[], Awaitable[None]], woken: asyncio.Event, hurries: Callable[[], bool]
    ) -> None:
        while True:
            woken.clear()
            try:
                await act()
            except DatabaseUnavailable as error:
                self._board.report("database", HealthState.FAILED, str(error))
                _logger.warning("the database does not answer", extra={"fields": {"error": str(error)}})
            else:
                self._board.report("database", HealthState.OK)
            await asyncio.sleep(MIN_GAP_S)
            with contextlib.suppress(TimeoutError):
                hurry_s = HURRY_S if hurries() else self._settings.interval_s
                async with asyncio.timeout(min(hurry_s, self._settings.interval_s)):
                    await woken.wait()

    async def look_on(self) -> None:
        """What a server that stands by does: it decides nothing, but knows ages, figures and store as the leader does."""
        self._board.forget("items")
        async with self._database.read() as session:
            await look_at_heartbeats(session, self._ages)
        if self._round_due_ns - int(self._settings.point_interval_s * 1e9) <= self._clock() < self._round_due_ns:
            return
        self._round_due_ns = self._clock() + int(self._settings.point_interval_s * 1e9)
        await self._exchange.look_on()
        verdicts = []
        async with self._database.read() as session:
            for item_id in await all_items(session):
                item = await session.get_one(ProtectedItemRow, item_id)
                problem = self._status.problem
                verdict = await assess_item(session, item, self._heartbeat, problem, self._ages, self._clock())
                verdicts.append((item, verdict))
        if self._alarms is not None:
            await self._alarms.look_on(verdicts)
        await self._take_figures()

    async def run_once(self) -> None:
        """Every step of both loops once; what follows from it is delivered."""
        self._watch_due_s = 0.0
        await self.pass_once()

    async def pass_once(self) -> None:
        """As ``run_once``, but, as ``run`` does it, what is neither due nor asked for is left out."""
        await self._exchange_once()
        await self._follow_once()
        if await self._exchange.has_new_requests():
            await self._exchange_once()

    async def _exchange_once(self) -> None:
        if await self._exchange.run_once():
            self._follow_woken.set()

    async def _follow_once(self) -> None:
        # Or the clock was set back: else nobody would look around until it has caught up.
        looks_around = (
            not self._round_due_ns - int(self._settings.point_interval_s * 1e9) <= self._clock() < self._round_due_ns
        )
        thorough = looks_around and self._rounds % ROUNDS_BETWEEN_THOROUGH == 0
        if looks_around or self._ages.monotonic_s() >= self._watch_due_s:
            await self._watch()
        async with self._database.read() as session:
            at_hand = await work_at_hand(session, answers_due_ns=0)
            followed = await all_items(session) if thorough else at_hand.busy
        is_asked = False
        failures = []
        for item_id in followed:
            try:
                is_asked |= await self._follow_item(item_id, at_hand.jobs.get(item_id, ()))
            except DatabaseUnavailable:
                raise
            except BlockferryError as error:
                _logger.warning("an item's step failed", extra={"fields": {"item": item_id, "error": str(error)}})
                failures.append(f"item {item_id}: {error}")
        self._board.report("items", HealthState.DEGRADED if failures else HealthState.OK, "; ".join(failures))
        if at_hand.installations:
            await self._follow_installations()
        if looks_around:
            self._rounds += 1
            self._round_due_ns = self._clock() + int(self._settings.point_interval_s * 1e9)
            await self._look_around()
        if is_asked:
            self._exchange_woken.set()

    async def _watch(self) -> None:
        """Who is silent now, and which items change their process server. What is due by time alone is due when ``_watch_due_s`` says."""
        # Before the look: what is changed meanwhile makes it due again.
        self._watch_due_s = float("inf")
        try:
            async with self._database.write() as session:
                calm_s = await notice_silence(session, self._heartbeat, self._ages, self._clock())
                placed = await self._placement.follow(session, self._clock())
        except BaseException:
            self._watch_due_s = 0.0
            raise
        self._watch_due_s = min(self._watch_due_s, self._ages.monotonic_s() + min(calm_s, self._placement.calm_s))
        if placed:
            self._feed.wake()

    async def _follow_installations(self) -> None:
        async with self._database.read() as session:
            found = await agent_installations.open_installations(session)
        for identifier in found:
            async with self._database.write() as session:
                await agent_installations.follow(session, identifier, self._heartbeat, self._ages, self._clock())
        if found:
            self._feed.wake()

    async def _look_around(self) -> None:
        """Health of every item, alerts, and the figures; now and then what is over is forgotten."""
        async with self._database.write() as session:
            verdicts = await notice_health(session, self._heartbeat, self._status.problem, self._ages, self._clock())
            await end_overdue(session, self._ages, self._clock())
        if self._alarms is not None:
            await self._alarms.look_around(verdicts)
        await self._take_figures()
        if not self._housekeeping_due_ns - int(EVERY_S * 1e9) <= self._clock() < self._housekeeping_due_ns:
            async with self._database.write() as session:
                await forget_what_is_over(session, self._history, self._clock())
            self._housekeeping_due_ns = self._clock() + int(EVERY_S * 1e9)

    async def _take_figures(self) -> None:
        async with self._database.read() as session:
            self.figures.snapshot = await take_snapshot(
                session,
                self._heartbeat,
                self._ages,
                store_reachable=self._status.reachable,
                changes=self._placement.moves,
            )

    async def _follow_item(self, item_id: str, jobs: Sequence[str]) -> bool:
        """A step of each of its ``jobs``, and then its own; returns whether the writer is to be asked something, for whichever item.

        Its own goes with the last job's, in one transaction: what both need is read once, and what the agent shall do is computed once,
        after both. If that fails, each is done alone: neither keeps the other waiting.
        """
        for job_id in jobs[:-1]:
            await self._follow_job_alone(job_id, item_id)
        if jobs:
            try:
                return await self._follow_both(jobs[-1], item_id)
            except DatabaseUnavailable:
                raise
            except BlockferryError:
                await self._follow_job_alone(jobs[-1], item_id)
        async with self._database.write() as session:
            published = await self._follow_item_itself(session, item_id)
            is_asked = await has_new_requests(session)
        self._tell(published=published)
        return is_asked

    async def _follow_both(self, job_id: str, item_id: str) -> bool:
        """A job's step and its item's own, or neither if one of them complains; returns what ``_follow_item`` does."""
        async with self._database.write() as session:
            has_ended = await self._follow_job(session, job_id, item_id)
            published = await self._follow_item_itself(session, item_id)
            is_asked = await has_new_requests(session)
        self._tell(published=published, has_ended=has_ended)
        reached("config.job.stepped")
        return is_asked

    async def _follow_job_alone(self, job_id: str, item_id: str) -> None:
        """What its step complains of is shown with it."""
        try:
            async with self._database.write() as session:
                has_ended = await self._follow_job(session, job_id, item_id)
                item = await session.get_one(ProtectedItemRow, item_id)
                published = await publish(session, item.machine_id)
        except DatabaseUnavailable:
            raise
        except BlockferryError as error:
            _logger.warning("a job's step failed", extra={"fields": {"job": job_id, "error": str(error)}})
            async with self._database.write() as session:
                job = await find_job(session, job_id)
                if job.ended_ns is None:
                    job.message = f"a step failed and is tried again: {error}"
        else:
            self._tell(published=published, has_ended=has_ended)
            reached("config.job.stepped")

    def _tell(self, *, published: bool, has_ended: bool = False) -> None:
        """After the commit."""
        if has_ended:
            self._job_ended()
        if published:
            self._feed.wake()

    async def _follow_item_itself(self, session: AsyncSession, item_id: str) -> bool:
        """Returns whether the agent is told something new."""
        item = await session.get_one(ProtectedItemRow, item_id)
        await follow_observation(session, item, self._clock())
        await remove_unwanted(session, item_id, self._clock())
        return await publish(session, item.machine_id)

    async def _follow_job(self, session: AsyncSession, job_id: str, item_id: str) -> bool:
        """One step of one job; returns whether it has ended."""
        job = await session.get_one(JobRow, job_id)
        item = await session.get_one(ProtectedItemRow, item_id)
        if job.ended_ns is not None:
            return True
        now_ns, timeout_s = self._clock(), self._settings.point_timeout_s
        match JobKind(job.kind):
            case JobKind.ENABLE_REPLICATION:
                await follow_enabling(session, job, item, now_ns)
            case JobKind.RESYNC:
                await follow_resync(session, job, item, self._ages, now_ns)
            case JobKind.RECOVERY_POINT:
                await follow_recovery_point(session, job, item, self._ages, now_ns, timeout_s)
            case JobKind.TEST_MIGRATE:
                await follow_test_migration(session, job, item, self._ages, now_ns, timeout_s)
            case JobKind.CLEAN_UP:
                await follow_clean_up(session, job, item, now_ns)
            case JobKind.MIGRATE:
                await follow_migration(session, job, item, self._heartbeat, self._ages, now_ns)
            case JobKind.COMPLETE | JobKind.STOP:
                await follow_deletion(session, job, item, self._heartbeat, self._ages, now_ns)
        silence_s = await writer_silence_s(session, item_id, self._ages)
        if silence_s is not None and silence_s > WRITER_SILENT_S and job.state in OPEN_STATES and not job.message:
            job.message = f"the replica writer has not answered for {silence_s:.0f} s: see that it runs"
        return job.ended_ns is not None
