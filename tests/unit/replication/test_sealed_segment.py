"""Sealed segments: opaque, bound to their key and manifest tag, bounded when opened."""

from __future__ import annotations

import os

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from replication.aligned_memory import aligned_memory
from replication.batch_frame import DataExtent, encode_batch, parse_batch
from replication.errors import IntegrityError, PeerProtocolError
from replication.extents import Extent
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, GenerationId
from replication.sealed_segment import (
    DATA_ALIGNMENT_BYTES,
    HEADER_BYTES,
    OPENING_ROOM_BYTES,
    TAG_BYTES,
    SegmentHeader,
    SegmentOpener,
    SegmentSealer,
    parse_segment_header,
)
from replication.segment_keys import segment_key_and_nonce

KEY = BatchKey(
    DiskId("22222222-2222-4222-8222-222222222222"), GenerationId(1), EpochId(5), AttemptNumber(1), BatchNumber(0)
)
DATA_KEY = bytes(range(32))
DIGEST = bytes(16)
FRAME = b"a frame that compresses " * 4096


def _sealed(frame: bytes = FRAME, level: int = 1) -> bytearray:
    return bytearray(SegmentSealer(level).seal(KEY, DIGEST, memoryview(frame), DATA_KEY).content)


def _open(content: bytes | bytearray, key: BatchKey = KEY, tag: bytes | None = None) -> bytes:
    view = memoryview(content)
    return bytes(SegmentOpener().open(view, DATA_KEY, expected=key, expected_tag=tag or bytes(view[-TAG_BYTES:])))


@pytest.mark.parametrize("frame", [b"", b"x", FRAME])
def test_a_segment_opens_to_the_frame_it_was_sealed_from(frame: bytes) -> None:
    assert _open(_sealed(frame)) == frame


def test_a_segment_shows_nothing_of_its_content_and_never_looks_the_same_twice() -> None:
    first, second = _sealed(), _sealed()
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    assert b"a frame that" not in first
    assert HEADER_BYTES == 112


@pytest.mark.parametrize("position", [0, 5, 7, 9, 25, 30, 33, 41, 45, 49, 57, 65, 81, 111, 112, 150, -17])
def test_one_flipped_bit_anywhere_is_refused(position: int) -> None:
    content = _sealed()
    content[position] ^= 1
    with pytest.raises(PeerProtocolError):
        _open(content)


def test_a_segment_that_is_not_the_manifests_is_refused() -> None:
    with pytest.raises(IntegrityError, match="not the one its manifest names"):
        _open(_sealed(), tag=bytes(16))


def test_a_segment_in_another_ones_place_is_refused() -> None:
    other = BatchKey(KEY.disk, KEY.generation, EpochId(6), KEY.attempt, KEY.batch)
    with pytest.raises(PeerProtocolError, match="in place of"):
        _open(_sealed(), key=other)


def test_a_decompression_bomb_is_stopped_at_the_declared_length() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 1024 * 1024))
    header = SegmentHeader(KEY, 1000, len(bomb), DIGEST, bytes(32))
    associated = header.encode()
    key, nonce = segment_key_and_nonce(DATA_KEY, header.salt, associated)
    with pytest.raises(IntegrityError, match="length"):
        _open(associated + AESGCM(key).encrypt(nonce, bomb, associated))


def test_lengths_beyond_the_limits_are_refused_from_the_header_alone() -> None:
    content = _sealed()
    content[48:56] = (2**40).to_bytes(8, "little")
    with pytest.raises(PeerProtocolError, match="exceed the limits"):
        parse_segment_header(memoryview(content))


def test_an_opener_can_be_used_again_after_a_refusal() -> None:
    opener = SegmentOpener()
    damaged = _sealed()
    damaged[130] ^= 1
    with pytest.raises(IntegrityError):
        opener.open(memoryview(damaged), DATA_KEY, expected=KEY, expected_tag=bytes(damaged[-16:]))
    content = memoryview(_sealed())
    assert bytes(opener.open(content, DATA_KEY, expected=KEY, expected_tag=bytes(content[-16:]))) == FRAME


@pytest.mark.parametrize("compressible", [True, False])
def test_a_frame_takes_the_place_of_its_segment_in_memory(compressible: bool) -> None:
    frame = encode_batch(
        KEY, [DataExtent(Extent(0, 2**20), memoryview(bytes(2**20) if compressible else os.urandom(2**20)))]
    )
    whole = b"".join((frame.head, *frame.data))
    sealed = _sealed(whole)
    room = aligned_memory(OPENING_ROOM_BYTES)
    room[: len(sealed)] = sealed
    content = room[: len(sealed)].toreadonly()
    opened = SegmentOpener().open(content, DATA_KEY, expected=KEY, expected_tag=bytes(sealed[-TAG_BYTES:]), room=room)
    assert bytes(opened) == whole
    assert np.shares_memory(np.frombuffer(opened, dtype=np.uint8), np.frombuffer(room, dtype=np.uint8))


@pytest.mark.parametrize("extent_count", [1, 2, 300])
def test_an_opened_frames_data_lie_aligned_in_memory(extent_count: int) -> None:
    data = memoryview(bytes(range(256)) * 16)
    extents = [DataExtent(Extent(number * 8192, 4096), data) for number in range(extent_count)]
    frame = encode_batch(KEY, extents)
    content = memoryview(_sealed(b"".join((frame.head, *frame.data))))
    opened = SegmentOpener().open(content, DATA_KEY, expected=KEY, expected_tag=bytes(content[-TAG_BYTES:]))
    for extent in parse_batch(opened, KEY).extents:
        assert isinstance(extent, DataExtent)
        address = np.frombuffer(extent.data, dtype=np.uint8).ctypes.data
        assert address % DATA_ALIGNMENT_BYTES == 0
        assert extent.data == data
