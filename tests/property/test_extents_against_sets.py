"""Extents held against plain sets of blocks: unions and splits neither lose nor add a block."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from replication.extents import BLOCK_BYTES, Extent, coalesced, split, total_bytes

blocks = st.integers(0, 300)
extents = st.builds(lambda first, count: Extent(first * BLOCK_BYTES, count * BLOCK_BYTES), blocks, st.integers(1, 40))


def _blocks(given_extents: list[Extent]) -> set[int]:
    return {
        block
        for extent in given_extents
        for block in range(extent.offset_bytes // BLOCK_BYTES, extent.end_bytes // BLOCK_BYTES)
    }


@given(st.lists(extents, max_size=30))
def test_union_is_the_set_of_blocks_sorted_and_apart(some: list[Extent]) -> None:
    merged = coalesced(some)
    assert _blocks(merged) == _blocks(some)
    assert all(first.end_bytes < second.offset_bytes for first, second in itertools.pairwise(merged))
    assert total_bytes(merged) == len(_blocks(some)) * BLOCK_BYTES


@given(st.lists(extents, max_size=30))
def test_union_of_a_union_is_itself(some: list[Extent]) -> None:
    merged = coalesced(some)
    assert coalesced(reversed(merged)) == merged


@given(st.lists(extents, max_size=10), st.integers(1, 50))
def test_split_keeps_every_byte_in_order_within_the_length(some: list[Extent], most_blocks: int) -> None:
    pieces = list(split(some, most_blocks * BLOCK_BYTES))
    assert all(piece.length_bytes <= most_blocks * BLOCK_BYTES for piece in pieces)
    assert [offset for piece in pieces for offset in range(piece.offset_bytes, piece.end_bytes, BLOCK_BYTES)] == [
        offset for extent in some for offset in range(extent.offset_bytes, extent.end_bytes, BLOCK_BYTES)
    ]


@given(extents, extents)
def test_overlap_is_a_shared_block(first: Extent, second: Extent) -> None:
    assert first.overlaps(second) == second.overlaps(first) == bool(_blocks([first]) & _blocks([second]))
