"""Builders of epochs: from a list of writes to segments, manifest and generation record, as the other daemons make them.

Called by tests of the replica writer and of whoever needs a store with epochs in it. ``build_epoch`` is pure; ``DiskHistory`` puts
what it built into a ``BlobClient`` in the order of R5 (segments, then the manifest, If-None-Match) and keeps the model of the disk.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from replication.batch_frame import BatchExtent, BatchFrame, DataExtent, ZeroExtent, encode_batch
from replication.blob_client.api import BlobClient
from replication.documents import WriterPublicKey
from replication.epoch_manifest import (
    NO_MANIFEST,
    ConsistentCut,
    EpochFlag,
    EpochManifest,
    ManifestSegment,
    encode_manifest,
    manifest_hash,
)
from replication.extents import Extent
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    CutId,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
    ItemId,
)
from replication.sealed_segment import SealedSegment, SegmentSealer
from replication.segment_keys import manifest_key, wrap_for_writer
from replication.store_documents import GenerationBase, GenerationRecord
from replication.store_layout import (
    CONTAINERS,
    MANIFEST_HASH_METADATA,
    REPLICATION_CONTAINER,
    SEGMENT_DIGEST_METADATA,
    generation_record_name,
    manifest_name,
    segment_name,
)

DEFAULT_GRANULARITY_BYTES: Final = 65536
SECOND_NS: Final = 10**9
NO_FLAGS: Final = EpochFlag(0)


@dataclass(frozen=True, slots=True)
class Write:
    """``data`` at ``offset_bytes``, or ``zero_bytes`` zeros there."""

    offset_bytes: int
    data: bytes = b""
    zero_bytes: int = 0

    @property
    def content(self) -> bytes:
        return self.data or bytes(self.zero_bytes)

    @property
    def extent(self) -> Extent:
        return Extent(self.offset_bytes, len(self.data) or self.zero_bytes)


Batches = Sequence[Sequence[Write]]
"""Per batch its writes, sorted and disjoint; batches may overlap: the higher one wins."""


@dataclass(frozen=True, slots=True)
class BuiltEpoch:
    """An epoch as it goes into the store."""

    manifest: EpochManifest
    encoded_manifest: bytes
    segments: tuple[SealedSegment, ...]

    @property
    def hash(self) -> bytes:
        return manifest_hash(self.encoded_manifest)


def new_uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128)))


def frame_of(key: BatchKey, writes: Iterable[Write]) -> BatchFrame:
    extents: list[BatchExtent] = [
        DataExtent(write.extent, memoryview(write.data)) if write.data else ZeroExtent(write.extent) for write in writes
    ]
    return encode_batch(key, extents)


def build_epoch(
    key: EpochKey,
    batches: Batches,
    *,
    data_key: bytes,
    previous_hash: bytes = NO_MANIFEST,
    attempt: int = 1,
    flags: EpochFlag = NO_FLAGS,
    cut: ConsistentCut | None = None,
    cut_time_ns: int = 0,
    first_batch: int = 0,
) -> BuiltEpoch:
    """Frame, seal and list ``batches``; a ``cut`` makes it a point epoch."""
    sealer = SegmentSealer()
    segments: list[SealedSegment] = []
    named: list[ManifestSegment] = []
    logical_bytes = 0
    for number, writes in enumerate(batches, start=first_batch):
        batch = BatchKey(key.disk, key.generation, key.epoch, AttemptNumber(attempt), BatchNumber(number))
        frame = frame_of(batch, writes)
        whole = memoryview(b"".join((frame.head, *frame.data)))
        segment = sealer.seal(batch, frame.digest, whole, data_key)
        segments.append(segment)
        named.append(ManifestSegment(batch.batch, segment.content.nbytes, segment.tag, frame.digest))
        logical_bytes += frame.logical_bytes
    manifest = EpochManifest(
        key=key,
        attempt=AttemptNumber(attempt),
        flags=flags | EpochFlag.POINT if cut is not None else flags,
        cut_time_ns=cut_time_ns,
        previous_hash=previous_hash,
        segments=tuple(named),
        logical_bytes=logical_bytes,
        cut=cut,
    )
    encoded = encode_manifest(manifest, manifest_key(data_key, key.generation_key))
    return BuiltEpoch(manifest, encoded, tuple(segments))


def apply_to_model(model: bytearray, batches: Batches) -> None:
    """What an epoch means: batches in order, the higher one wins."""
    for writes in batches:
        for write in writes:
            model[write.offset_bytes : write.extent.end_bytes] = write.content


async def make_containers(client: BlobClient) -> None:
    for container in CONTAINERS:
        await client.create_container(container)


async def put_segment(client: BlobClient, segment: SealedSegment) -> None:
    await client.put_blob(
        REPLICATION_CONTAINER,
        segment_name(segment.key),
        segment.content,
        metadata={SEGMENT_DIGEST_METADATA: segment.batch_digest.hex()},
        if_none_match_any=True,
    )


async def put_manifest(client: BlobClient, epoch: BuiltEpoch) -> None:
    await client.put_blob(
        REPLICATION_CONTAINER,
        manifest_name(epoch.manifest.key),
        epoch.encoded_manifest,
        metadata={MANIFEST_HASH_METADATA: epoch.hash.hex()},
        if_none_match_any=True,
    )


async def put_epoch(client: BlobClient, epoch: BuiltEpoch) -> None:
    """Segments first, the manifest last (R5)."""
    for segment in epoch.segments:
        await put_segment(client, segment)
    await put_manifest(client, epoch)


def make_generation_record(
    disk: DiskId,
    generation: int,
    *,
    item: ItemId,
    machine: str,
    size_bytes: int,
    base: GenerationBase | None,
    writer: WriterPublicKey,
    data_key: bytes,
    granularity_bytes: int = DEFAULT_GRANULARITY_BYTES,
) -> GenerationRecord:
    record = GenerationRecord(
        disk=disk,
        generation=generation,
        machine=machine,
        item=item,
        size_bytes=size_bytes,
        granularity_bytes=granularity_bytes,
        base=base,
        writer_key_id=writer.key_id,
    )
    return record.with_keys(b"\0" * 60, wrap_for_writer(writer.wrapping, data_key, record.associated_data()))


async def put_generation_record(client: BlobClient, record: GenerationRecord) -> None:
    key = GenerationKey(DiskId(record.disk), GenerationId(record.generation))
    await client.put_blob(REPLICATION_CONTAINER, generation_record_name(key), record.encode(), if_none_match_any=True)


@dataclass(slots=True)
class DiskHistory:
    """One disk's source and what its agent ships of it: ``model`` is the disk after the newest epoch, ``cuts`` the disk at each cut.

    Call ``open_generation`` first. The containers must exist (``make_containers``).
    """

    client: BlobClient
    writer: WriterPublicKey
    random: Random
    size_bytes: int
    disk: DiskId = field(default=DiskId(""))
    item: ItemId = field(default=ItemId(""))
    generation: int = 0
    epoch: int = 0
    data_key: bytes = b""
    previous_hash: bytes = NO_MANIFEST
    clock_ns: int = 1_700_000_000 * SECOND_NS
    model: bytearray = field(default_factory=bytearray)
    cuts: dict[str, bytes] = field(default_factory=dict)
    instants: dict[str, int] = field(default_factory=dict)
    """When the cuts were made, as every disk of them says (R9)."""
    built: dict[tuple[int, int], BuiltEpoch] = field(default_factory=dict)
    after: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """The disk after each (generation, epoch)."""

    def __post_init__(self) -> None:
        self.disk = self.disk or DiskId(new_uuid(self.random))
        self.item = self.item or ItemId(new_uuid(self.random))
        self.model = self.model or bytearray(self.size_bytes)

    async def open_generation(self, base: GenerationBase | None = None) -> GenerationRecord:
        """Put the record of the next generation, of ``size_bytes`` as they are now (the model grows or shrinks with it)."""
        self.model = self.model[: self.size_bytes].ljust(self.size_bytes, b"\0")
        self.generation += 1
        self.epoch = 0
        self.previous_hash = NO_MANIFEST
        self.data_key = self.random.randbytes(32)
        record = make_generation_record(
            self.disk,
            self.generation,
            item=self.item,
            machine=new_uuid(self.random),
            size_bytes=self.size_bytes,
            base=base,
            writer=self.writer,
            data_key=self.data_key,
        )
        await put_generation_record(self.client, record)
        return record

    def next_key(self) -> EpochKey:
        return EpochKey(self.disk, GenerationId(self.generation), EpochId(self.epoch + 1))

    def built_epochs(self, generation: int) -> int:
        """How many epochs of ``generation`` were built."""
        return max((epoch for number, epoch in self.built if number == generation), default=0)

    def build(
        self,
        batches: Batches,
        *,
        cut: ConsistentCut | None = None,
        attempt: int = 1,
        flags: EpochFlag = NO_FLAGS,
    ) -> BuiltEpoch:
        """Build the next epoch and move on to it; nothing is stored."""
        self.clock_ns += SECOND_NS
        built = build_epoch(
            self.next_key(),
            batches,
            data_key=self.data_key,
            previous_hash=self.previous_hash,
            attempt=attempt,
            flags=flags,
            cut=cut,
            cut_time_ns=self.clock_ns if cut is None else self.instants.get(cut.cut, self.clock_ns),
        )
        self.epoch += 1
        self.previous_hash = built.hash
        apply_to_model(self.model, batches)
        self.built[self.generation, self.epoch] = built
        self.after[self.generation, self.epoch] = bytes(self.model)
        if cut is not None:
            self.cuts[cut.cut] = bytes(self.model)
        return built

    async def put(
        self,
        batches: Batches,
        *,
        cut: ConsistentCut | None = None,
        attempt: int = 1,
        flags: EpochFlag = NO_FLAGS,
    ) -> BuiltEpoch:
        """Build the next epoch and store it."""
        built = self.build(batches, cut=cut, attempt=attempt, flags=flags)
        await put_epoch(self.client, built)
        return built

    async def put_void(self, attempt: int = 1) -> BuiltEpoch:
        """Abandon the next epoch."""
        return await self.put((), attempt=attempt, flags=EpochFlag.VOID)

    def cut(self, *others: DiskHistory) -> ConsistentCut:
        """A new cut of this disk and ``others``, at one instant."""
        together = (self, *others)
        cut = ConsistentCut(CutId(new_uuid(self.random)), self.item, tuple(each.disk for each in together))
        instant_ns = max(each.clock_ns for each in together) + SECOND_NS
        for each in together:
            each.instants[cut.cut] = instant_ns
        return cut

    def random_write(self, longest_bytes: int = 65536) -> Write:
        """Data or zeros somewhere inside the disk, aligned to 512 bytes."""
        length = 512 * self.random.randint(1, max(1, min(longest_bytes, self.size_bytes) // 512))
        offset = 512 * self.random.randint(0, (self.size_bytes - length) // 512)
        if self.random.random() < 0.25:
            return Write(offset, zero_bytes=length)
        return Write(offset, self.random.randbytes(length))

    def random_batches(self, batches: int, writes: int, longest_bytes: int = 65536) -> list[list[Write]]:
        """``batches`` that may overlap each other, each of at most ``writes`` sorted, disjoint writes."""
        made: list[list[Write]] = []
        for _ in range(batches):
            chosen: list[Write] = []
            for write in sorted(
                (self.random_write(longest_bytes) for _ in range(writes)), key=lambda write: write.offset_bytes
            ):
                if not chosen or chosen[-1].extent.end_bytes <= write.offset_bytes:
                    chosen.append(write)
            made.append(chosen)
        return made
