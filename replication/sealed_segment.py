"""Sealed segments: a batch frame compressed (zstd) and encrypted (AES-256-GCM); the unit in the spool and in the store.

Sealed by the process server, opened by the replica writer. Layout with byte offsets: ``docs/segment-format.md``.
Segment = header (112 bytes, the associated data) ‖ ciphertext ‖ tag (16 bytes). The key is derived from the generation's data key,
a random 32-byte salt and the header. Decompression is bounded by the declared frame length, which is bounded by a constant (R14).
Compressors and decompressors are not shared between threads: each thread makes its own ``SegmentSealer``/``SegmentOpener``.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from replication.aligned_memory import BLOCK_BYTES, aligned_memory
from replication.batch_frame import HEADER_BYTES as FRAME_HEADER_BYTES
from replication.batch_frame import MAX_FRAME_BYTES, data_offset
from replication.errors import IntegrityError, InvalidInput, PeerProtocolError
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, GenerationId
from replication.segment_keys import segment_key_and_nonce

SEGMENT_VERSION: Final = 1
SUITE_ZSTD_AES256GCM: Final = 1
TAG_BYTES: Final = 16
DEFAULT_COMPRESSION_LEVEL: Final = 1
DATA_ALIGNMENT_BYTES: Final = BLOCK_BYTES

_MAGIC: Final = b"BFS1"
_SALT_BYTES: Final = 32
_HEADER: Final = struct.Struct("<4sHH16sIIQIIQQ16s32s")
HEADER_BYTES: Final = _HEADER.size
_COMPRESSION_SLACK_BYTES: Final = 64 * 1024


def most_segment_bytes(frame_bytes: int) -> int:
    """The most that a frame of ``frame_bytes`` can take when it is sealed: if it does not compress at all."""
    return HEADER_BYTES + frame_bytes + _COMPRESSION_SLACK_BYTES + TAG_BYTES


MAX_SEGMENT_BYTES: Final = most_segment_bytes(MAX_FRAME_BYTES)
OPENING_ROOM_BYTES: Final = max(MAX_SEGMENT_BYTES, MAX_FRAME_BYTES + DATA_ALIGNMENT_BYTES)
"""Room for any segment, and for any frame that a segment is opened into."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says in clear: whose it is and how long; all of it authenticated."""

    key: BatchKey
    frame_bytes: int
    compressed_bytes: int
    batch_digest: bytes
    salt: bytes

    @property
    def segment_bytes(self) -> int:
        return HEADER_BYTES + self.compressed_bytes + TAG_BYTES

    def encode(self) -> bytes:
        key = self.key
        return _HEADER.pack(
            _MAGIC,
            SEGMENT_VERSION,
            SUITE_ZSTD_AES256GCM,
            uuid.UUID(key.disk).bytes,
            key.generation,
            key.attempt,
            key.epoch,
            key.batch,
            0,
            self.frame_bytes,
            self.compressed_bytes,
            self.batch_digest,
            self.salt,
        )


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A sealed batch. ``content`` is header, ciphertext and tag; ``tag`` goes into the epoch's manifest."""

    key: BatchKey
    batch_digest: bytes
    content: memoryview

    @property
    def tag(self) -> bytes:
        return bytes(self.content[-TAG_BYTES:])


def parse_segment_header(content: memoryview) -> SegmentHeader:
    """Parse the header of a segment and check its lengths against the limits and, if it is whole, against ``content``.

    :raises PeerProtocolError: if it is no segment of a known version within the limits.
    """
    if content.nbytes < HEADER_BYTES:
        raise PeerProtocolError(f"cannot parse a segment: {content.nbytes} bytes are shorter than its header")
    magic, version, suite, disk, generation, attempt, epoch, batch, reserved, frame_bytes, compressed, digest, salt = (
        _HEADER.unpack_from(content)
    )
    if magic != _MAGIC or version != SEGMENT_VERSION or suite != SUITE_ZSTD_AES256GCM or reserved:
        raise PeerProtocolError(f"cannot parse a segment: magic {bytes(magic)!r}, version {version}, suite {suite}")
    if frame_bytes > MAX_FRAME_BYTES or compressed > MAX_SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES:
        raise PeerProtocolError(f"cannot parse a segment: {frame_bytes} bytes in {compressed} exceed the limits")
    try:
        key = BatchKey(
            DiskId(str(uuid.UUID(bytes=bytes(disk)))),
            GenerationId(generation),
            EpochId(epoch),
            AttemptNumber(attempt),
            BatchNumber(batch),
        )
    except InvalidInput as error:
        raise PeerProtocolError(f"cannot parse a segment: {error.message}", hint=error.hint) from error
    return SegmentHeader(key, frame_bytes, compressed, bytes(digest), bytes(salt))


