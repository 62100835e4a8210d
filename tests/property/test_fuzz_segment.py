"""Fuzzing of the sealed segment's decoder: damage from outside, and content that a holder of the key made to hurt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from replication.batch_frame import MAX_FRAME_BYTES
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, GenerationId
from replication.sealed_segment import (
    HEADER_BYTES,
    MAX_SEGMENT_BYTES,
    TAG_BYTES,
    SegmentHeader,
    SegmentOpener,
    SegmentSealer,
    parse_segment_header,
)
from replication.segment_keys import segment_key_and_nonce
from tests.harness.mutations import MIB, MODULE_BYTES, bounded_memory, budget, fuzzed, mutations_of

KEY: Final = BatchKey(
    DiskId("aaaaaaaa-0000-4000-8000-000000000001"), GenerationId(1), EpochId(2), AttemptNumber(3), BatchNumber(4)
)
DATA_KEY: Final = bytes(range(32))
OPENER: Final = SegmentOpener()
FRAMES: Final = st.one_of(st.binary(max_size=200), st.integers(0, 100_000).map(bytes))


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded() -> Iterator[None]:
    with bounded_memory(MODULE_BYTES):
        yield


def sealed(frame: bytes) -> bytes:
    return bytes(SegmentSealer().seal(KEY, bytes(16), memoryview(frame), DATA_KEY).content)


def sealed_as_it_is(compressed: bytes, frame_bytes: int) -> bytes:
    """A segment that authenticates, whatever ``compressed`` is and ``frame_bytes`` says."""
    header = SegmentHeader(KEY, frame_bytes, len(compressed), bytes(16), bytes(32))
    associated = header.encode()
    key, nonce = segment_key_and_nonce(DATA_KEY, header.salt, associated)
    return associated + AESGCM(key).encrypt(nonce, compressed, associated)


def opened(content: bytes) -> bytes | None:
    """The frame, or None if it was refused; the tag is taken for the one that the manifest names."""
    header = fuzzed(lambda: parse_segment_header(memoryview(content)))
    found = fuzzed(
        lambda: bytes(
            OPENER.open(memoryview(content), DATA_KEY, expected=KEY, expected_tag=bytes(content[-TAG_BYTES:]))
        )
    )
    assert found is None or header is not None
    return found


@given(st.binary(max_size=400))
@budget(150)
def test_random_bytes_are_refused(content: bytes) -> None:
    assert opened(content) is None
    assert opened(b"BFS1\x01\x00\x01\x00" + content) is None


@given(FRAMES, st.data())
@budget(300)
def test_a_changed_segment_never_opens(frame: bytes, data: st.DataObject) -> None:
    content = sealed(frame)
    assert opened(content) == frame
    changed = data.draw(mutations_of(st.just(content)))
    assert opened(changed) is None or changed == content


@given(mutations_of(FRAMES.map(zstandard.ZstdCompressor(level=1).compress)), st.integers(0, 200_000))
@budget(300)
def test_hostile_compressed_content_is_refused_or_has_the_declared_length(compressed: bytes, frame_bytes: int) -> None:
    frame = opened(sealed_as_it_is(compressed, frame_bytes))
    assert frame is None or len(frame) == frame_bytes


def test_a_bomb_of_a_gigabyte_is_stopped_at_the_declared_length() -> None:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    bomb = b"".join(compressor.compress(bytes(MIB)) for _ in range(1024)) + compressor.flush()
    assert len(bomb) < MAX_SEGMENT_BYTES
    for declared in (0, 1, 4096, MAX_FRAME_BYTES):
        segment = sealed_as_it_is(bomb, declared)
        with bounded_memory(32 * MIB):
            assert opened(segment) is None


def test_a_frame_that_asks_for_a_window_of_gigabytes_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, enable_ldm=True)
    asking = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = asking.compress(bytes(1000)) + asking.flush()
    assert opened(sealed_as_it_is(content, 1000)) is None


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + TAG_BYTES - 1])
def test_a_segment_cut_at_its_borders_is_refused(length: int) -> None:
    assert opened(sealed(bytes(4096))[:length]) is None


def test_lengths_at_their_extremes_are_refused_from_the_header() -> None:
    content = sealed(bytes(512))
    header = parse_segment_header(memoryview(content))
    for hostile in (
        replace(header, frame_bytes=2**64 - 1),
        replace(header, compressed_bytes=2**64 - 1),
        replace(header, compressed_bytes=0),
    ):
        assert opened(hostile.encode() + content[HEADER_BYTES:]) is None
