"""Batch frames: a few MiB of extents on the wire, keyed, versioned, length-checked, xxh3 per extent.

Written by the agent; verified by the process server at intake and by the replica writer before a byte reaches the replica.
Layout with byte offsets: ``docs/wire-format.md``. All integers little-endian; every length is checked against a constant
before anything is allocated or read (R14). The digest covers header and table; the table holds each extent's xxh3, so the
digest identifies the whole content (R4).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash

from replication.errors import IntegrityError, InvalidInput, PeerProtocolError
from replication.extents import BLOCK_BYTES, MAX_DISK_BYTES, Extent
from replication.identifiers import AttemptNumber, BatchKey, BatchNumber, DiskId, EpochId, GenerationId

PROTOCOL_VERSION: Final = 1
MAX_BATCH_DATA_BYTES: Final = 8 * 1024 * 1024
MAX_BATCH_EXTENTS: Final = 16384
DIGEST_BYTES: Final = 16

_MAGIC: Final = b"BFB1"
_PREFIX: Final = struct.Struct("<4sHH16sIIQIIQQ")
HEADER_BYTES: Final = _PREFIX.size + DIGEST_BYTES
_ENTRY: Final = np.dtype([("offset", "<u8"), ("length", "<u8"), ("xxh3", "<u8"), ("kind", "<u4"), ("reserved", "<u4")])
ENTRY_BYTES: Final = _ENTRY.itemsize
MAX_FRAME_BYTES: Final = HEADER_BYTES + MAX_BATCH_EXTENTS * ENTRY_BYTES + MAX_BATCH_DATA_BYTES

_KIND_DATA: Final = 1
_KIND_ZERO: Final = 2

View = memoryview


@dataclass(frozen=True, slots=True)
class DataExtent:
    """An extent with its bytes; ``data`` is as long as the extent and stays valid while the frame is used."""

    extent: Extent
    data: View

    def __post_init__(self) -> None:
        if self.data.nbytes != self.extent.length_bytes:
            raise InvalidInput(f"cannot frame {self.data.nbytes} bytes as an extent of {self.extent.length_bytes}")


@dataclass(frozen=True, slots=True)
class ZeroExtent:
    """An extent that reads as zeros; it carries no data, whatever its length."""

    extent: Extent


BatchExtent = DataExtent | ZeroExtent


@dataclass(frozen=True, slots=True)
class BatchFrame:
    """An encoded frame: ``head`` (header and table) followed by ``data`` views, in order, without copying them."""

    key: BatchKey
    digest: bytes
    head: bytes
    data: tuple[View, ...]
    logical_bytes: int

    @property
    def data_bytes(self) -> int:
        return sum(view.nbytes for view in self.data)

    @property
    def frame_bytes(self) -> int:
        return len(self.head) + self.data_bytes


@dataclass(frozen=True, slots=True)
class ParsedBatch:
    """A verified frame; data views point into the caller's buffer."""

    key: BatchKey
    digest: bytes
    extents: tuple[BatchExtent, ...]
    logical_bytes: int


def encode_batch(key: BatchKey, extents: Sequence[BatchExtent]) -> BatchFrame:
    """Encode sorted, disjoint extents.

    :raises InvalidInput: if they are unsorted, overlap, or exceed the limits of a batch.
    """
    if len(extents) > MAX_BATCH_EXTENTS:
        raise InvalidInput(f"cannot frame {len(extents)} extents in one batch", hint=f"at most {MAX_BATCH_EXTENTS}")
    table = np.zeros(len(extents), dtype=_ENTRY)
    views: list[View] = []
    previous_end = logical_bytes = 0
    for index, item in enumerate(extents):
        extent = item.extent
        if extent.offset_bytes < previous_end:
            raise InvalidInput("cannot frame extents that overlap or are not sorted", offset_bytes=extent.offset_bytes)
        previous_end = extent.end_bytes
        logical_bytes += extent.length_bytes
        if isinstance(item, DataExtent):
            table[index] = (
                extent.offset_bytes,
                extent.length_bytes,
                xxhash.xxh3_64_intdigest(item.data),
                _KIND_DATA,
                0,
            )
            views.append(item.data)
        else:
            table[index] = (extent.offset_bytes, extent.length_bytes, 0, _KIND_ZERO, 0)
    data_bytes = sum(view.nbytes for view in views)
    if data_bytes > MAX_BATCH_DATA_BYTES:
        raise InvalidInput(f"cannot frame {data_bytes} bytes in one batch", hint=f"at most {MAX_BATCH_DATA_BYTES}")
    prefix = _PREFIX.pack(
        _MAGIC,
        PROTOCOL_VERSION,
        HEADER_BYTES,
        uuid.UUID(key.disk).bytes,
        key.generation,
        key.attempt,
        key.epoch,
        key.batch,
        len(extents),
        data_bytes,
        logical_bytes,
    )
    table_bytes = table.tobytes()
    digest = xxhash.xxh3_128_digest(prefix + table_bytes)
    return BatchFrame(key, digest, prefix + digest + table_bytes, tuple(views), logical_bytes)


