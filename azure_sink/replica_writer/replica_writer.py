"""The replica writer as a whole: followers, requests and sweep over one account, until it is cancelled.

Called by ``azure_sink/daemon.py``; tests call ``settle``, which does the same work step by step, without waiting. It needs a
``BlobClient`` and nothing else of the store, so an in-process one over the blob store can replace the HTTPS hop of ``azure-sink all``.
It looks for work at intervals; there, ``Doorbells`` of the store end them as soon as there is some.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from azure_sink.replica_writer.disk_follower import DiskFollower, FollowerParts, Outcome
from azure_sink.replica_writer.doorbells import RECORDS, REQUESTS, Doorbells
from azure_sink.replica_writer.failures import FenceLost
from azure_sink.replica_writer.follower_registry import FollowerRegistry
from azure_sink.replica_writer.generation_book import GenerationBook
from azure_sink.replica_writer.metrics import WriterMetrics
from azure_sink.replica_writer.point_ledger import PointLedger
from azure_sink.replica_writer.request_desk import RequestDesk
from azure_sink.replica_writer.request_handlers import RequestHandlers
from azure_sink.replica_writer.segment_reader import SegmentReader
from azure_sink.replica_writer.settings import WriterSettings
from azure_sink.replica_writer.store_cleaning import Sweep, SweepFacts
from replication.blob_client.api import BlobClient
from replication.clock import Clock
from replication.documents import WriterIdentity
from replication.errors import BlockferryError, Retryable
from replication.service.health import HealthBoard, HealthState
from replication.store_layout import CONTAINERS

IDLE_GROWTH: Final = 1.5
IDLE_PER_DISK_S: Final = 0.02
"""Idle followers together ask the store about 50 times a second, however many disks there are."""
LOST_PAUSE_S: Final = 0.5
FIRST_TROUBLE_PAUSE_S: Final = 1.0
MAX_TROUBLE_PAUSE_S: Final = 60.0
TROUBLE_WATCH_S: Final = 2.0
RELEASE_TIMEOUT_S: Final = 3.0
_STORE_CHECK: Final = "store"

_logger = logging.getLogger(__name__)


class ReplicaWriter:
    """One writer process's work on one account. ``lease_id`` is this instance's own UUID, kept over restarts."""

    def __init__(
        self,
        client: BlobClient,
        identity: WriterIdentity,
        lease_id: str,
        settings: WriterSettings,
        metrics: WriterMetrics,
        health: HealthBoard,
        clock: Clock | None = None,
        doorbells: Doorbells | None = None,
    ) -> None:
        clock = Clock() if clock is None else clock
        self._client = client
        self._settings = settings
        self._health = health
        self._clock = clock
        self._doorbells = doorbells
        self._started: set[DiskFollower] = set()
        self._prepared = asyncio.Event()
        self._store_trouble: BlockferryError | None = None
        self._reader = SegmentReader(client, clock, settings.segment_slots, settings.opening_threads)
        ledger = PointLedger(client, identity)
        self.followers = FollowerRegistry(
            FollowerParts(
                client=client,
                identity=identity,
                lease_id=lease_id,
                lease_s=int(settings.lease_s),
                clock=clock,
                book=GenerationBook(client, identity),
                reader=self._reader,
                ledger=ledger,
                metrics=metrics,
                applying=asyncio.Semaphore(settings.parallel_disks),
            )
        )
        metrics.oldest_manifest_seconds.set_function(self._oldest_manifest_s)
        handlers = RequestHandlers(client, ledger, self.followers)
        self.desk = RequestDesk(client, identity, clock, lease_id, handlers.handle, metrics, settings.parallel_requests)
        facts = SweepFacts(self.followers.receipted, self.followers.book.may_be_orphan)
        self.sweep = Sweep(client, facts, metrics, settings.keep_answers_s)

    # -- as a daemon ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled; the leases are given back then."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._discover(tasks))
                tasks.create_task(self._answer(tasks))
                tasks.create_task(self._sweep())
        finally:
            await self.close()

    async def close(self) -> None:
        """Give the leases back, as far as the store answers, and end the threads."""
        self._reader.close()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                for follower in self.followers.all:
                    await follower.release()
        except (TimeoutError, BlockferryError) as error:
            _logger.info("leases are left to expire", extra={"fields": {"reason": str(error)}})

    async def _discover(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                if not self._prepared.is_set():
                    for container in CONTAINERS:
                        await self._client.create_container(container)
                    self._prepared.set()
                await self.followers.discover()
                for follower in self.followers.all:
                    self._start(tasks, follower)
                self._report_store_answers()
            except BlockferryError as error:
                self._report_store(error)
            await self._pause(RECORDS, self._settings.poll_idle_s)

    async def _pause(self, which: str, longest_s: float) -> None:
        """Until the next look."""
        if self._doorbells is None:
            await self._clock.sleep(longest_s)
        else:
            await self._doorbells.wait(which, longest_s)

    def _start(self, tasks: asyncio.TaskGroup, follower: DiskFollower) -> None:
        """Give a follower its tasks, unless it has them."""
        if follower in self._started:
            return
        self._started.add(follower)
        task = tasks.create_task(self._follow(follower))
        task.add_done_callback(lambda _: self._started.discard(follower))
        tasks.create_task(self._keep_lease(follower))

    async def _follow(self, follower: DiskFollower) -> None:
        settings = self._settings
        idle_s, trouble_s = settings.poll_busy_s, FIRST_TROUBLE_PAUSE_S
        if self._doorbells is not None:
            self._doorbells.install(follower.disk)
        while not follower.retired:
            async with follower.lock:
                outcome = await follower.step()
            self._report(follower, outcome)
            if outcome is not Outcome.TROUBLED:
                trouble_s = FIRST_TROUBLE_PAUSE_S
            match outcome:
                case Outcome.WORKED:
                    idle_s = settings.poll_busy_s
                case Outcome.IDLE:
                    await self._pause(follower.disk, idle_s)
                    slowest_s = max(settings.poll_idle_s, IDLE_PER_DISK_S * len(self.followers.all))
                    idle_s = min(idle_s * IDLE_GROWTH, slowest_s)
                case Outcome.LOST:
                    await self._clock.sleep(LOST_PAUSE_S)
                case Outcome.STANDBY:
                    await self._clock.sleep(settings.lease_s / 3)
                case Outcome.TROUBLED:
                    await self._pause_in_trouble(follower, trouble_s)
                    trouble_s = min(trouble_s * 2, MAX_TROUBLE_PAUSE_S)
        self._health.forget(_check_name(follower))
        if self._doorbells is not None and self.followers.find(follower.disk) is None:
            self._doorbells.remove(follower.disk)

    async def _pause_in_trouble(self, follower: DiskFollower, pause_s: float) -> None:
        """Wait, but no longer than until the blobs that the trouble is about have changed."""
        before = await follower.fingerprint()
        while pause_s > 0 and not follower.retired:
            await self._clock.sleep(min(pause_s, TROUBLE_WATCH_S))
            pause_s -= TROUBLE_WATCH_S
            if pause_s > 0 and await follower.fingerprint() != before:
                return

    async def _keep_lease(self, follower: DiskFollower) -> None:
        """Beside the follower, since applying an epoch may take longer than a lease."""
        while not follower.retired:
            await self._clock.sleep(self._settings.lease_s / 10)
            try:
                await follower.renew_lease()
            except FenceLost:
                continue  # the follower's next write is refused, and its next step takes over anew
            except Retryable as error:
                # Tried again soon; once the term is over the follower stops by itself.
                _logger.debug(str(error), extra={"fields": {"disk": follower.disk, "code": error.code}})

    async def _answer(self, tasks: asyncio.TaskGroup) -> None:
        interval_s = self._settings.poll_idle_s
        await self._prepared.wait()
        while True:
            try:
                found = await self.desk.start_waiting(tasks)
            except BlockferryError as error:
                self._report_store(error)
                found = False
            interval_s = (
                self._settings.poll_busy_s if found else min(interval_s * IDLE_GROWTH, self._settings.poll_idle_s)
            )
            await self._pause(REQUESTS, interval_s)

    async def _sweep(self) -> None:
        await self._prepared.wait()
        while True:
            await self._clock.sleep(self._settings.sweep_interval_s)
            try:
                await self.sweep.run()
            except BlockferryError as error:
                _logger.warning(str(error), extra={"fields": {"code": error.code}})

    def _report(self, follower: DiskFollower, outcome: Outcome) -> None:
        name = _check_name(follower)
        if outcome is Outcome.TROUBLED and follower.trouble is not None:
            self._health.report(name, HealthState.DEGRADED, str(follower.trouble))
        elif outcome is Outcome.STANDBY:
            self._health.report(name, HealthState.OK)
        else:
            self._health.forget(name)

    def _oldest_manifest_s(self) -> float:
        waiting = [each.waiting_since_s for each in self.followers.all if each.waiting_since_s is not None]
        return max(0.0, self._clock.unix_ns() / 1e9 - min(waiting)) if waiting else 0.0

    def _report_store(self, error: BlockferryError) -> None:
        if self._store_trouble is None:
            _logger.warning(str(error), extra={"fields": {"code": error.code}})
        self._store_trouble = error
        self._health.report(_STORE_CHECK, HealthState.DEGRADED, str(error))

    def _report_store_answers(self) -> None:
        if self._store_trouble is not None:
            _logger.info("the store answers again")
        self._store_trouble = None
        self._health.report(_STORE_CHECK, HealthState.OK)

    def abandon(self) -> None:
        """End the threads and give nothing back: what a killed process leaves. For tests."""
        self._reader.close()

    # -- step by step -----------------------------------------------------------------------------------------

    async def settle(self) -> dict[str, Outcome]:
        """Do all that can be done now: discover, apply, answer; returns each disk's last outcome."""
        outcomes: dict[str, Outcome] = {}
        working = True
        while working:
            await self.followers.discover()
            working = False
            for follower in self.followers.all:
                async with follower.lock:
                    outcome = await follower.step()
                outcomes[follower.disk] = outcome
                working |= outcome in (Outcome.WORKED, Outcome.LOST)
            for name in await self.desk.waiting():
                await self.desk.handle(name)
                working = True
        return outcomes


def _check_name(follower: DiskFollower) -> str:
    return f"disk {follower.disk}"
