"""Extents validate themselves; unions and splits keep exactly the bytes they were given."""

from __future__ import annotations

import pytest

from replication.errors import InvalidInput
from replication.extents import BLOCK_BYTES, MAX_DISK_BYTES, Extent, coalesced, split, total_bytes


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (-512, 512),
        (0, 0),
        (0, -512),
        (1, 512),
        (512, 511),
        (MAX_DISK_BYTES, 512),
        (MAX_DISK_BYTES - 512, 1024),
        (0, MAX_DISK_BYTES + 512),
    ],
)
def test_extent_outside_of_blocks_or_disk_is_refused(offset: int, length: int) -> None:
    with pytest.raises(InvalidInput, match="cannot use extent") as caught:
        Extent(offset, length)
    assert caught.value.hint is not None


def test_largest_and_last_extents_are_accepted() -> None:
    assert Extent(0, MAX_DISK_BYTES).end_bytes == MAX_DISK_BYTES
    assert Extent(MAX_DISK_BYTES - BLOCK_BYTES, BLOCK_BYTES).end_bytes == MAX_DISK_BYTES


def test_extents_that_touch_do_not_overlap() -> None:
    assert not Extent(0, 512).overlaps(Extent(512, 512))
    assert Extent(0, 1024).overlaps(Extent(512, 512))
    assert Extent(512, 512).overlaps(Extent(0, 4096))


def test_union_merges_what_overlaps_or_touches_and_sorts() -> None:
    given = [Extent(4096, 512), Extent(0, 512), Extent(512, 1024), Extent(1024, 512), Extent(4096, 1024)]
    assert coalesced(given) == [Extent(0, 1536), Extent(4096, 1024)]


def test_union_keeps_an_extent_that_contains_the_next() -> None:
    assert coalesced([Extent(0, 8192), Extent(512, 512), Extent(8192, 512)]) == [Extent(0, 8704)]


def test_union_of_nothing_is_nothing() -> None:
    assert coalesced([]) == []


def test_split_cuts_at_the_length_and_keeps_order() -> None:
    assert list(split([Extent(8192, 2560), Extent(0, 512)], 1024)) == [
        Extent(8192, 1024),
        Extent(9216, 1024),
        Extent(10240, 512),
        Extent(0, 512),
    ]


@pytest.mark.parametrize("at_most", [0, -512, 100, 513])
def test_split_refuses_a_length_at_the_call(at_most: int) -> None:
    with pytest.raises(InvalidInput, match="cannot split"):
        split([], at_most)


def test_total_is_the_sum_of_lengths() -> None:
    assert total_bytes([Extent(0, 512), Extent(4096, 1024)]) == 1536
    assert total_bytes([]) == 0
