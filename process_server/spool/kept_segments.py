"""Sealed segments that are still in memory: sealed there, written to the spool from there and, if their turn comes soon, uploaded.

Owned by ``Spool``; called by the sealing (``room``), the intake (``keep``) and the uploader (``take``), all on one event loop. What is
kept is durable in the spool as well, so nothing is lost with it; it only need not be read back. The memory is bounded: while it is full,
segments are sealed elsewhere and read back when they are uploaded. What has been kept longest is uploaded first, and so makes room.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from process_server.buffer_arena import BufferArena, Lease
from process_server.core.places import RecordPlace
from process_server.spool.record import RECORD_HEADER_BYTES, record_bytes
from replication.batch_frame import MAX_FRAME_BYTES
from replication.sealed_segment import most_segment_bytes

KEPT_BYTES: Final = 24 * 2**20
"""Two of the largest batches while they are sealed, and what has been sealed and is not uploaded yet."""
_MOST_KEPT: Final = 64


class KeptSegment(NamedTuple):
    """``content`` is the segment; it is valid until ``lease`` is closed."""

    lease: Lease
    content: memoryview


def segment_record_bytes(frame_bytes: int) -> int:
    """The most that a frame of ``frame_bytes`` can take in the spool, sealed, when it does not compress at all."""
    return record_bytes(most_segment_bytes(frame_bytes))


MAX_SEGMENT_RECORD_BYTES: Final = segment_record_bytes(MAX_FRAME_BYTES)


class KeptSegments:
    """Of records by number. Invariant: what is kept is durable and not released."""

    def __init__(self, capacity_bytes: int = KEPT_BYTES) -> None:
        self._arena = BufferArena(capacity_bytes, most_leases=_MOST_KEPT)
        self._kept: dict[int, KeptSegment] = {}

    @property
    def kept_bytes(self) -> int:
        """Memory in use, segments that are being sealed or uploaded included."""
        return self._arena.leased_bytes

    def room(self, frame_bytes: int) -> Lease | None:
        """Aligned memory for the record of a frame, whatever it compresses to; None while there is none. The caller closes it, or has
        it kept."""
        length = segment_record_bytes(frame_bytes)
        return None if length > self._arena.capacity_bytes else self._arena.try_lease(length)

    def keep(self, place: RecordPlace, lease: Lease) -> None:
        """The record, at the start of ``lease``, is durable: keep its segment until it is taken or released."""
        content = lease.view[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + place.payload_bytes].toreadonly()
        self._kept[place.number] = KeptSegment(lease, content)

    def take(self, place: RecordPlace) -> KeptSegment | None:
        """The segment of a record, the caller's from now on; None if it has to be read from the spool."""
        return self._kept.pop(place.number, None)

    def release(self, place: RecordPlace) -> None:
        """The record is not needed any more."""
        kept = self._kept.pop(place.number, None)
        if kept is not None:
            kept.lease.close()
