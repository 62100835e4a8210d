"""The spool's format: a file's name and header, a record's header and checksums. Byte offsets: ``docs/spool-format.md``.

Called by ``log`` (writes) and ``recovery`` (reads). Integers are little-endian. Both checksums of a record are seeded with its file's
random seed, so that neither an older file's blocks nor anything inside a payload passes for a record.

Version 2 is written: file header and records fill whole blocks, so that they can be written past the page cache. Version 1, in which
they began at multiples of 8, is read.
"""

from __future__ import annotations

import enum
import re
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from replication.aligned_memory import BLOCK_BYTES
from replication.epoch_manifest import MAX_MANIFEST_BYTES
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    MachineId,
)
from replication.sealed_segment import MAX_SEGMENT_BYTES

FORMAT_VERSION: Final = 2
UNALIGNED_VERSION: Final = 1
"""Read, and written over what recovery finds lost: a gap may have any length."""
LEAST_ALIGNMENT_BYTES: Final = 8
_ALIGNMENTS: Final = {UNALIGNED_VERSION: LEAST_ALIGNMENT_BYTES, FORMAT_VERSION: BLOCK_BYTES}
MAX_PAYLOAD_BYTES: Final = max(MAX_SEGMENT_BYTES, MAX_MANIFEST_BYTES)
MAX_MARKS: Final = 4096

_FILE_MAGIC: Final = b"BFSPOOL\0"
_FILE_HEADER: Final = struct.Struct("<8sIIQQ24x")
_FILE_HEADER_CONTENT_BYTES: Final = _FILE_HEADER.size + 8
FILE_HEADER_BYTES: Final = BLOCK_BYTES
"""Of version 2; what follows the checksum are zeros."""
FILE_HEADERS_BYTES: Final = {UNALIGNED_VERSION: _FILE_HEADER_CONTENT_BYTES, FORMAT_VERSION: FILE_HEADER_BYTES}
_FILE_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.spool")

RECORD_MAGIC: Final = b"BFSR"
_RECORD: Final = struct.Struct("<4sBBHIIQQQQ16s16sIIQ32s16s")
_CHECKSUM: Final = struct.Struct("<Q")
RECORD_HEADER_BYTES: Final = _RECORD.size + _CHECKSUM.size
_MARK: Final = struct.Struct("<Q")
_NIL: Final = str(uuid.UUID(int=0))


class RecordKind(enum.IntEnum):
    """What a record's payload is."""

    SEGMENT = 1
    MANIFEST = 2
    UPLOADED = 3
    """Numbers of records whose content is durable in the store."""
    DISCARDED = 4
    """Numbers of records that can never count: their epoch is decided otherwise."""
    GAP = 5
    """Written by recovery over what is lost: covers the numbers from the field *epoch* to its own; its payload is what was there."""


class FileName(NamedTuple):
    """What a spool file's name says: its number, ascending with age, and its random seed."""

    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.number:016x}-{self.seed:016x}.spool"

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """None for a file that is not the spool's."""
        match = _FILE_NAME.fullmatch(name)
        return None if match is None else cls(int(match[1], 16), int(match[2], 16))


def encode_file_header(name: FileName, version: int = FORMAT_VERSION) -> bytes:
    length = FILE_HEADERS_BYTES[version]
    prefix = _FILE_HEADER.pack(_FILE_MAGIC, version, length, name.number, name.seed)
    return (prefix + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(prefix, seed=name.seed))).ljust(length, b"\0")


