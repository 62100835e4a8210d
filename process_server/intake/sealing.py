"""Verify, compress, encrypt, append to the spool: the processor-bound part of a batch's way, in a few threads.

Called by ``batch_intake``. zstd, AES-GCM and writes release the interpreter lock; each thread keeps its own ``SegmentSealer``s, one a
level. A segment is sealed where it will lie in its record, and appended in the same thread, so that nothing is copied. It stays in memory
for the uploader if the spool has room for that (``kept_segments``); else one per thread at the most is in memory, however many agents ship.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from process_server.buffer_arena import Lease
from process_server.core.backlog import SegmentEntry, SegmentState
from process_server.intake.grants import Grant
from process_server.spool.kept_segments import segment_record_bytes
from process_server.spool.log import Written
from process_server.spool.record import RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes
from process_server.spool.spool import Spool
from replication.aligned_memory import aligned_memory
from replication.batch_frame import parse_batch
from replication.errors import InvalidInput
from replication.identifiers import BatchKey
from replication.sealed_segment import SegmentSealer
from replication.threads import finished_in

DEFAULT_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """A segment that is written to the spool and not durable yet; ``memory`` has its record if it can be kept, and is to be closed."""

    entry: SegmentEntry
    written: Written
    memory: Lease | None = None


class Sealing:
    """A pool of sealing threads. ``close`` when nothing is in flight any more."""

    def __init__(self, spool: Spool, *, threads: int, level: Callable[[], int], unix_ns: Callable[[], int]) -> None:
        """:param level: zstd's level for the next batch."""
        self._spool = spool
        self._level = level
        self._unix_ns = unix_ns
        self._local = threading.local()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="seal")

    def close(self) -> None:
        self.pool.shutdown()

    async def verify(self, key: BatchKey, frame: memoryview, grant: Grant) -> bytes:
        """Check a whole frame; returns its digest.

        :raises PeerProtocolError, IntegrityError, InvalidInput: as ``parse_batch``, or if an extent lies outside of the disk.
        """
        return await finished_in(self.pool, lambda: _verified_digest(key, frame, grant))

    async def seal(self, key: BatchKey, frame: memoryview, grant: Grant) -> SealedBatch:
        """Check a frame, seal it, append the segment to the spool; raises as ``verify`` and ``Spool.append`` do."""
        memory = self._spool.kept.room(frame.nbytes)
        try:
            level = self._level()
            sealed = await finished_in(self.pool, lambda: self._seal(key, frame, grant, memory, level))
        except BaseException:
            if memory is not None:
                memory.close()
            raise
        if memory is not None:
            memory.shrink(record_bytes(sealed.entry.segment_bytes))
        return sealed

    def _seal(self, key: BatchKey, frame: memoryview, grant: Grant, memory: Lease | None, level: int) -> SealedBatch:
        digest = _verified_digest(key, frame, grant)
        sealer = self._sealer(level)
        room = aligned_memory(segment_record_bytes(frame.nbytes)) if memory is None else memory.view
        segment = sealer.seal(key, digest, frame, grant.data_key, room[RECORD_HEADER_BYTES:])
        accepted_unix_ns = self._unix_ns()
        draft = RecordHeader(
            RecordKind.SEGMENT,
            number=0,
            durable_through=0,
            payload_bytes=segment.content.nbytes,
            accepted_unix_ns=accepted_unix_ns,
            machine=grant.machine,
            disk=key.disk,
            generation=key.generation,
            epoch=key.epoch,
            attempt=key.attempt,
            batch=key.batch,
            content_id=digest + segment.tag,
        )
        written = self._spool.append(draft, segment.content, room)
        entry = SegmentEntry(
            digest, segment.tag, segment.content.nbytes, SegmentState.WAITING, written.place, accepted_unix_ns
        )
        return SealedBatch(entry, written, memory)

    def _sealer(self, level: int) -> SegmentSealer:
        """This thread's own for ``level``."""
        sealers: dict[int, SegmentSealer] | None = getattr(self._local, "sealers", None)
        if sealers is None:
            sealers = self._local.sealers = {}
        if level not in sealers:
            sealers[level] = SegmentSealer(level)
        return sealers[level]


def _verified_digest(key: BatchKey, frame: memoryview, grant: Grant) -> bytes:
    parsed = parse_batch(frame, key)
    if parsed.extents and parsed.extents[-1].extent.end_bytes > grant.size_bytes:
        raise InvalidInput(
            f"cannot accept a batch that ends at {parsed.extents[-1].extent.end_bytes}: the disk has {grant.size_bytes} bytes",
            disk=key.disk,
            epoch=key.epoch,
            hint="a disk that has grown needs a new generation",
        )
    return parsed.digest
