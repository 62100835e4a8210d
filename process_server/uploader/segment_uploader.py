"""From the spool to the store: segments go out in parallel, each put conditional, nothing given up before it is stored.

Built by ``daemon``; ``run`` in a task, ``wake`` when something new waits. Which segment is next is ``UploadSchedule``'s decision, how
many may be under way is bounded by ``UploadRoom`` and by the limit's speed. One that the spool still has in memory is sent
from there, others are read back. How fast they go the connections themselves are told by ``Throttle``. A put that finds the blob there is a
success only if digest *and* tag are equal: the same batch sealed twice has two tags, and manifests name tags (R4). And only if it reads
back byte for byte, for that is the last moment at which a damaged blob can be replaced: afterwards the spooled record is gone (P1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from process_server.buffer_arena import Lease
from process_server.core.backlog import Backlog, SegmentState
from process_server.core.backoff import SLOW_RETRY_S, Failure, StoreGate, classify
from process_server.core.upload_schedule import UploadJob, UploadSchedule, uploads_at_once
from process_server.metrics import ProcessServerMetrics
from process_server.spool.kept_segments import KeptSegment
from process_server.spool.record import RECORD_HEADER_BYTES, RecordKind, record_bytes
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoreInquiry
from process_server.throttle import Throttle
from process_server.uploader.conditional_put import put_first
from process_server.uploader.upload_room import UploadRoom
from replication.blob_client.api import BlobClient
from replication.clock import Clock
from replication.errors import BlockferryError, Conflict, IntegrityError, NotFound
from replication.failpoint import reached
from replication.identifiers import BatchKey
from replication.store_layout import (
    REPLICATION_CONTAINER,
    SEGMENT_DIGEST_METADATA,
    SEGMENT_TAG_METADATA,
    segment_name,
)

READ_AGAIN_S: Final = 1.0
_LONGEST_WAIT_S: Final = 60.0
MAX_BLOB_PROBLEMS: Final = 64

_logger = logging.getLogger(__name__)


class SegmentUploader:
    """The dispatcher of segment uploads. ``on_settled`` is told of each that is stored, displaced or lost."""

    def __init__(
        self,
        backlog: Backlog,
        schedule: UploadSchedule,
        spool: Spool,
        client: BlobClient,
        inquiry: StoreInquiry,
        room: UploadRoom,
        throttle: Throttle,
        gate: StoreGate,
        clock: Clock,
        metrics: ProcessServerMetrics,
        *,
        chance: Callable[[], float],
        on_settled: Callable[[BatchKey], None],
    ) -> None:
        self._backlog = backlog
        self._schedule = schedule
        self._spool = spool
        self._client = client
        self._inquiry = inquiry
        self._room = room
        self._throttle = throttle
        self._gate = gate
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        self._on_settled = on_settled
        self._wake = asyncio.Event()
        gate.on_open.append(self.wake)
        self._blob_problems: dict[BatchKey, BlockferryError] = {}
        self.damaged_at_s: float | None = None
        """When a record of the spool could last not be read back."""

    def wake(self) -> None:
        """Something may have become possible: a segment waits, a limit was raised; or less may be held, a limit was lowered."""
        self._wake.set()

    @property
    def blob_problem(self) -> BlockferryError | None:
        """Why the store refuses some single segment that is still wanted, if it does."""
        for key in [key for key in self._blob_problems if self._backlog.find(key) is None]:
            del self._blob_problems[key]
        return next(iter(self._blob_problems.values()), None)

    async def run(self) -> None:
        """Upload until cancelled. What is under way at that moment is undecided; the next start tries it again."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                now_s = self._clock.monotonic_s()  # once: a gate that opened between two looks would wake nobody
                self._start_what_may(tasks, now_s)
                try:
                    async with asyncio.timeout(self._wait_s(now_s)):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def _wait_s(self, now_s: float) -> float:
        moments = [now_s + _LONGEST_WAIT_S]
        retry_s = self._schedule.next_retry_s()
        if retry_s is not None:
            moments.append(retry_s)
        if not self._gate.permits(now_s):  # once it is open, only what wakes can make something possible
            moments.append(self._gate.opens_at_s)
        return max(0.01, min(moments) - now_s)

    def _start_what_may(self, tasks: asyncio.TaskGroup, now_s: float) -> None:
        self._schedule.unpark(now_s)
        threads = self._schedule.threads_per_machine
        self._room.follow(threads)
        parallel = uploads_at_once(self._throttle.limit_bits_per_s, self._room.connections(threads))
        while self._schedule.in_flight < parallel and self._gate.permits(now_s):
            job = self._schedule.peek(now_s)
            if job is None:
                return
            held = self._spool.kept.take(job.entry.place) or self._room.try_lease(record_bytes(job.entry.segment_bytes))
            if held is None:
                return
            ticket = self._gate.begin(now_s)
            tasks.create_task(self._upload(self._schedule.next_job(job), held, ticket))

    # -- one segment ------------------------------------------------------------------------------------------

    async def _upload(self, job: UploadJob, held: KeptSegment | Lease, ticket: int) -> None:
        """:param held: the segment in memory, or room to read it into."""
        try:
            if isinstance(held, KeptSegment):
                with held.lease:
                    state = await self._send(job, held.content)
                self._metrics.segments_from_memory.inc()
            else:
                with held:
                    state = await self._send(job, await self._read(job, held.view))
        except IntegrityError as error:
            self._lost(job, error)
        except BlockferryError as error:
            self._failed(job, error, ticket)
        else:
            self._gate.succeeded()
            self._blob_problems.pop(job.key, None)
            self._finish(job, state)
        self._wake.set()

    def _lost(self, job: UploadJob, error: IntegrityError) -> None:
        if not self._finish(job, SegmentState.LOST):
            return
        self.damaged_at_s = self._clock.monotonic_s()
        self._metrics.damaged_records.inc()
        _logger.error(
            "a spooled segment is damaged: its epoch needs a new attempt",
            extra={"fields": {"batch": str(job.key), "error": str(error)}},
        )

    async def _read(self, job: UploadJob, room: memoryview) -> memoryview:
        try:
            await self._spool.read_record(job.entry.place, room)
        except (
            NotFound
        ) as error:  # discarded meanwhile, and its file removed; else the file was taken away from outside
            raise IntegrityError(error.message) from error
        return room[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + job.entry.segment_bytes]

    async def _send(self, job: UploadJob, content: memoryview) -> SegmentState:
        entry = job.entry
        metadata = {SEGMENT_DIGEST_METADATA: entry.digest.hex(), SEGMENT_TAG_METADATA: entry.tag.hex()}
        try:
            await put_first(self._client, segment_name(job.key), content, metadata)
        except Conflict as conflict:
            return await self._compare(job, content, conflict)
        reached("process.segment.stored")
        self._metrics.segments_uploaded.inc()
        self._metrics.uploaded_bytes.inc(entry.segment_bytes)
        return SegmentState.STORED

    async def _compare(self, job: UploadJob, content: memoryview, conflict: Conflict) -> SegmentState:
        """The blob is there already: is it this very segment?"""
        stored = await self._inquiry.segment(job.key)
        if stored is None:
            raise conflict
        if (stored.digest, stored.tag) == (job.entry.digest, job.entry.tag):
            await self._mend(job, content, conflict)
            return SegmentState.STORED
        fields = {"batch": str(job.key), "stored": stored.digest.hex(), "spooled": job.entry.digest.hex()}
        if stored.digest == job.entry.digest:
            _logger.warning("the store holds this batch sealed by another", extra={"fields": fields})
        else:
            self._metrics.key_conflicts.inc()
            _logger.error("the store holds other content under this batch's key", extra={"fields": fields})
        return SegmentState.DISPLACED

    async def _mend(self, job: UploadJob, content: memoryview, conflict: Conflict) -> None:
        """Return once the store gives back this very segment: if it gave back another, put it in that one's place.

        :raises Conflict: what is there has changed or gone meanwhile.
        """
        try:
            etag = await self._inquiry.damaged(job.key, content)
        except NotFound:
            raise conflict from None
        if etag is None:
            return
        self._metrics.segments_mended.inc()
        _logger.error(
            "the store gives back other bytes than were put: the segment is put again",
            extra={"fields": {"batch": str(job.key)}},
        )
        entry = job.entry
        metadata = {SEGMENT_DIGEST_METADATA: entry.digest.hex(), SEGMENT_TAG_METADATA: entry.tag.hex()}
        await self._client.put_blob(
            REPLICATION_CONTAINER, segment_name(job.key), content, metadata=metadata, if_match=etag
        )

    def _finish(self, job: UploadJob, state: SegmentState) -> bool:
        """Note the outcome; False if the segment was discarded meanwhile."""
        self._schedule.done(job)
        if not self._backlog.finish(job.key, job.entry.place, state):
            return False
        self._spool.release(
            job.entry.place, RecordKind.UPLOADED if state is SegmentState.STORED else RecordKind.DISCARDED
        )
        reached("process.segment.released")
        self._on_settled(job.key)
        return True

    def _failed(self, job: UploadJob, error: BlockferryError, ticket: int) -> None:
        now_s = self._clock.monotonic_s()
        self._metrics.upload_failures.labels(error.code).inc()
        if classify(error) is Failure.OF_THIS_BLOB:
            self._gate.succeeded()  # it answers
            if len(self._blob_problems) < MAX_BLOB_PROBLEMS:
                self._blob_problems[job.key] = error
            _logger.error("the store refuses a segment", extra={"fields": {"batch": str(job.key), "error": str(error)}})
            self._schedule.failed(job, now_s + SLOW_RETRY_S)
            return
        if self._gate.failures == 0:
            _logger.warning("uploads stop: the store fails", extra={"fields": {"error": str(error)}})
        self._gate.failed(ticket, error, now_s, self._chance())
        self._schedule.failed(job, now_s)
