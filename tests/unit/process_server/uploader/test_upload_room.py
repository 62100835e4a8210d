"""Room for uploads: it follows the threads, what is fixed stays fixed, and no third buffer begins while a second one is still in use."""

from __future__ import annotations

from process_server.spool.kept_segments import MAX_SEGMENT_RECORD_BYTES
from process_server.uploader.upload_room import DEFAULT_BUFFER_BYTES, UploadRoom, most_connections


def leases(room: UploadRoom, most: int = 64) -> list[object]:
    held: list[object] = []
    while len(held) < most and (lease := room.try_lease(MAX_SEGMENT_RECORD_BYTES)) is not None:
        held.append(lease)
    return held


def test_by_default_every_number_of_threads_is_sure_and_the_fewest_take_no_more_than_before() -> None:
    room = UploadRoom()
    assert all(room.surely_at_once(threads) == threads for threads in range(4, 33))
    assert room.buffer_bytes(4) == DEFAULT_BUFFER_BYTES
    assert most_connections(None) == 32


def test_what_is_leased_stays_while_the_room_grows_and_until_it_ends_no_third_size_begins() -> None:
    room = UploadRoom()
    first = room.try_lease(MAX_SEGMENT_RECORD_BYTES)
    assert first is not None
    first.view[:3] = b"abc"
    room.follow(32)
    assert bytes(first.view[:3]) == b"abc"
    assert len(leases(room, 32)) == 32
    room.follow(4)
    assert room.try_lease(MAX_SEGMENT_RECORD_BYTES) is None, "the smaller one waits for the oldest to end"
    first.close()
    room.follow(4)
    assert len(leases(room)) == 4


def test_a_fixed_room_does_not_follow() -> None:
    room = UploadRoom(8, DEFAULT_BUFFER_BYTES)
    room.follow(32)
    assert (most_connections(8), room.surely_at_once(32), len(leases(room))) == (8, 4, 4)
