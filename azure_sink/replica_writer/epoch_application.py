"""One epoch onto one replica: open its segments, resolve overlaps, write, and state that it is applied (R5, R7).

Called by ``disk_follower.py``. An epoch that fits the slots is opened and verified whole before its first write; a larger one flows
through them in groups, each resolved from its highest batch down and separated from the next by a raised fence, so that memory
is bounded and a write that arrives late can never land on a higher batch's. Every segment is known to be there before the first write.
Repeating the whole after a crash leads to the same bytes. A larger one may so be found bad after its first write: no byte that was not
verified is written, but the replica stays between two epochs until the right segment is there (``docs/replica-writer.md``, torn epochs).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from azure_sink.core.replica_state import EpochApplied, EpochBegun, PointMark
from azure_sink.core.write_plan import Claims, ClearRange, PlannedWrite, PutRange, plan_writes
from azure_sink.replica_writer.failures import SegmentMissing, patiently, raise_gravest, together
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from azure_sink.replica_writer.segment_reader import SegmentReader, SegmentSlot
from azure_sink.vhd import FixedVhd
from replication.batch_frame import DataExtent, ParsedBatch
from replication.blob_client.api import MAX_PUT_PAGES_BYTES, BlobClient
from replication.clock import Clock
from replication.epoch_manifest import EpochFlag, EpochManifest, ManifestSegment
from replication.errors import PeerProtocolError
from replication.failpoint import reached
from replication.store_layout import REPLICATION_CONTAINER, epoch_prefix, segment_name

GROUP_SEGMENTS: Final = 64
"""Segments whose overlaps are resolved together; at most a million claimed ranges, 16 MiB."""
WRITES_PER_BATCH: Final = 8


@dataclass(slots=True)
class EpochFigures:
    """What an application did, for metrics."""

    written_bytes: int = 0
    cleared_bytes: int = 0
    writes: int = 0


class EpochApplication:
    """Applies one verified manifest; ``run`` may be called once."""

    def __init__(
        self,
        client: BlobClient,
        reader: SegmentReader,
        replica: ReplicaBlob,
        manifest: EpochManifest,
        manifest_hash: str,
        data_key: bytes,
        clock: Clock,
    ) -> None:
        self.figures = EpochFigures()
        self._client = client
        self._reader = reader
        self._replica = replica
        self._manifest = manifest
        self._hash = manifest_hash
        self._data_key = data_key
        self._clock = clock
        self._writable_bytes = FixedVhd(replica.state.size_bytes).writable_bytes

    async def run(self) -> None:
        """On return the epoch is applied and the replica's state says so. On raise or cancel it is applied again from its segments.

        :raises FenceLost: this writer may not write any more; nothing was written after that was known.
        :raises PeerProtocolError: (``IntegrityError``) a segment is not what the manifest names; nothing of it was written, and nothing
            at all if the epoch fits the slots.
        :raises SegmentMissing: a segment is not in the store; nothing was written.
        """
        segments = self._manifest.segments
        try:
            if len(segments) <= self._reader.slot_count:
                await self._apply_whole(segments)
            else:
                await self._apply_in_groups(segments)
        except BaseExceptionGroup as group:
            raise_gravest(group)
        reached("sink.epoch.written")
        manifest = self._manifest
        await self._replica.record(
            EpochApplied(manifest.key.epoch, self._hash, manifest.cut_time_ns, point_mark(manifest))
        )

    async def _begin(self) -> None:
        await self._replica.raise_fence()
        await self._replica.record(EpochBegun(self._manifest.key.epoch))
        reached("sink.epoch.begun")

    async def _apply_whole(self, segments: Sequence[ManifestSegment]) -> None:
        slots = await self._reader.reserve(len(segments))
        try:
            async with asyncio.TaskGroup() as tasks:
                opened = [
                    tasks.create_task(self._open(slot, segment)) for slot, segment in zip(slots, segments, strict=True)
                ]
            await self._begin()
            claims = Claims()
            # Planned one after the other, from the highest down, before the first of them is written.
            planned = [(task.result(), self._plan(claims, task.result())) for task in reversed(opened)]
            await together(self._write(batch, writes) for batch, writes in planned)
        finally:
            self._reader.release(slots)

    async def _apply_in_groups(self, segments: Sequence[ManifestSegment]) -> None:
        await self._require_all_stored(segments)
        await self._begin()
        for first in range(0, len(segments), GROUP_SEGMENTS):
            if first:
                await self._replica.raise_fence()
            claims, turn = Claims(), _Turn()
            async with asyncio.TaskGroup() as tasks:
                for place, segment in enumerate(reversed(segments[first : first + GROUP_SEGMENTS])):
                    slots = await self._reader.reserve(1)
                    task = tasks.create_task(self._stream(slots[0], segment, claims, turn, place))
                    # Not by the task itself: cancelled before its first step it would never give the slot back.
                    task.add_done_callback(functools.partial(self._give_back, slots))

    def _give_back(self, slots: list[SegmentSlot], _task: asyncio.Task[None]) -> None:
        self._reader.release(slots)

    async def _stream(
        self,
        slot: SegmentSlot,
        segment: ManifestSegment,
        claims: Claims,
        turn: _Turn,
        place: int,
    ) -> None:
        """Open, wait until every higher batch has made its claims, claim, write."""
        batch = await self._open(slot, segment)
        await turn.reached(place)
        planned = self._plan(claims, batch)
        turn.next()
        await self._write(batch, planned)

    async def _open(self, slot: SegmentSlot, segment: ManifestSegment) -> ParsedBatch:
        batch = await self._reader.open(slot, self._manifest.batch_key(segment), segment, self._data_key)
        if batch.extents and batch.extents[-1].extent.end_bytes > self._writable_bytes:
            raise PeerProtocolError(
                f"cannot write beyond a disk of {self._replica.state.size_bytes} bytes",
                disk=self._manifest.key.disk,
                epoch=self._manifest.key.epoch,
                offset_bytes=batch.extents[-1].extent.offset_bytes,
            )
        return batch

    def _plan(self, claims: Claims, batch: ParsedBatch) -> list[PlannedWrite]:
        extents = [each.extent for each in batch.extents]
        zero = [not isinstance(each, DataExtent) for each in batch.extents]
        return plan_writes(claims.claim(extents), extents, zero, MAX_PUT_PAGES_BYTES)

    async def _write(self, batch: ParsedBatch, planned: Sequence[PlannedWrite]) -> None:
        """A few lanes share the calls; all of them are disjoint."""
        remaining = iter(planned)
        lanes = min(WRITES_PER_BATCH, len(planned))
        await together(self._lane(batch, remaining) for _ in range(lanes))
        reached("sink.batch.written")

    async def _lane(self, batch: ParsedBatch, remaining: Iterator[PlannedWrite]) -> None:
        for write in remaining:
            await patiently(functools.partial(self._perform, batch, write), self._clock)
            self.figures.writes += 1
            if isinstance(write, PutRange):
                self.figures.written_bytes += write.length_bytes
            else:
                self.figures.cleared_bytes += write.length_bytes

    async def _perform(self, batch: ParsedBatch, write: PlannedWrite) -> None:
        match write:
            case ClearRange(offset_bytes, length_bytes):
                await self._replica.clear(offset_bytes, length_bytes)
            case PutRange(offset_bytes, _, parts):
                body: list[memoryview] = []
                for part in parts:
                    source = batch.extents[part.index]
                    if isinstance(source, DataExtent):
                        body.append(source.data[part.start_bytes : part.start_bytes + part.length_bytes])
                await self._replica.put(offset_bytes, body)

    async def _require_all_stored(self, segments: Sequence[ManifestSegment]) -> None:
        """Held before the first write of an epoch that cannot be opened whole: a replica is not begun on what cannot be finished."""
        stored: dict[str, int] = {}

        async def listing() -> None:
            stored.clear()
            async for item in self._client.list_blobs(REPLICATION_CONTAINER, epoch_prefix(self._manifest.key)):
                stored[item.name] = item.properties.length_bytes

        await patiently(listing, self._clock)
        for segment in segments:
            key = self._manifest.batch_key(segment)
            if stored.get(segment_name(key)) != segment.segment_bytes:
                raise SegmentMissing(
                    f"cannot apply an epoch: batch {key.batch} of attempt {key.attempt} is not in the store as it was sent",
                    disk=key.disk,
                    epoch=key.epoch,
                    hint="if its process server is lost, resynchronize the disk",
                )


class _Turn:
    """Lets tasks pass one after the other, by place."""

    def __init__(self) -> None:
        self._place = 0
        self._waiters: dict[int, asyncio.Event] = {}

    async def reached(self, place: int) -> None:
        if place > self._place:
            await self._waiters.setdefault(place, asyncio.Event()).wait()

    def next(self) -> None:
        self._place += 1
        waiter = self._waiters.pop(self._place, None)
        if waiter is not None:
            waiter.set()


def point_mark(manifest: EpochManifest) -> PointMark | None:
    """What a point epoch's snapshot will say of its cut."""
    cut = manifest.cut
    if cut is None:
        return None
    return PointMark(
        cut.cut,
        cut.item,
        cut.disks,
        app_consistent=bool(manifest.flags & EpochFlag.APP_CONSISTENT),
        final=bool(manifest.flags & EpochFlag.FINAL),
    )