class SegmentSealer:
    """Compresses and encrypts frames; one per thread."""

    def __init__(self, level: int = DEFAULT_COMPRESSION_LEVEL) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)

    def seal(
        self, key: BatchKey, batch_digest: bytes, frame: memoryview, data_key: bytes, room: memoryview | None = None
    ) -> SealedSegment:
        """Seal a verified frame into the start of ``room``, or into memory of its own. The result holds no reference to ``frame``.

        :param room: at least ``most_segment_bytes(frame.nbytes)``.
        """
        compressed = self._compressor.compress(frame)
        header = SegmentHeader(key, frame.nbytes, len(compressed), batch_digest, os.urandom(_SALT_BYTES))
        associated = header.encode()
        segment_key, nonce = segment_key_and_nonce(data_key, header.salt, associated)
        if room is None:
            room = aligned_memory(header.segment_bytes)
        content = room[: header.segment_bytes]
        content[:HEADER_BYTES] = associated
        AESGCM(segment_key).encrypt_into(nonce, compressed, associated, content[HEADER_BYTES:])
        return SealedSegment(key, batch_digest, content.toreadonly())


class SegmentOpener:
    """Decrypts and decompresses segments; one per thread. Holds up to 8 MiB.

    A frame is laid so that its extents' data begin at a multiple of ``DATA_ALIGNMENT_BYTES`` in memory: whoever writes them to a disk
    can then do without the page cache.
    """

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**24)
        self._compressed = aligned_memory(MAX_SEGMENT_BYTES)

    def open(
        self,
        content: memoryview,
        data_key: bytes,
        *,
        expected: BatchKey,
        expected_tag: bytes,
        room: memoryview | None = None,
    ) -> memoryview:
        """Return the batch frame inside ``content``: a view into ``room``, or into memory of its own.

        :param room: ``OPENING_ROOM_BYTES`` at a block (``aligned_memory``). It may be the memory that ``content`` lies in: that has been
            decrypted before the first byte of the frame is written. What it holds after an error is undefined.
        :raises PeerProtocolError: if it is malformed or not the segment ``expected``.
        :raises IntegrityError: if the tag is not ``expected_tag``, authentication fails or the content does not decompress
            to exactly the declared length.
        """
        header = parse_segment_header(content)
        if header.key != expected:
            raise PeerProtocolError(
                f"cannot open segment {header.key} in place of {expected}", disk=expected.disk, epoch=expected.epoch
            )
        if content.nbytes != header.segment_bytes:
            raise PeerProtocolError(
                f"cannot open a segment of {content.nbytes} bytes", disk=expected.disk, epoch=expected.epoch
            )
        if bytes(content[-TAG_BYTES:]) != expected_tag:
            raise IntegrityError(
                "cannot open a segment: it is not the one its manifest names", disk=expected.disk, epoch=expected.epoch
            )
        associated = bytes(content[:HEADER_BYTES])
        segment_key, nonce = segment_key_and_nonce(data_key, header.salt, associated)
        compressed = self._compressed[: header.compressed_bytes]
        try:
            AESGCM(segment_key).decrypt_into(nonce, content[HEADER_BYTES:], associated, compressed)
        except InvalidTag as error:
            raise IntegrityError(
                "cannot open a segment: authentication failed", disk=expected.disk, epoch=expected.epoch
            ) from error
        room = aligned_memory(header.frame_bytes + DATA_ALIGNMENT_BYTES) if room is None else room
        return self._decompress(compressed, header.frame_bytes, room, expected)

    def _decompress(self, compressed: memoryview, frame_bytes: int, room: memoryview, expected: BatchKey) -> memoryview:
        try:
            with self._decompressor.stream_reader(compressed, closefd=False) as reader:
                head = reader.read(min(frame_bytes, FRAME_HEADER_BYTES))
                start = -data_offset(head) % DATA_ALIGNMENT_BYTES
                frame = room[start : start + frame_bytes]
                filled = len(head)
                frame[:filled] = head
                while filled < frame.nbytes:
                    count = reader.readinto(frame[filled:])
                    if not count:
                        break
                    filled += count
                surplus = reader.read(1)
        except zstandard.ZstdError as error:
            raise IntegrityError(
                "cannot open a segment: it does not decompress", disk=expected.disk, epoch=expected.epoch
            ) from error
        if filled != frame.nbytes or surplus:
            raise IntegrityError(
                "cannot open a segment: its length is not the declared one", disk=expected.disk, epoch=expected.epoch
            )
        return frame
