"""Segments that stay in memory until they are uploaded: bounded, given to one, given back when the record is not needed any more."""

from __future__ import annotations

from process_server.core.places import RecordPlace
from process_server.spool.kept_segments import KEPT_BYTES, KeptSegments, segment_record_bytes
from process_server.spool.record import RECORD_HEADER_BYTES, record_bytes
from replication.aligned_memory import BLOCK_BYTES, lies_aligned
from replication.batch_frame import MAX_FRAME_BYTES

MIB = 2**20


def place(number: int, payload_bytes: int) -> RecordPlace:
    return RecordPlace(1, number * MIB, payload_bytes, number)


def kept(segments: KeptSegments, number: int, content: bytes) -> RecordPlace:
    lease = segments.room(len(content))
    assert lease is not None
    lease.view[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + len(content)] = content
    lease.shrink(record_bytes(len(content)))
    segments.keep(place(number, len(content)), lease)
    return place(number, len(content))


def test_what_is_kept_is_given_to_one_who_gives_it_back() -> None:
    segments = KeptSegments(4 * MIB)
    first, second = kept(segments, 1, b"first" * 1000), kept(segments, 2, b"second" * 1000)
    assert segments.kept_bytes == record_bytes(5000) + record_bytes(6000)
    found = segments.take(second)
    assert found is not None
    assert bytes(found.content) == b"second" * 1000
    assert found.content.readonly
    assert segments.take(second) is None
    found.lease.close()
    assert segments.kept_bytes == record_bytes(5000)
    segments.release(first)
    assert segments.kept_bytes == 0
    assert segments.take(first) is None


def test_release_leaves_alone_what_somebody_has_taken() -> None:
    segments = KeptSegments(4 * MIB)
    where = kept(segments, 1, b"taken" * 1000)
    found = segments.take(where)
    assert found is not None
    segments.release(where)
    assert bytes(found.content) == b"taken" * 1000
    assert segments.kept_bytes > 0
    found.lease.close()
    assert segments.kept_bytes == 0


def test_there_is_room_until_the_memory_is_full_and_again_afterwards() -> None:
    segments = KeptSegments(2 * segment_record_bytes(MIB))
    rooms = [segments.room(MIB) for _ in range(3)]
    assert [room is None for room in rooms] == [False, False, True]
    assert all(room is None or lies_aligned(room.view) for room in rooms)
    assert rooms[0] is not None
    rooms[0].close()
    assert segments.room(MIB) is not None
    assert segments.room(3 * MIB) is None, "and never for what is larger than all of it"


def test_two_of_the_largest_batches_find_room_at_once() -> None:
    segments = KeptSegments()
    assert segments.room(MAX_FRAME_BYTES) is not None
    assert segments.room(MAX_FRAME_BYTES) is not None
    assert segments.kept_bytes <= KEPT_BYTES
    assert segment_record_bytes(MAX_FRAME_BYTES) % BLOCK_BYTES == 0
