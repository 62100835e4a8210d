"""Arenas: room is taken in whole blocks, returned by punching; errors of the device are told apart."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from azure_sink.blob_store.arenas import BLOCK_BYTES, ArenaSet, StoreFull, blocks_of
from replication.aligned_memory import aligned_memory
from replication.errors import Permanent, Retryable
from tests.harness.blob_store_tools import data_blocks


def make(directory: Path, **options: int) -> ArenaSet:
    return ArenaSet(directory / "arenas", **{"arena_bytes": 16 * BLOCK_BYTES, "reserve_bytes": 0, **options})


def test_bodies_never_share_a_block(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    places = [arenas.allocate(length) for length in (1, BLOCK_BYTES, BLOCK_BYTES + 1, 5)]
    assert [place.offset for place in places] == [0, BLOCK_BYTES, 2 * BLOCK_BYTES, 4 * BLOCK_BYTES]


def test_a_full_arena_is_followed_by_another(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    numbers = [arenas.allocate(6 * BLOCK_BYTES).arena for _ in range(4)]
    assert numbers == [1, 1, 2, 2]


def test_a_body_larger_than_an_arena_gets_one_of_its_own(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    arenas.allocate(1)
    place = arenas.allocate(40 * BLOCK_BYTES)
    assert (place.arena, place.offset) == (2, 0)


def test_pieces_are_written_in_order_and_read_back(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    place = arenas.allocate(10)
    arenas.write(place, 0, [b"abc", memoryview(b"defg")])
    arenas.write(place, 7, [bytearray(b"hij")])
    assert arenas.read(place.arena, place.offset, 10) == b"abcdefghij"
    assert arenas.read(place.arena, place.offset + 3, 4) == b"defg"


def test_an_arena_of_an_earlier_run_is_not_appended_to(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.write(first.allocate(1), 0, [b"x"])
    first.close()
    second = make(tmp_path)
    assert second.found == (1,)
    assert second.allocate(1).arena == 2


def test_abandoned_room_is_given_back(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    kept, dropped = arenas.allocate(BLOCK_BYTES), arenas.allocate(2 * BLOCK_BYTES)
    arenas.write(kept, 0, [b"k" * BLOCK_BYTES])
    arenas.write(dropped, 0, [b"d" * 2 * BLOCK_BYTES])
    arenas.abandon(dropped)
    assert list(data_blocks(arenas.path(1))) == [0]
    assert arenas.figures().punched_bytes == 2 * BLOCK_BYTES


def test_the_reserve_stays_free(tmp_path: Path) -> None:
    arenas = make(tmp_path, reserve_bytes=2**62)
    with pytest.raises(StoreFull) as caught:
        arenas.allocate(1)
    assert caught.value.retry_after_s is not None
    assert not arenas.has_room()


def test_a_device_without_space_is_a_full_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = make(tmp_path)
    place = arenas.allocate(10)

    def no_space(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", no_space)
    with pytest.raises(StoreFull):
        arenas.write(place, 0, [b"x"])


def test_a_failing_device_is_no_full_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = make(tmp_path)
    place = arenas.allocate(10)

    def broken(*_arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(Retryable) as caught:
        arenas.write(place, 0, [b"x"])
    assert not isinstance(caught.value, StoreFull)


def test_after_a_failed_write_back_the_arena_is_not_trusted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas = make(tmp_path)
    place = arenas.allocate(10)
    with monkeypatch.context() as patched:

        def broken(_descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patched.setattr(os, "fdatasync", broken)
        assert arenas.make_durable({place.arena}) == {place.arena}
    assert arenas.make_durable({place.arena}) == {place.arena}
    assert arenas.allocate(10).arena != place.arena


def test_a_short_or_missing_arena_is_damage(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    place = arenas.allocate(10)
    arenas.write(place, 0, [b"short"])
    with pytest.raises(Permanent):
        arenas.read(place.arena, 0, 10)
    with pytest.raises(Permanent):
        arenas.read(77, 0, 1)


def test_what_is_no_arena_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "arenas" / "notes.txt").write_text("mine")
    with pytest.raises(Permanent):
        make(tmp_path)


def test_an_arena_is_idle_when_it_is_left_and_nothing_in_it_is_undecided(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    first = arenas.allocate(10 * BLOCK_BYTES)
    assert not arenas.is_idle(1)
    arenas.allocate(10 * BLOCK_BYTES)
    assert not arenas.is_idle(1)
    arenas.settle(first)
    assert arenas.is_idle(1)
    arenas.remove(1)
    assert not arenas.path(1).exists()
    assert arenas.numbers() == [2]


# -- direct writes ------------------------------------------------------------------------------------------------


def aligned(content: bytes) -> memoryview:
    memory = memoryview(mmap.mmap(-1, len(content)))
    memory[:] = content
    return memory


def test_direct_bodies_have_arenas_of_their_own_and_come_back(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    content = os.urandom(3 * BLOCK_BYTES)
    direct, other = arenas.allocate(len(content), direct=True), arenas.allocate(len(content))
    assert direct.arena != other.arena
    arenas.write(direct, 0, [aligned(content[:BLOCK_BYTES]), aligned(content[BLOCK_BYTES:])])
    arenas.write(other, 0, [content])
    assert arenas.make_durable({direct.arena, other.arena}) == set()
    for place in (direct, other):
        buffer = bytearray(len(content))
        arenas.read_into(place.arena, place.offset, memoryview(buffer))
        assert bytes(buffer) == arenas.read(place.arena, place.offset, len(content)) == content


def test_direct_writes_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real_open = os.open

    def noting(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append(flags)
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", noting)
    arenas = make(tmp_path)
    arenas.write(arenas.allocate(BLOCK_BYTES), 0, [aligned(bytes(BLOCK_BYTES))])
    assert not any(flags & os.O_DIRECT for flags in opened)
    arenas.write(arenas.allocate(BLOCK_BYTES, direct=True), 0, [aligned(bytes(BLOCK_BYTES))])
    assert any(flags & os.O_DIRECT for flags in opened)


@pytest.mark.parametrize(
    "length", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 100, 5 * BLOCK_BYTES]
)
def test_a_body_may_end_within_a_block_and_is_read_back_whichever_way(tmp_path: Path, length: int) -> None:
    arenas = make(tmp_path)
    before, content = os.urandom(BLOCK_BYTES), os.urandom(length)
    first, place = arenas.allocate(BLOCK_BYTES, direct=True), arenas.allocate(length, direct=True)
    behind = arenas.allocate(BLOCK_BYTES, direct=True)
    arenas.write(first, 0, [aligned(before)])
    arenas.write(behind, 0, [aligned(before)])
    arenas.write(place, 0, [aligned(content)])
    assert arenas.writes_directly
    for start in (0, 1):  # memory that lies aligned and memory that does not
        buffer = aligned_memory(length + BLOCK_BYTES)[start : start + length]
        arenas.read_into(place.arena, place.offset, buffer)
        assert bytes(buffer) == content
    assert arenas.read(place.arena, place.offset, length) == content
    assert arenas.read(first.arena, first.offset, BLOCK_BYTES) == before
    assert arenas.read(behind.arena, behind.offset, BLOCK_BYTES) == before
    padding = arenas.read(place.arena, place.offset, blocks_of(length))[length:]
    assert not any(padding), "nothing of another body is behind it"


def test_aligned_memory_is_read_past_the_page_cache_and_through_it_where_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas = make(tmp_path)
    content = os.urandom(2 * BLOCK_BYTES + 10)
    place = arenas.allocate(len(content), direct=True)
    arenas.write(place, 0, [aligned(content)])
    really, ways = os.preadv, []

    def noting(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        ways.append(direct)
        if direct and len(ways) > 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", noting)
    for expected in ([True], [True, False]):
        buffer = aligned_memory(len(content))
        arenas.read_into(place.arena, place.offset, buffer)
        assert bytes(buffer) == content
        assert ways[-len(expected) :] == expected
    buffer = aligned_memory(4 * BLOCK_BYTES)
    with pytest.raises(Permanent, match="ends before"):
        arenas.read_into(place.arena, place.offset, buffer)


def test_where_direct_writes_are_refused_bodies_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refusing(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    arenas = make(tmp_path)
    place = arenas.allocate(BLOCK_BYTES, direct=True)
    arenas.write(place, 0, [aligned(b"x" * BLOCK_BYTES)])
    assert arenas.read(place.arena, place.offset, BLOCK_BYTES) == b"x" * BLOCK_BYTES
    assert not arenas.writes_directly
    assert arenas.allocate(BLOCK_BYTES, direct=True).arena == arenas.allocate(BLOCK_BYTES).arena


def test_reading_past_an_arenas_end_is_damage(tmp_path: Path) -> None:
    arenas = make(tmp_path)
    place = arenas.allocate(4)
    arenas.write(place, 0, [b"abcd"])
    with pytest.raises(Permanent):
        arenas.read_into(place.arena, place.offset, memoryview(bytearray(5)))
    with pytest.raises(Permanent):
        arenas.read_into(99, 0, memoryview(bytearray(1)))


def test_more_pieces_than_one_system_call_takes_are_written(tmp_path: Path) -> None:
    arenas = make(tmp_path, arena_bytes=64 * BLOCK_BYTES)
    place = arenas.allocate(5000)
    arenas.write(place, 0, [bytes([number % 251]) for number in range(5000)])
    assert arenas.read(place.arena, place.offset, 5000) == bytes(number % 251 for number in range(5000))
