"""PUT of a batch: authorise, find room, receive, verify, seal, spool, wait until it is durable; only then acknowledge (P1).

Called by ``http_surface``. Idempotent by key (R4): the same key with the same digest is answered with the same tag, from the index, or from
the store once the epoch is decided or the process was restarted; the same key with another digest is ``KeyConflict``.

From the moment a segment is sealed until it is durable and in the backlog nothing is interrupted, whatever becomes of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from process_server.buffer_arena import BufferArena, Lease
from process_server.core.backlog import Backlog, GenerationBacklog, SegmentEntry, SegmentState
from process_server.core.places import NOWHERE
from process_server.intake.back_pressure import BackPressure
from process_server.intake.body import Body
from process_server.intake.grants import Grant, Grants
from process_server.intake.keyed_locks import KeyedLocks
from process_server.intake.sealing import SealedBatch, Sealing
from process_server.metrics import ProcessServerMetrics
from process_server.spool.record import RecordKind
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoredSegment, StoreInquiry
from replication.batch_frame import HEADER_BYTES, MAX_FRAME_BYTES
from replication.data_plane import BatchAcknowledgement
from replication.errors import BlockferryError, KeyConflict, Overloaded, PeerUnavailable
from replication.failpoint import reached
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, EpochId, EpochKey, GenerationKey, MachineId
from replication.threads import finished

BUFFER_WAIT_S: Final = 2.0
STORE_LOOKUP_S: Final = 5.0
_KNOWN: Final = (SegmentState.WAITING, SegmentState.UPLOADING, SegmentState.STORED)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """``created`` is False for a batch that was there already."""

    acknowledgement: BatchAcknowledgement
    created: bool


@dataclass(slots=True)
class _History:
    """Of a generation since the start: the first epoch seen, and the attempts for which the store was asked."""

    first_epoch: EpochId
    looked_up: set[tuple[EpochId, AttemptNumber]] = field(default_factory=set)


class BatchIntake:
    """Accepts batches. ``on_segment`` is told of each that waits for its upload, ``on_generation`` of a generation's first batch."""

    def __init__(
        self,
        backlog: Backlog,
        spool: Spool,
        sealing: Sealing,
        arena: BufferArena,
        grants: Grants,
        inquiry: StoreInquiry,
        metrics: ProcessServerMetrics,
        pressure: BackPressure,
        *,
        on_segment: Callable[[GenerationBacklog], None],
        on_generation: Callable[[GenerationKey], None],
    ) -> None:
        self._backlog = backlog
        self._spool = spool
        self._sealing = sealing
        self._arena = arena
        self._grants = grants
        self._inquiry = inquiry
        self._metrics = metrics
        self._pressure = pressure
        self._on_segment = on_segment
        self._on_generation = on_generation
        self._locks: KeyedLocks[BatchKey] = KeyedLocks()
        self._lookups: KeyedLocks[tuple[EpochKey, AttemptNumber]] = KeyedLocks()
        self._histories: dict[GenerationKey, _History] = {}

    async def put(self, key: BatchKey, machine: MachineId, body: Body) -> BatchAnswer:
        """Accept a batch; durable on return. On cancel it may be durable all the same: repeating it is harmless.

        :raises Overloaded: nothing was accepted: no room or too little of it, no buffer within a short time, or others waited for it.
        :raises KeyConflict: the key is taken by another digest.
        :raises BlockferryError: as ``Grants.for_batch``, ``Body.receive_into`` and ``Sealing.verify`` say.
        """
        try:
            answer = await self._put(key, machine, body)
        except KeyConflict:
            self._metrics.key_conflicts.inc()
            self._metrics.batches.labels("refused").inc()
            raise
        except Overloaded:
            self._metrics.batches.labels("deferred").inc()
            raise
        except BlockferryError:
            self._metrics.batches.labels("refused").inc()
            raise
        self._metrics.batches.labels("accepted" if answer.created else "repeated").inc()
        return answer

    async def _put(self, key: BatchKey, machine: MachineId, body: Body) -> BatchAnswer:
        length = body.length(at_least=HEADER_BYTES, at_most=MAX_FRAME_BYTES)
        grant = await self._grants.for_batch(key.generation_key, machine)
        reservation = None if self._known(key) is not None else self._spool.reserve_batch(length)
        try:
            if reservation is not None:
                await self._pressure.admit(length)
            with await self._arena.lease(length, BUFFER_WAIT_S, machine) as lease:
                async with lease.receiving(lambda: body.received_bytes):
                    await body.receive_into(lease.view)
                async with self._locks.hold(key):
                    return await finished(self._accept(key, lease, grant, has_room=reservation is not None))
        finally:
            if reservation is not None:
                reservation.close()

    def _known(self, key: BatchKey) -> SegmentEntry | None:
        entry = self._backlog.find(key)
        return entry if entry is not None and entry.state in _KNOWN else None

    async def _accept(self, key: BatchKey, lease: Lease, grant: Grant, *, has_room: bool) -> BatchAnswer:
        known = await self._known_anywhere(key, grant.machine)
        if known is None:  # though it may have been known when it began: then no room was kept for it
            with contextlib.nullcontext() if has_room else self._spool.reserve_batch(lease.view.nbytes):
                return await self._spool_new(key, lease, grant)
        digest = await self._sealing.verify(key, lease.view, grant)
        if digest != known.digest:
            raise KeyConflict(
                f"cannot accept batch {key}: its key is taken by other content",
                disk=key.disk,
                epoch=key.epoch,
                hint="an epoch that is read again needs a new attempt",
            )
        return BatchAnswer(BatchAcknowledgement(tag=known.tag.hex(), segment_bytes=known.segment_bytes), created=False)

    async def _spool_new(self, key: BatchKey, lease: Lease, grant: Grant) -> BatchAnswer:
        frame_bytes = lease.view.nbytes
        sealed = await self._sealing.seal(key, lease.view, grant)
        lease.close()  # the next body need not wait for the disk
        try:
            reached("process.batch.appended")
            await self._spool.durable(sealed.written)
            reached("process.batch.durable")
        except BaseException:
            if sealed.memory is not None:
                sealed.memory.close()
            raise
        if sealed.memory is not None:
            self._spool.kept.keep(sealed.written.place, sealed.memory)
        self._note(key, grant, sealed)
        self._metrics.received_bytes.inc(frame_bytes)
        self._metrics.sealed_bytes.inc(sealed.entry.segment_bytes)
        entry = sealed.entry
        return BatchAnswer(BatchAcknowledgement(tag=entry.tag.hex(), segment_bytes=entry.segment_bytes), created=True)

    def _note(self, key: BatchKey, grant: Grant, sealed: SealedBatch) -> None:
        generation = self._backlog.generation(key.generation_key, grant.machine)
        if self._backlog.add_segment(key, grant.machine, sealed.entry):
            self._on_segment(generation)
        else:  # its epoch was decided: it is durable, acknowledged, and can never count
            self._spool.release(sealed.entry.place, RecordKind.DISCARDED)
            self._metrics.discarded_records.inc()

    # -- repeated batches -------------------------------------------------------------------------------------

    async def _known_anywhere(self, key: BatchKey, machine: MachineId) -> SegmentEntry | StoredSegment | None:
        """What is known of a batch: in the spool or, where that can be, in the store.

        :raises Retryable: if the store must be asked and does not answer.
        """
        known = self._known(key)
        if known is not None:
            return known
        entry = self._backlog.find(key)
        generation = self._backlog.generation(key.generation_key, machine)
        if generation.chain.is_over(key.epoch) or (entry is not None and entry.state is SegmentState.DISPLACED):
            try:
                async with asyncio.timeout(STORE_LOOKUP_S):
                    return await self._inquiry.segment(key)
            except TimeoutError as error:
                raise PeerUnavailable(f"cannot ask the store for batch {key}: no answer") from error
        if entry is None:
            await self._look_up_attempt(key, machine)
        return self._known(key)

    async def _look_up_attempt(self, key: BatchKey, machine: MachineId) -> None:
        """After a start, the store may hold what this spool no longer does: list the attempt once.

        Only epochs up to the first one seen since the start can be meant; later ones are new to everybody. If the store does not answer,
        the batch is taken as new: should it be there after all, the upload finds out, and its manifest is refused (R4, R5).
        """
        history = self._histories.get(key.generation_key)
        if history is None:
            history = self._histories[key.generation_key] = _History(key.epoch)
            self._on_generation(key.generation_key)
        attempt = (key.epoch, key.attempt)
        if key.epoch > history.first_epoch or attempt in history.looked_up:
            return
        async with self._lookups.hold((key.epoch_key, key.attempt)):
            if attempt in history.looked_up:
                return
            try:
                async with asyncio.timeout(STORE_LOOKUP_S):
                    stored = await self._inquiry.attempt(key.epoch_key, key.attempt)
            except (BlockferryError, TimeoutError) as error:
                stored = {}
                _logger.info(
                    "cannot ask the store for earlier segments",
                    extra={"fields": {"batch": str(key), "error": str(error)}},
                )
            history.looked_up.add(attempt)
            self._remember(key, machine, stored)

    def _remember(self, key: BatchKey, machine: MachineId, stored: Mapping[BatchNumber, StoredSegment]) -> None:
        for batch, segment in stored.items():
            other = BatchKey(key.disk, key.generation, key.epoch, key.attempt, batch)
            if self._backlog.find(other) is None:
                entry = SegmentEntry(
                    segment.digest, segment.tag, segment.segment_bytes, SegmentState.STORED, NOWHERE, 0
                )
                self._backlog.add_segment(other, machine, entry)

    def forget(self, key: GenerationKey) -> None:
        """The generation is over."""
        self._histories.pop(key, None)
