"""PUT and GET of manifests: what an agent declares complete, and what has decided an epoch.

Called by ``http_surface``. A manifest is accepted once every segment it names is spooled here or stored with the tag, digest and length it
states; it is durable in the spool before it is acknowledged. Putting it to the store is the uploader's part (R5). A manifest that can
never be put is answered with ``ManifestSuperseded``, one whose segments are gone with ``SegmentsMissing``: the agent opens a new attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Final

from process_server.buffer_arena import BufferArena
from process_server.core.backlog import Backlog, SegmentEntry, SegmentState
from process_server.core.epoch_chain import (
    NOTHING_APPLIED,
    Decided,
    EpochChain,
    PendingManifest,
    ReceiptFacts,
    Superseded,
    decided_otherwise,
    replaces,
)
from process_server.intake.batch_intake import BUFFER_WAIT_S
from process_server.intake.body import Body
from process_server.intake.grants import Grants
from process_server.intake.keyed_locks import KeyedLocks
from process_server.metrics import ProcessServerMetrics
from process_server.spool.record import RecordHeader, RecordKind
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoredSegment, StoreInquiry
from replication.data_plane import ManifestSuperseded, SegmentsMissing
from replication.epoch_manifest import (
    MAX_MANIFEST_BYTES,
    EpochManifest,
    ManifestSegment,
    decode_unverified_manifest,
    manifest_hash,
)
from replication.errors import NotFound, Overloaded, PeerUnavailable
from replication.failpoint import reached
from replication.identifiers import BatchNumber, EpochKey, GenerationKey, MachineId
from replication.threads import finished, finished_in

MANIFESTS_AT_ONCE: Final = 4
"""Each may take 2.6 MiB, and several times that once it is parsed. While it is received it takes only its buffer."""
SLOT_WAIT_S: Final = 5.0
STORE_LOOKUP_S: Final = 10.0
_SHOWN_BATCHES: Final = 20

_logger = logging.getLogger(__name__)


class ManifestIntake:
    """Accepts manifests. ``on_manifest`` is told of each that became pending, with the generation's key.

    ``read_receipt`` reads a generation's receipt from the store; ``on_step_back`` is told if the store turns out to be an older one.
    """

    def __init__(
        self,
        backlog: Backlog,
        spool: Spool,
        grants: Grants,
        inquiry: StoreInquiry,
        arena: BufferArena,
        metrics: ProcessServerMetrics,
        parsing: Executor,
        *,
        unix_ns: Callable[[], int],
        on_manifest: Callable[[GenerationKey], None],
        read_receipt: Callable[[GenerationKey], Awaitable[object]],
        on_step_back: Callable[[GenerationKey, ReceiptFacts], None],
    ) -> None:
        self._backlog = backlog
        self._spool = spool
        self._grants = grants
        self._inquiry = inquiry
        self._arena = arena
        self._metrics = metrics
        self._parsing = parsing
        self._unix_ns = unix_ns
        self._on_manifest = on_manifest
        self._read_receipt = read_receipt
        self._on_step_back = on_step_back
        self._slots = asyncio.Semaphore(MANIFESTS_AT_ONCE)
        self._locks: KeyedLocks[EpochKey] = KeyedLocks()

    async def put(self, key: EpochKey, machine: MachineId, body: Body) -> bool:
        """Accept a manifest; durable on return. True if it is new, False if it was there already.

        :raises SegmentsMissing, ManifestSuperseded: as the module says.
        :raises Overloaded: if the spool is full up to its limit, manifests' headroom included; or no buffer became free, or no turn came.
        :raises BlockferryError: as ``Grants.check_owner``, ``Body.receive`` and ``decode_unverified_manifest`` say.
        """
        length = body.length(at_least=1, at_most=MAX_MANIFEST_BYTES)
        await self._grants.check_owner(key.generation_key, machine)
        async with contextlib.AsyncExitStack() as held:
            lease = held.enter_context(await self._arena.lease(length, BUFFER_WAIT_S, machine))
            async with lease.receiving(lambda: body.received_bytes):
                await body.receive_into(lease.view)
            await held.enter_async_context(self._turn())
            encoded = bytes(lease.view)
            lease.close()
            manifest = await finished_in(self._parsing, lambda: decode_unverified_manifest(encoded, expected=key))
            async with self._locks.hold(key):
                try:
                    created = await finished(self._accept(manifest, encoded, machine))
                except SegmentsMissing:
                    self._metrics.manifests.labels("segments-missing").inc()
                    raise
                except ManifestSuperseded:
                    self._metrics.manifests.labels("superseded").inc()
                    raise
        self._metrics.manifests.labels("accepted" if created else "repeated").inc()
        return created

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(SLOT_WAIT_S):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Overloaded(
                "cannot accept more: manifests wait for the store or the disk", retry_after_s=1.0
            ) from error
        try:
            yield
        finally:
            self._slots.release()

    async def stored(self, key: EpochKey, machine: MachineId) -> bytes:
        """The manifest that decided an epoch, as it lies in the store.

        :raises NotFound: if none has.
        """
        await self._grants.check_owner(key.generation_key, machine)
        content = await self._inquiry.manifest(key)
        if content is None:
            raise NotFound("cannot find a manifest in the store", disk=key.disk, epoch=key.epoch)
        return content

    async def _accept(self, manifest: EpochManifest, encoded: bytes, machine: MachineId) -> bool:
        key, digest = manifest.key, manifest_hash(encoded)
        generation = self._backlog.generation(key.generation_key, machine)
        match decided_otherwise(key.epoch, digest, manifest.previous_hash, generation.chain):
            case Decided():
                if await self._still_decides(key, digest, generation.chain):
                    return False
            case Superseded(reason):
                # What is applied may have been decided by this very manifest before a restart: the store remembers.
                async with _answered_in_time(key):
                    in_store = await self._inquiry.manifest_hash(key)
                if in_store == digest:
                    generation.chain.decide(key.epoch, digest)
                    return False
                raise ManifestSuperseded(f"cannot accept the manifest: {reason}", disk=key.disk, epoch=key.epoch)
        pending = generation.pending_manifest(key.epoch)
        if pending is not None and pending.manifest_hash == digest:
            return False
        if not replaces(manifest.attempt, pending):
            raise ManifestSuperseded(
                "cannot accept the manifest: one of a newer or the same attempt waits to be put",
                disk=key.disk,
                epoch=key.epoch,
            )
        await self._spool_new(manifest, digest, encoded, machine, await self._require_segments(manifest))
        return True

    async def _still_decides(self, key: EpochKey, digest: bytes, chain: EpochChain) -> bool:
        """Whether the store still holds what decided an epoch. Its agent puts a manifest again when no receipt has come for long: perhaps
        the store was put back to a state from before it, and nobody would ever put it there again.
        """
        if key.epoch <= chain.applied_epoch:
            return True
        async with _answered_in_time(key):
            in_store = await self._inquiry.manifest_hash(key)
            if in_store is None:
                await self._read_receipt(key.generation_key)  # afterwards: it may be applied, and gone for that
        if in_store == digest or key.epoch <= chain.applied_epoch:
            return True
        _logger.warning(
            "the store has lost a manifest: it was put back to an older state", extra={"fields": {"epoch": str(key)}}
        )
        self._on_step_back(key.generation_key, chain.receipt or NOTHING_APPLIED)
        return False

    async def _spool_new(
        self, manifest: EpochManifest, digest: bytes, encoded: bytes, machine: MachineId, in_store: set[BatchNumber]
    ) -> None:
        key, accepted_unix_ns = manifest.key, self._unix_ns()
        draft = RecordHeader(
            RecordKind.MANIFEST,
            number=0,
            durable_through=0,
            payload_bytes=len(encoded),
            accepted_unix_ns=accepted_unix_ns,
            machine=machine,
            disk=key.disk,
            generation=key.generation,
            epoch=key.epoch,
            attempt=manifest.attempt,
            content_id=digest,
        )
        with self._spool.reserve_manifest(len(encoded)):
            written = await self._spool.append_in_thread(draft, memoryview(encoded))
            reached("process.manifest.appended")
            await self._spool.durable(written)
        reached("process.manifest.durable")
        pending = PendingManifest(
            key,
            manifest.attempt,
            digest,
            manifest.previous_hash,
            written.place,
            accepted_unix_ns,
            missing=set(),
        )
        self._count_segments(manifest, pending, in_store)
        replaced = self._backlog.add_manifest(pending, machine)
        if replaced is not None:
            self._spool.release(replaced.place, RecordKind.DISCARDED)
            self._metrics.discarded_records.inc()
        self._on_manifest(key.generation_key)

    def _count_segments(self, manifest: EpochManifest, pending: PendingManifest, in_store: set[BatchNumber]) -> None:
        """What is not stored yet, and what was lost while the manifest was made durable; nothing awaits from here on."""
        entries = self._backlog.attempt_entries(manifest.key, manifest.attempt)
        for segment in manifest.segments:
            if segment.batch in in_store:
                continue
            entry = entries.get(segment.batch)
            if entry is None:
                pending.unverified = True  # forgotten meanwhile, since the store may be an older one: it is asked
            elif not _is_spooled(segment, entry):
                pending.lost.add(segment.batch)
            elif entry.state is not SegmentState.STORED:
                pending.missing.add(segment.batch)

    async def _require_segments(self, manifest: EpochManifest) -> set[BatchNumber]:
        """Every segment that the manifest names is in the spool or in the store, exactly as it is named.

        Returns those that only the store has.

        :raises SegmentsMissing: naming those that are not.
        """
        entries = self._backlog.attempt_entries(manifest.key, manifest.attempt)
        unknown = [segment for segment in manifest.segments if not _is_spooled(segment, entries.get(segment.batch))]
        if not unknown:
            return set()
        async with _answered_in_time(manifest.key):
            stored = await self._inquiry.attempt(manifest.key, manifest.attempt)
        missing = [segment.batch for segment in unknown if not names(segment, stored.get(segment.batch))]
        if missing:
            raise SegmentsMissing(
                f"cannot accept the manifest: {len(missing)} of its {len(manifest.segments)} segments are neither spooled nor "
                f"stored as it names them: batches {_listed(missing)} of attempt {manifest.attempt}",
                disk=manifest.key.disk,
                epoch=manifest.key.epoch,
                hint="open a new attempt of the epoch",
            )
        return {segment.batch for segment in unknown}


@contextlib.asynccontextmanager
async def _answered_in_time(key: EpochKey) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(STORE_LOOKUP_S):
            yield
    except TimeoutError as error:
        raise PeerUnavailable(
            "cannot ask the store about a manifest: no answer", disk=key.disk, epoch=key.epoch
        ) from error


def _is_spooled(named: ManifestSegment, entry: SegmentEntry | None) -> bool:
    return (
        entry is not None
        and entry.state in (SegmentState.WAITING, SegmentState.UPLOADING, SegmentState.STORED)
        and names(named, StoredSegment(entry.digest, entry.tag, entry.segment_bytes))
    )


def names(named: ManifestSegment, stored: StoredSegment | None) -> bool:
    """Whether a stored segment is the one that a manifest names."""
    return stored == StoredSegment(named.batch_digest, named.tag, named.segment_bytes)


def _listed(batches: Iterable[BatchNumber]) -> str:
    shown = list(batches)
    text = ", ".join(map(str, shown[:_SHOWN_BATCHES]))
    return text if len(shown) <= _SHOWN_BATCHES else f"{text} and {len(shown) - _SHOWN_BATCHES} more"
