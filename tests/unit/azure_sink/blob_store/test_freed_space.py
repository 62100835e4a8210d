"""Freed ranges are punched as soon as no reader can still see them, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from azure_sink.blob_store.arenas import BLOCK_BYTES, ArenaSet
from azure_sink.blob_store.freed_space import FreedRange, FreedSpace
from tests.harness.blob_store_tools import data_blocks


@pytest.fixture
def arenas(tmp_path: Path) -> ArenaSet:
    made = ArenaSet(tmp_path / "arenas", arena_bytes=8 * BLOCK_BYTES, reserve_bytes=0)
    place = made.allocate(8 * BLOCK_BYTES)
    made.write(place, 0, [b"x" * 8 * BLOCK_BYTES])
    return made


def block(number: int) -> FreedRange:
    return FreedRange(1, number * BLOCK_BYTES, BLOCK_BYTES)


def occupied(arenas: ArenaSet) -> list[int]:
    return list(data_blocks(arenas.path(1)))


def test_without_readers_a_range_is_punched_at_once(arenas: ArenaSet) -> None:
    space = FreedSpace(arenas)
    space.release(1, [block(0), block(3)])
    space.settle()
    assert occupied(arenas) == [1, 2, 4, 5, 6, 7]
    space.close()


def test_a_reader_keeps_what_was_freed_after_it_looked(arenas: ArenaSet) -> None:
    space = FreedSpace(arenas)
    space.release(1, [block(0)])
    with space.pin():
        space.release(2, [block(1)])
        space.release(3, [block(2)])
        space.settle()
        assert occupied(arenas) == [1, 2, 3, 4, 5, 6, 7]
    space.settle()
    assert occupied(arenas) == [3, 4, 5, 6, 7]
    space.close()


def test_a_later_reader_does_not_keep_what_was_freed_before(arenas: ArenaSet) -> None:
    space = FreedSpace(arenas)
    with space.pin():
        space.release(1, [block(0)])
        with space.pin():
            space.release(2, [block(1)])
    with space.pin():
        space.settle()
        assert occupied(arenas) == [2, 3, 4, 5, 6, 7]
    space.close()


def test_an_arena_is_removed_in_its_turn(arenas: ArenaSet) -> None:
    space = FreedSpace(arenas)
    with space.pin():
        space.release(1, [FreedRange(1, 0, 0)])
        space.settle()
        assert arenas.path(1).exists()
    space.settle()
    assert not arenas.path(1).exists()
    space.close()


def test_a_range_that_cannot_be_punched_stops_nothing(arenas: ArenaSet, caplog: pytest.LogCaptureFixture) -> None:
    space = FreedSpace(arenas)
    space.release(1, [FreedRange(1, 0, -BLOCK_BYTES), FreedRange(1, 2**62, 2**62)])
    space.release(2, [block(0)])
    space.settle()
    space.close()
    assert occupied(arenas) == [1, 2, 3, 4, 5, 6, 7]
    assert "the next start tries again" in caplog.text


def test_a_reader_that_outlives_the_store_harms_nothing(arenas: ArenaSet) -> None:
    space = FreedSpace(arenas)
    with space.pin():
        space.release(1, [block(0)])
        space.close()
    assert occupied(arenas) == [0, 1, 2, 3, 4, 5, 6, 7]