@dataclass(frozen=True, slots=True)
class _Header:
    key: BatchKey
    extent_count: int
    data_bytes: int
    logical_bytes: int
    digest: bytes


def _parse_header(frame: View) -> _Header:
    if frame.nbytes < HEADER_BYTES:
        raise PeerProtocolError(f"cannot parse a batch: {frame.nbytes} bytes are shorter than its header")
    magic, version, header_bytes, disk, generation, attempt, epoch, batch, count, data_bytes, logical_bytes = (
        _PREFIX.unpack_from(frame)
    )
    if magic != _MAGIC:
        raise PeerProtocolError(f"cannot parse a batch: magic {bytes(magic)!r} is unknown")
    if version != PROTOCOL_VERSION or header_bytes != HEADER_BYTES:
        raise PeerProtocolError(
            f"cannot parse a batch of protocol version {version}", hint=f"this side speaks version {PROTOCOL_VERSION}"
        )
    if count > MAX_BATCH_EXTENTS or data_bytes > MAX_BATCH_DATA_BYTES or logical_bytes > MAX_DISK_BYTES:
        raise PeerProtocolError(f"cannot parse a batch: {count} extents with {data_bytes} bytes exceed the limits")
    if frame.nbytes != HEADER_BYTES + count * ENTRY_BYTES + data_bytes:
        raise PeerProtocolError(f"cannot parse a batch: {frame.nbytes} bytes do not match its stated lengths")
    try:
        key = BatchKey(
            DiskId(str(uuid.UUID(bytes=bytes(disk)))),
            GenerationId(generation),
            EpochId(epoch),
            AttemptNumber(attempt),
            BatchNumber(batch),
        )
    except InvalidInput as error:
        raise PeerProtocolError(f"cannot parse a batch: {error.message}", hint=error.hint) from error
    return _Header(key, count, data_bytes, logical_bytes, bytes(frame[_PREFIX.size : HEADER_BYTES]))


def data_offset(head: bytes) -> int:
    """Where a frame that begins with ``head`` would have its first extent's data; 0 if ``head`` is too short. Nothing is verified."""
    if len(head) < HEADER_BYTES:
        return 0
    extent_count: int = _PREFIX.unpack_from(head)[8]
    return HEADER_BYTES + extent_count * ENTRY_BYTES


def parse_batch_key(frame: View) -> tuple[BatchKey, bytes]:
    """The key and digest a frame states, after its lengths were checked; the content is not verified yet.

    :raises PeerProtocolError: if it is no well-formed frame.
    """
    header = _parse_header(frame)
    return header.key, header.digest


def parse_batch(frame: View, expected: BatchKey | None = None) -> ParsedBatch:
    """Parse and verify a whole frame: lengths, digest, order of extents, xxh3 of every data extent.

    :param expected: the key under which the frame arrived; a frame that states another key is refused.
    :raises PeerProtocolError: if it is malformed or its key is not ``expected``.
    :raises IntegrityError: if a digest or checksum does not match.
    """
    header = _parse_header(frame)
    key = header.key
    if expected is not None and key != expected:
        raise PeerProtocolError(f"cannot accept batch {key} under the key {expected}", disk=key.disk, epoch=key.epoch)
    table_end = HEADER_BYTES + header.extent_count * ENTRY_BYTES
    digest = xxhash.xxh3_128(frame[: _PREFIX.size])
    digest.update(frame[HEADER_BYTES:table_end])
    if digest.digest() != header.digest:
        raise IntegrityError("cannot accept a batch: its digest does not match", disk=key.disk, epoch=key.epoch)
    table = np.frombuffer(frame[HEADER_BYTES:table_end], dtype=_ENTRY)
    extents: list[BatchExtent] = []
    position, previous_end, logical_bytes = table_end, 0, 0
    for offset, length, checksum, kind, reserved in table.tolist():
        if (
            offset % BLOCK_BYTES
            or length % BLOCK_BYTES
            or length == 0
            or offset < previous_end
            or offset + length > MAX_DISK_BYTES
            or reserved
        ):
            raise PeerProtocolError(
                f"cannot accept extent [{offset}, +{length}) of a batch: unaligned, unsorted or out of range",
                disk=key.disk,
                epoch=key.epoch,
            )
        previous_end = offset + length
        logical_bytes += length
        extent = Extent(offset, length)
        if kind == _KIND_ZERO:
            extents.append(ZeroExtent(extent))
            continue
        if kind != _KIND_DATA or position + length > frame.nbytes:
            raise PeerProtocolError(f"cannot accept extent of kind {kind} at {offset}", disk=key.disk, epoch=key.epoch)
        data = frame[position : position + length]
        if xxhash.xxh3_64_intdigest(data) != checksum:
            raise IntegrityError(
                "cannot accept a batch: an extent's checksum does not match",
                disk=key.disk,
                epoch=key.epoch,
                offset_bytes=offset,
            )
        extents.append(DataExtent(extent, data))
        position += length
    if position != frame.nbytes or logical_bytes != header.logical_bytes:
        raise PeerProtocolError("cannot accept a batch: its table does not add up", disk=key.disk, epoch=key.epoch)
    return ParsedBatch(key, header.digest, tuple(extents), logical_bytes)
