"""Batch frames: what a valid one carries, and that every damage is refused with a clear error."""

from __future__ import annotations

import struct

import pytest

from replication.batch_frame import (
    ENTRY_BYTES,
    HEADER_BYTES,
    MAX_BATCH_DATA_BYTES,
    MAX_BATCH_EXTENTS,
    DataExtent,
    ZeroExtent,
    encode_batch,
    parse_batch,
    parse_batch_key,
)
from replication.errors import IntegrityError, InvalidInput, PeerProtocolError
from replication.extents import Extent
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, GenerationId

KEY = BatchKey(
    DiskId("22222222-2222-4222-8222-222222222222"),
    GenerationId(3),
    EpochId(2**40),
    AttemptNumber(2),
    BatchNumber(7),
)
DATA = bytes(range(256)) * 4


def _frame() -> bytearray:
    frame = encode_batch(
        KEY,
        [
            ZeroExtent(Extent(0, 2**40)),
            DataExtent(Extent(2**40, 1024), memoryview(DATA)),
            DataExtent(Extent(2**40 + 4096, 512), memoryview(DATA)[:512]),
        ],
    )
    return bytearray(frame.head + b"".join(frame.data))


def test_a_frame_carries_its_key_extents_and_bytes() -> None:
    parsed = parse_batch(memoryview(_frame()), KEY)
    assert parsed.key == KEY
    assert [item.extent for item in parsed.extents] == [
        Extent(0, 2**40),
        Extent(2**40, 1024),
        Extent(2**40 + 4096, 512),
    ]
    assert isinstance(parsed.extents[1], DataExtent)
    assert bytes(parsed.extents[1].data) == DATA
    assert parsed.logical_bytes == 2**40 + 1536


def test_header_and_entry_sizes_are_those_of_the_documented_format() -> None:
    assert (HEADER_BYTES, ENTRY_BYTES) == (80, 32)
    assert struct.unpack_from("<4sHH", _frame()) == (b"BFB1", 1, 80)


@pytest.mark.parametrize("position", [*range(0, 80, 3), 85, 100, 130, 80 + 96 + 5, -1])
def test_one_flipped_bit_anywhere_is_refused(position: int) -> None:
    frame = _frame()
    frame[position] ^= 1
    with pytest.raises(PeerProtocolError):
        parse_batch(memoryview(frame), KEY)


@pytest.mark.parametrize("length", [0, 4, 79, 80, 100, 80 + 96, 80 + 96 + 1535])
def test_a_truncated_frame_is_refused(length: int) -> None:
    with pytest.raises(PeerProtocolError):
        parse_batch(memoryview(_frame())[:length], KEY)


def test_a_longer_frame_is_refused() -> None:
    with pytest.raises(PeerProtocolError):
        parse_batch(memoryview(_frame() + b"x"), KEY)


def test_a_frame_under_another_key_is_refused() -> None:
    other = BatchKey(KEY.disk, KEY.generation, KEY.epoch, AttemptNumber(3), KEY.batch)
    with pytest.raises(PeerProtocolError, match="under the key"):
        parse_batch(memoryview(_frame()), other)


def test_damaged_data_is_an_integrity_error_with_its_offset() -> None:
    frame = _frame()
    frame[80 + 96 + 1024] ^= 0x80
    with pytest.raises(IntegrityError) as caught:
        parse_batch(memoryview(frame), KEY)
    assert caught.value.offset_bytes == 2**40 + 4096


def test_oversized_lengths_are_refused_before_anything_is_read() -> None:
    frame = _frame()
    struct.pack_into("<I", frame, 44, MAX_BATCH_EXTENTS + 1)
    with pytest.raises(PeerProtocolError, match="exceed the limits"):
        parse_batch_key(memoryview(frame))
    frame = _frame()
    struct.pack_into("<Q", frame, 48, MAX_BATCH_DATA_BYTES + 512)
    with pytest.raises(PeerProtocolError, match="exceed the limits"):
        parse_batch_key(memoryview(frame))


def test_overlapping_or_unsorted_extents_cannot_be_framed() -> None:
    with pytest.raises(InvalidInput, match="overlap"):
        encode_batch(KEY, [ZeroExtent(Extent(0, 1024)), ZeroExtent(Extent(512, 512))])


def test_the_digest_depends_on_the_content() -> None:
    one = encode_batch(KEY, [DataExtent(Extent(0, 512), memoryview(DATA)[:512])])
    other = encode_batch(KEY, [DataExtent(Extent(0, 512), memoryview(DATA)[1:513])])
    assert one.digest != other.digest
