"""Epoch manifests: the ordered, authenticated, hash-chained list of an epoch's segments. Its existence makes the epoch complete.

Authored by the agent, relayed by a process server (put with If-None-Match:* after every segment it names is stored, R5), obeyed by
the replica writer. Layout with byte offsets: ``docs/wire-format.md``. Integers are little-endian. The last 32 bytes are
HMAC-SHA256 under the generation's manifest key; the manifest's hash (SHA-256 of all its bytes) is what the next one chains to.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import itertools
import struct
import uuid
from dataclasses import dataclass
from typing import Final

from replication.batch_frame import DIGEST_BYTES
from replication.errors import IntegrityError, InvalidInput, PeerProtocolError
from replication.extents import MAX_DISK_BYTES
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    CutId,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    ItemId,
)
from replication.sealed_segment import MAX_SEGMENT_BYTES, TAG_BYTES

MANIFEST_VERSION: Final = 1
MANIFEST_HASH_BYTES: Final = 32
MAX_MANIFEST_SEGMENTS: Final = 65536
MAX_CUT_DISKS: Final = 64
NO_MANIFEST: Final = bytes(MANIFEST_HASH_BYTES)
"""What the first manifest of a generation chains to."""

_MAGIC: Final = b"BFM1"
_HEADER: Final = struct.Struct("<4sHH16sIIQQ16s16s32sIHHQ")
_DISK_BYTES: Final = 16
_SEGMENT: Final = struct.Struct("<II16s16s")
_MAC_BYTES: Final = 32
_NIL_UUID: Final = str(uuid.UUID(int=0))
MAX_MANIFEST_BYTES: Final = (
    _HEADER.size + MAX_CUT_DISKS * _DISK_BYTES + MAX_MANIFEST_SEGMENTS * _SEGMENT.size + _MAC_BYTES
)


class EpochFlag(enum.IntFlag):
    """What an epoch is besides a set of writes."""

    POINT = 1
    """Cut consistently: the replica after it equals the source at one instant."""
    FINAL = 2
    """The last epoch of a cutover."""
    VOID = 4
    """Abandoned: carries nothing, changes nothing, decides that no other attempt counts."""
    SEEDING = 8
    """Part of initial replication or resync."""
    APP_CONSISTENT = 16
    """A point cut between quiesce hooks."""


@dataclass(frozen=True, slots=True)
class ManifestSegment:
    """One segment as its manifest names it."""

    batch: BatchNumber
    segment_bytes: int
    tag: bytes
    batch_digest: bytes

    def __post_init__(self) -> None:
        if not 0 < self.segment_bytes <= MAX_SEGMENT_BYTES:
            raise InvalidInput(f"cannot name a segment of {self.segment_bytes} bytes in a manifest")
        if len(self.tag) != TAG_BYTES or len(self.batch_digest) != DIGEST_BYTES:
            raise InvalidInput("cannot name a segment without its 16-byte tag and digest in a manifest")


@dataclass(frozen=True, slots=True)
class ConsistentCut:
    """The cut that a point epoch belongs to: one instant of all ``disks`` of an item."""

    cut: CutId
    item: ItemId
    disks: tuple[DiskId, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.disks) <= MAX_CUT_DISKS or len(set(self.disks)) != len(self.disks):
            raise InvalidInput(f"cannot cut {len(self.disks)} disks together", hint=f"1 to {MAX_CUT_DISKS}, each once")


@dataclass(frozen=True, slots=True)
class EpochManifest:
    """An epoch's manifest. Segments ascend by batch number.

    ``cut_time_ns`` (the agent's clock, Unix time): every write completed before it is in the replica once this epoch is applied;
    0 if that cannot be said yet (initial replication).
    """

    key: EpochKey
    attempt: AttemptNumber
    flags: EpochFlag
    cut_time_ns: int
    previous_hash: bytes
    segments: tuple[ManifestSegment, ...]
    logical_bytes: int
    cut: ConsistentCut | None = None

    def __post_init__(self) -> None:
        def unusable(why: str) -> InvalidInput:
            return InvalidInput(f"cannot use a manifest {why}", disk=self.key.disk, epoch=self.key.epoch)

        if len(self.previous_hash) != MANIFEST_HASH_BYTES:
            raise unusable("that chains to a hash of another length")
        if len(self.segments) > MAX_MANIFEST_SEGMENTS or not 0 <= self.logical_bytes <= MAX_DISK_BYTES:
            raise unusable(f"of {len(self.segments)} segments")
        if not 0 <= self.cut_time_ns < 2**63:
            raise unusable("cut at a time that nobody can state")
        numbers = [segment.batch for segment in self.segments]
        if any(after <= before for before, after in itertools.pairwise(numbers)):
            raise unusable("whose batches do not ascend")
        if bool(self.flags & EpochFlag.POINT) != (self.cut is not None):
            raise unusable("in which a point has no cut, or a cut no point")
        if self.flags & EpochFlag.VOID and (self.segments or self.cut is not None):
            raise unusable("that is void and names segments or a cut")
        if self.cut is not None and self.key.disk not in self.cut.disks:
            raise unusable("whose cut leaves out its own disk")

    @property
    def is_void(self) -> bool:
        return bool(self.flags & EpochFlag.VOID)

    @property
    def is_point(self) -> bool:
        return bool(self.flags & EpochFlag.POINT)

    def batch_key(self, segment: ManifestSegment) -> BatchKey:
        key = self.key
        return BatchKey(key.disk, key.generation, key.epoch, self.attempt, segment.batch)


def manifest_hash(encoded: bytes) -> bytes:
    """What the next manifest chains to and what a receipt states."""
    return hashlib.sha256(encoded).digest()


def encode_manifest(manifest: EpochManifest, key: bytes) -> bytes:
    """Encode and authenticate with the generation's manifest key."""
    cut = manifest.cut
    disks = () if cut is None else cut.disks
    parts = [
        _HEADER.pack(
            _MAGIC,
            MANIFEST_VERSION,
            int(manifest.flags),
            uuid.UUID(manifest.key.disk).bytes,
            manifest.key.generation,
            manifest.attempt,
            manifest.key.epoch,
            manifest.cut_time_ns,
            uuid.UUID(_NIL_UUID if cut is None else cut.cut).bytes,
            uuid.UUID(_NIL_UUID if cut is None else cut.item).bytes,
            manifest.previous_hash,
            len(manifest.segments),
            len(disks),
            0,
            manifest.logical_bytes,
        )
    ]
    parts += [uuid.UUID(disk).bytes for disk in disks]
    parts += [_SEGMENT.pack(s.batch, s.segment_bytes, s.tag, s.batch_digest) for s in manifest.segments]
    body = b"".join(parts)
    return body + hmac.digest(key, body, "sha256")


def decode_manifest(encoded: bytes, key: bytes, *, expected: EpochKey | None = None) -> EpochManifest:
    """Verify and parse.

    :raises IntegrityError: if the authentication code does not match.
    :raises PeerProtocolError: if it is malformed, of another version, or not of the ``expected`` epoch.
    """
    _check_length(encoded)
    if not hmac.compare_digest(hmac.digest(key, encoded[:-_MAC_BYTES], "sha256"), encoded[-_MAC_BYTES:]):
        raise IntegrityError(
            "cannot accept a manifest: its authentication code does not match",
            disk=None if expected is None else expected.disk,
            epoch=None if expected is None else expected.epoch,
        )
    return decode_unverified_manifest(encoded, expected=expected)


def _check_length(encoded: bytes) -> None:
    if not _HEADER.size + _MAC_BYTES <= len(encoded) <= MAX_MANIFEST_BYTES:
        raise PeerProtocolError(f"cannot parse a manifest of {len(encoded)} bytes")


def decode_unverified_manifest(encoded: bytes, *, expected: EpochKey | None = None) -> EpochManifest:
    """Parse without the key: for a process server, which relays manifests and needs to know which segments must be stored first.

    :raises PeerProtocolError: if it is malformed, of another version, or not of the ``expected`` epoch.
    """
    _check_length(encoded)
    (magic, version, flags, disk, generation, attempt, epoch, cut_time_ns, cut_id, item, previous, segment_count,
     disk_count, reserved, logical_bytes) = _HEADER.unpack_from(encoded)  # fmt: skip
    if magic != _MAGIC or version != MANIFEST_VERSION or reserved or flags & ~sum(EpochFlag):
        raise PeerProtocolError(f"cannot parse a manifest: magic {magic!r}, version {version}, flags {flags:#x}")
    length = _HEADER.size + disk_count * _DISK_BYTES + segment_count * _SEGMENT.size + _MAC_BYTES
    if segment_count > MAX_MANIFEST_SEGMENTS or disk_count > MAX_CUT_DISKS or len(encoded) != length:
        raise PeerProtocolError(f"cannot parse a manifest: {len(encoded)} bytes do not match its stated lengths")
    if not disk_count and (any(cut_id) or any(item)):
        raise PeerProtocolError("cannot parse a manifest: it names a cut and no disks of it")
    disks_end = _HEADER.size + disk_count * _DISK_BYTES
    disks = tuple(
        DiskId(str(uuid.UUID(bytes=encoded[at : at + _DISK_BYTES])))
        for at in range(_HEADER.size, disks_end, _DISK_BYTES)
    )
    try:
        manifest = EpochManifest(
            key=EpochKey(DiskId(str(uuid.UUID(bytes=disk))), GenerationId(generation), EpochId(epoch)),
            attempt=AttemptNumber(attempt),
            flags=EpochFlag(flags),
            cut_time_ns=cut_time_ns,
            previous_hash=previous,
            segments=tuple(
                ManifestSegment(BatchNumber(batch), size, tag, digest)
                for batch, size, tag, digest in _SEGMENT.iter_unpack(encoded[disks_end:-_MAC_BYTES])
            ),
            logical_bytes=logical_bytes,
            cut=ConsistentCut(CutId(str(uuid.UUID(bytes=cut_id))), ItemId(str(uuid.UUID(bytes=item))), disks)
            if disks
            else None,
        )
    except InvalidInput as error:
        raise PeerProtocolError(f"cannot parse a manifest: {error.message}", hint=error.hint) from error
    if expected is not None and manifest.key != expected:
        raise PeerProtocolError(
            f"cannot accept the manifest of {manifest.key} as that of {expected}",
            disk=expected.disk,
            epoch=expected.epoch,
        )
    return manifest
