"""Fuzzing of the batch frame's decoder: only errors of the tree come out, and what is accepted is what was framed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from replication.batch_frame import (
    ENTRY_BYTES,
    HEADER_BYTES,
    DataExtent,
    ZeroExtent,
    encode_batch,
    parse_batch,
    parse_batch_key,
)
from replication.errors import PeerProtocolError
from replication.extents import Extent
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, GenerationId
from tests.harness.mutations import MODULE_BYTES, bounded_memory, budget, fuzzed, mutations_of

KEY: Final = BatchKey(
    DiskId("aaaaaaaa-0000-4000-8000-000000000001"), GenerationId(1), EpochId(2), AttemptNumber(3), BatchNumber(4)
)
_COUNT_AT: Final = 44


def framed(sizes: list[tuple[int, bool]]) -> bytes:
    """A valid frame with an extent of so many blocks, of data or zeros, one after the other with gaps."""
    extents: list[DataExtent | ZeroExtent] = []
    position = 0
    for blocks, has_data in sizes:
        extent = Extent(position, 512 * blocks)
        extents.append(DataExtent(extent, memoryview(bytes([7]) * 512 * blocks)) if has_data else ZeroExtent(extent))
        position = extent.end_bytes + 512
    frame = encode_batch(KEY, extents)
    return b"".join((frame.head, *frame.data))


def with_digest(content: bytes) -> bytes:
    """With the digest made to match: it is no secret, so a hostile agent makes it match, too."""
    if len(content) < HEADER_BYTES:
        return content
    (count,) = struct.unpack_from("<I", content, _COUNT_AT)
    table = content[HEADER_BYTES : HEADER_BYTES + ENTRY_BYTES * min(count, len(content))]
    digest = xxhash.xxh3_128_digest(content[: HEADER_BYTES - 16] + table)
    return content[: HEADER_BYTES - 16] + digest + content[HEADER_BYTES:]


FRAMES: Final = st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=6).map(framed)


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded() -> Iterator[None]:
    with bounded_memory(MODULE_BYTES):
        yield


def check(content: bytes) -> None:
    batch = fuzzed(lambda: parse_batch(memoryview(content)))
    key = fuzzed(lambda: parse_batch_key(memoryview(content)))
    if batch is None:
        return
    assert key == (batch.key, batch.digest)
    again = encode_batch(batch.key, batch.extents)
    assert again.logical_bytes == batch.logical_bytes
    assert again.data_bytes == sum(item.data.nbytes for item in batch.extents if isinstance(item, DataExtent))


@given(st.binary(max_size=400))
@budget(150)
def test_random_bytes_are_refused(content: bytes) -> None:
    check(content)
    check(b"BFB1" + content)


@given(mutations_of(FRAMES))
@budget(300)
def test_a_damaged_frame_is_refused_or_says_what_it_says(content: bytes) -> None:
    check(content)


@given(mutations_of(FRAMES))
@budget(500)
def test_a_hostile_frame_whose_digest_matches_is_refused_or_whole(content: bytes) -> None:
    check(with_digest(content))


@pytest.mark.parametrize("at", [44, 48, 56, 80, 88, 104, 108], ids="at {}".format)
@pytest.mark.parametrize("value", [1, 511, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_no_field_at_its_extreme_is_accepted_or_costs_memory(at: int, value: int) -> None:
    content = bytearray(framed([(2, True), (1, False)]))
    struct.pack_into(
        "<I" if at in (44, 104, 108) else "<Q", content, at, value & (2**32 - 1 if at in (44, 104, 108) else -1)
    )
    if bytes(content) == framed([(2, True), (1, False)]):
        return
    with pytest.raises(PeerProtocolError):
        parse_batch(memoryview(with_digest(bytes(content))))
