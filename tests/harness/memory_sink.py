"""A process server, store and replica writer in memory behind the agent's ``Uplink``: the rules, without the network.

Called by tests of the agent's sessions. It verifies frames and manifests as the real ones do (same codecs), applies epochs in order to
a ``bytearray`` replica, keeps an image of the replica at each point, and signs receipts. ``lose_spool`` forgets batches and manifests
that were not applied; ``failures`` makes the next calls fail as a process server that cannot be reached. ``copied`` and ``put_back``: an
older state of the store takes the place of the present one.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from typing import Any, Final

from replication.batch_frame import BatchFrame, DataExtent, ParsedBatch, parse_batch
from replication.data_plane import BatchAcknowledgement, ManifestSuperseded, SegmentsMissing, SinkBehind
from replication.documents import WriterIdentity
from replication.epoch_manifest import NO_MANIFEST, EpochManifest, decode_manifest, manifest_hash
from replication.errors import KeyConflict, PeerUnavailable
from replication.identifiers import BatchKey, DiskId, EpochId, EpochKey, GenerationKey
from replication.store_documents import PointSummary, Receipt, WriterProblem

_STORED: Final = (
    "replica", "points", "batches", "manifests", "applied_epoch", "applied_hash", "applied_cut_time_ns", "newest_point",
)  # fmt: skip


@dataclass(slots=True)
class MemorySink:
    """One disk's way to its replica. ``applying`` False holds epochs back, as a writer that lags."""

    generation: GenerationKey
    manifest_key: bytes
    size_bytes: int
    writer: WriterIdentity = field(default_factory=WriterIdentity.generate)
    replica: bytearray = field(init=False)
    points: dict[str, bytes] = field(default_factory=dict)
    batches: dict[BatchKey, tuple[bytes, bytes]] = field(default_factory=dict)
    manifests: dict[int, bytes] = field(default_factory=dict)
    applied_epoch: int = 0
    applied_hash: bytes = NO_MANIFEST
    applied_cut_time_ns: int = 0
    newest_point: PointSummary | None = None
    problem: WriterProblem | None = None
    closed: bool = False
    failures: int = 0
    applying: bool = True
    received_data_bytes: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.replica = bytearray(self.size_bytes)

    def lose_spool(self) -> None:
        """A process server gone for good: what was acknowledged and not applied is lost."""
        self.batches.clear()
        self.manifests = {epoch: manifest for epoch, manifest in self.manifests.items() if epoch <= self.applied_epoch}

    def copied(self) -> dict[str, Any]:
        """The state of the store now, for ``put_back``."""
        return {name: copy.copy(getattr(self, name)) for name in _STORED}

    async def put_back(self, state: dict[str, Any]) -> None:
        async with self.changed:
            for name, value in state.items():
                setattr(self, name, copy.copy(value))
            self.changed.notify_all()

    def _fail_if_asked(self) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise PeerUnavailable("cannot reach the memory sink", retry_after_s=0.0)

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        await asyncio.sleep(0)
        self._fail_if_asked()
        content = frame.head + b"".join(frame.data)
        parse_batch(memoryview(content), frame.key)
        known = self.batches.get(frame.key)
        if known is not None and known[0] != frame.digest:
            raise KeyConflict(f"cannot accept batch {frame.key}: its key holds other content")
        self.batches[frame.key] = (frame.digest, content)
        self.received_data_bytes += frame.data_bytes
        return BatchAcknowledgement(tag=frame.digest.hex(), segment_bytes=len(content))

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        await asyncio.sleep(0)
        self._fail_if_asked()
        manifest = decode_manifest(encoded, self.manifest_key, expected=key)
        decided = self.manifests.get(key.epoch)
        if decided is not None:
            if manifest_hash(decided) != manifest_hash(encoded):
                raise ManifestSuperseded(f"cannot accept the manifest of {key}: another decided")
            return
        if any(manifest.batch_key(segment) not in self.batches for segment in manifest.segments):
            raise SegmentsMissing(f"cannot accept the manifest of {key}: segments are missing")
        before = self.manifests.get(key.epoch - 1)
        expected = NO_MANIFEST if key.epoch == 1 else None if before is None else manifest_hash(before)
        if expected is not None and expected != manifest.previous_hash:
            raise ManifestSuperseded(f"cannot accept the manifest of {key}: it does not chain")
        self.manifests[key.epoch] = encoded
        if self.applying:
            await self.apply_ready()

    async def apply_ready(self) -> None:
        """Apply every epoch whose manifest and predecessors are there."""
        while (encoded := self.manifests.get(self.applied_epoch + 1)) is not None:
            key = EpochKey(self.generation.disk, self.generation.generation, EpochId(self.applied_epoch + 1))
            manifest = decode_manifest(encoded, self.manifest_key, expected=key)
            assert manifest.previous_hash == self.applied_hash
            for segment in manifest.segments:
                digest, content = self.batches[manifest.batch_key(segment)]
                assert digest == segment.batch_digest
                self._write(parse_batch(memoryview(content)))
            self._take_point(manifest)
            self.applied_epoch, self.applied_hash = key.epoch, manifest_hash(encoded)
            self.applied_cut_time_ns = manifest.cut_time_ns
        async with self.changed:
            self.changed.notify_all()

    def _write(self, batch: ParsedBatch) -> None:
        for item in batch.extents:
            extent = item.extent
            data = item.data if isinstance(item, DataExtent) else bytes(extent.length_bytes)
            self.replica[extent.offset_bytes : extent.end_bytes] = data

    def _take_point(self, manifest: EpochManifest) -> None:
        if manifest.cut is not None:
            self.points[manifest.cut.cut] = bytes(self.replica)
            self.newest_point = PointSummary(
                cut=manifest.cut.cut, time_ns=manifest.cut_time_ns, epoch=manifest.key.epoch
            )

    async def stored_manifest(self, key: EpochKey) -> bytes | None:
        self._fail_if_asked()
        return self.manifests.get(key.epoch)

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None:
        assert key == self.generation
        self._fail_if_asked()

        def is_news() -> bool:
            known = seen is None or seen == self._newest_receipt()
            is_behind = self.applied_epoch < after_epoch
            return is_behind or self.applied_epoch > after_epoch or (self.applied_epoch == after_epoch and not known)

        try:
            async with asyncio.timeout(wait_s), self.changed:
                await self.changed.wait_for(is_news)
        except TimeoutError:
            return None
        if self.applied_epoch < after_epoch:
            if not wait_s:
                return None  # nobody has looked at the store
            raise SinkBehind(f"cannot wait for epoch {after_epoch + 1}", epoch=self.applied_epoch)
        return self._newest_receipt()

    async def say(self, *, problem: WriterProblem | None = None, closed: bool = False) -> None:
        """Write another receipt of the epoch that is applied."""
        async with self.changed:
            self.problem, self.closed = problem, closed
            self.changed.notify_all()

    def _newest_receipt(self) -> bytes:
        return self.writer.sign(
            Receipt(
                disk=DiskId(self.generation.disk),
                generation=self.generation.generation,
                epoch=self.applied_epoch,
                manifest_hash=self.applied_hash.hex(),
                cut_time_ns=self.applied_cut_time_ns,
                newest_point=self.newest_point,
                problem=self.problem,
                closed=self.closed,
            )
        )