def file_version(content: bytes, name: FileName) -> int | None:
    """The version of the file that begins with ``content``; None unless its header is as it was written."""
    for version in FILE_HEADERS_BYTES:
        if content[:_FILE_HEADER_CONTENT_BYTES] == encode_file_header(name, version)[:_FILE_HEADER_CONTENT_BYTES]:
            return version
    return None


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """A record's header. Of a manifest, ``content_id`` is its hash; of a segment, batch digest and tag. Marks carry neither."""

    kind: RecordKind
    number: int
    durable_through: int
    """Every record up to this number was durable when this one was written."""
    payload_bytes: int
    accepted_unix_ns: int = 0
    machine: MachineId = MachineId(_NIL)  # noqa: RUF009 - a constant
    disk: DiskId = DiskId(_NIL)  # noqa: RUF009 - a constant
    generation: int = 0
    epoch: int = 0
    attempt: int = 0
    batch: int = 0
    content_id: bytes = bytes(32)

    @property
    def covers(self) -> range:
        """The numbers that the record accounts for: its own, or all that a gap stands for."""
        return range(self.epoch if self.kind is RecordKind.GAP else self.number, self.number + 1)

    @property
    def digest(self) -> bytes:
        """A segment's batch digest."""
        return self.content_id[:16]

    @property
    def tag(self) -> bytes:
        """A segment's authentication tag."""
        return self.content_id[16:]

    @property
    def batch_key(self) -> BatchKey:
        return BatchKey(
            self.disk,
            GenerationId(self.generation),
            EpochId(self.epoch),
            AttemptNumber(self.attempt),
            BatchNumber(self.batch),
        )

    @property
    def epoch_key(self) -> EpochKey:
        return EpochKey(self.disk, GenerationId(self.generation), EpochId(self.epoch))

    def encode(self, name: FileName, payload_digest: bytes, version: int = FORMAT_VERSION) -> bytes:
        prefix = _RECORD.pack(
            RECORD_MAGIC,
            version,
            self.kind,
            RECORD_HEADER_BYTES,
            self.payload_bytes,
            self.batch,
            self.number,
            self.durable_through,
            name.number,
            self.accepted_unix_ns,
            uuid.UUID(self.machine).bytes,
            uuid.UUID(self.disk).bytes,
            self.generation,
            self.attempt,
            self.epoch,
            self.content_id,
            payload_digest,
        )
        return prefix + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(prefix, seed=name.seed))


class StoredHeader(NamedTuple):
    """A header as read back, and what its payload must hash to."""

    header: RecordHeader
    payload_digest: bytes
    version: int

    @property
    def record_bytes(self) -> int:
        """What the record takes in its file."""
        return record_bytes(self.header.payload_bytes, self.version)


def payload_digest(payload: memoryview, name: FileName) -> bytes:
    return xxhash.xxh3_128_digest(payload, seed=name.seed)


def decode_record_header(content: memoryview, name: FileName) -> StoredHeader | None:
    """Parse what stands at a record's start; None unless every byte of it is as it was written to this very file."""
    if content.nbytes < RECORD_HEADER_BYTES:
        return None
    prefix = content[: _RECORD.size]
    (checksum,) = _CHECKSUM.unpack_from(content, _RECORD.size)
    (magic, version, kind, header_bytes, payload_bytes, batch, number, durable_through, file_number, accepted, machine,
     disk, generation, attempt, epoch, content_id, digest) = _RECORD.unpack(prefix)  # fmt: skip
    if (
        magic != RECORD_MAGIC
        or version not in _ALIGNMENTS
        or header_bytes != RECORD_HEADER_BYTES
        or file_number != name.number
        or (payload_bytes > MAX_PAYLOAD_BYTES and kind != RecordKind.GAP)
        or kind not in RecordKind.__members__.values()
        or xxhash.xxh3_64_intdigest(prefix, seed=name.seed) != checksum
    ):
        return None
    header = RecordHeader(
        kind=RecordKind(kind),
        number=number,
        durable_through=durable_through,
        payload_bytes=payload_bytes,
        accepted_unix_ns=accepted,
        machine=MachineId(str(uuid.UUID(bytes=machine))),
        disk=DiskId(str(uuid.UUID(bytes=disk))),
        generation=generation,
        epoch=epoch,
        attempt=attempt,
        batch=batch,
        content_id=content_id,
    )
    return StoredHeader(header, digest, version)


def record_bytes(payload_bytes: int, version: int = FORMAT_VERSION) -> int:
    """What a record takes in its file: header, payload, padding."""
    unpadded = RECORD_HEADER_BYTES + payload_bytes
    return unpadded + -unpadded % _ALIGNMENTS[version]


def encode_marks(numbers: Iterable[int]) -> bytes:
    return b"".join(_MARK.pack(number) for number in numbers)


def decode_marks(payload: bytes | bytearray | memoryview) -> list[int]:
    return [number for (number,) in _MARK.iter_unpack(payload)]
