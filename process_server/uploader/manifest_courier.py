"""Manifests on their way to the store: each put as soon as, and never before, everything that R5 asks for holds.

Built by ``daemon``; ``run`` in a task, ``nudge`` when something about a generation has changed. What to do is the verdict of
``core.epoch_chain.judge``; this asks the store what the verdict needs, puts, and gives up what an epoch's decision makes void. One manifest
of a generation at a time, the lowest epoch first; generations side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from process_server.core.backlog import Backlog, GenerationBacklog, SegmentState
from process_server.core.backoff import SLOW_RETRY_S, Failure, StoreGate, backoff_s, classify
from process_server.core.epoch_chain import (
    AskPredecessor,
    AwaitSegments,
    Decided,
    PendingManifest,
    Put,
    Superseded,
    VerifySegments,
    judge,
)
from process_server.metrics import ProcessServerMetrics
from process_server.receipt_watch import ReceiptWatch
from process_server.spool.record import RecordKind
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoredSegment, StoreInquiry
from process_server.uploader.conditional_put import put_first
from replication.blob_client.api import BlobClient
from replication.clock import Clock
from replication.epoch_manifest import decode_unverified_manifest
from replication.errors import BlockferryError, Conflict, IntegrityError, NotFound, PeerUnavailable
from replication.failpoint import reached
from replication.identifiers import BatchKey, EpochId, EpochKey, GenerationKey
from replication.store_layout import MANIFEST_HASH_METADATA, manifest_name

AT_ONCE: Final = 4
"""Generations advanced at the same time; each may hold a manifest of 2.6 MiB."""
FIRST_LOOK_AGAIN_S: Final = 0.25
MAX_LOOK_AGAIN_S: Final = 2.0
QUESTION_S: Final = 120.0
"""For all of a question to the store, however many pages its answer has."""
_LONGEST_WAIT_S: Final = 60.0

_logger = logging.getLogger(__name__)


class ManifestCourier:
    """Advances generations whose lowest pending manifest may have become ready."""

    def __init__(
        self,
        backlog: Backlog,
        spool: Spool,
        client: BlobClient,
        inquiry: StoreInquiry,
        receipts: ReceiptWatch,
        gate: StoreGate,
        clock: Clock,
        metrics: ProcessServerMetrics,
        *,
        chance: Callable[[], float],
    ) -> None:
        self._backlog = backlog
        self._spool = spool
        self._client = client
        self._inquiry = inquiry
        self._receipts = receipts
        self._gate = gate
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        self._due: dict[GenerationKey, float] = {}
        self._looks: dict[GenerationKey, int] = {}
        self._active: set[GenerationKey] = set()
        self._wake = asyncio.Event()
        gate.on_open.append(self._wake.set)
        self._problems: dict[GenerationKey, BlockferryError] = {}

    @property
    def problem(self) -> BlockferryError | None:
        """Why the store refuses some single manifest that is still wanted, if it does."""
        for key in [key for key in self._problems if key not in self._backlog.generations]:
            del self._problems[key]
        return next(iter(self._problems.values()), None)

    def nudge(self, key: GenerationKey) -> None:
        """Something about the generation has changed: a manifest, a stored segment, a receipt."""
        self._due[key] = 0.0
        self._looks.pop(key, None)
        self._wake.set()

    def segment_settled(self, key: BatchKey) -> None:
        """A segment is stored, displaced or lost: its manifest may be next."""
        generation = self._backlog.generations.get(key.generation_key)
        manifest = None if generation is None else generation.next_manifest
        if manifest is not None and manifest.key == key.epoch_key and not manifest.missing:
            self.nudge(key.generation_key)

    def settle(self, key: GenerationKey) -> None:
        """Give up what can never count now that epochs of the generation are decided, and look at what comes next."""
        for place in self._backlog.settle(key):
            self._spool.release(place, RecordKind.DISCARDED)
            self._metrics.discarded_records.inc()
        self.nudge(key)

    async def run(self) -> None:
        """Advance generations until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                self._start_what_is_due(tasks)
                try:
                    async with asyncio.timeout(self._wait_s()):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def _wait_s(self) -> float:
        now_s = self._clock.monotonic_s()
        waiting = [at_s for key, at_s in self._due.items() if key not in self._active]
        if not waiting or len(self._active) >= AT_ONCE:
            return _LONGEST_WAIT_S
        first_s = min(waiting)
        if not self._gate.permits(now_s):
            first_s = max(first_s, self._gate.opens_at_s)
        return min(_LONGEST_WAIT_S, max(0.01, first_s - now_s))

    def _start_what_is_due(self, tasks: asyncio.TaskGroup) -> None:
        now_s = self._clock.monotonic_s()
        due = sorted((at_s, key) for key, at_s in self._due.items() if at_s <= now_s and key not in self._active)
        for _, key in due:
            if len(self._active) >= AT_ONCE or not self._gate.permits(now_s):
                return
            del self._due[key]
            self._active.add(key)
            tasks.create_task(self._advance(key))

    # -- one generation ---------------------------------------------------------------------------------------

    async def _advance(self, key: GenerationKey) -> None:
        ticket = 0
        try:
            while (generation := self._backlog.generations.get(key)) is not None:
                manifest = generation.next_manifest
                if manifest is None:
                    break
                ticket = self._gate.failures
                if not await self._step(generation, manifest):
                    break
                self._problems.pop(key, None)
        except BlockferryError as error:
            self._failed(key, error, ticket)
        finally:
            self._active.discard(key)
            self._wake.set()

    async def _step(self, generation: GenerationBacklog, manifest: PendingManifest) -> bool:
        """Do what the verdict says; False if there is nothing to do until something changes."""
        match judge(manifest, generation.chain):
            case AwaitSegments():
                return False
            case VerifySegments():
                await self._verify(manifest)
            case AskPredecessor(epoch):
                return await self._ask(generation, epoch)
            case Put():
                await self._put(generation, manifest)
            case Decided():
                self._give_up(manifest, RecordKind.UPLOADED)
                reached("process.manifest.retired")
                self._metrics.manifests.labels("stored").inc()
                self.settle(generation.key)
            case Superseded(reason):
                self._give_up(manifest, RecordKind.DISCARDED)
                self._metrics.manifests.labels("superseded").inc()
                _logger.warning(
                    "a manifest is dropped",
                    extra={"fields": {"epoch": str(manifest.key), "attempt": manifest.attempt, "reason": reason}},
                )
                self.settle(generation.key)
        return True

    def _give_up(self, manifest: PendingManifest, kind: RecordKind) -> None:
        if self._backlog.drop_manifest(manifest):
            self._spool.release(manifest.place, kind)

    async def _ask(self, generation: GenerationBacklog, epoch: EpochId) -> bool:
        """Learn which manifest decided ``epoch``: from the store, or from the receipt if it is applied and gone."""
        key = generation.key
        async with _answered_in_time(key):
            found = await self._inquiry.manifest_hash(EpochKey(key.disk, key.generation, epoch))
            if found is not None:
                generation.chain.decide(epoch, found)
            else:
                await self._receipts.read_now(key)
                newest = self._receipts.newest(key)
                if newest is not None:  # also if it was read before this generation was known here
                    generation.chain.learn(newest.facts)
        self._gate.succeeded()
        if generation.chain.hash_of(epoch) is not None or generation.chain.applied_epoch > epoch:
            return True
        looks = self._looks.get(key, 0) + 1
        self._looks[key] = looks
        wait_s = backoff_s(looks, self._chance(), first_s=FIRST_LOOK_AGAIN_S, cap_s=MAX_LOOK_AGAIN_S)
        self._due.setdefault(key, self._clock.monotonic_s() + wait_s)
        return False

    async def _read(self, manifest: PendingManifest) -> bytearray | None:
        """The manifest's bytes; None if it was given up meanwhile, or is damaged and therefore given up."""
        content = bytearray(manifest.place.payload_bytes)
        try:
            await self._spool.read(manifest.place, memoryview(content))
        except NotFound:
            self._backlog.drop_manifest(manifest)
            return None
        except IntegrityError as error:
            self._metrics.damaged_records.inc()
            _logger.log(
                logging.ERROR,
                "a spooled manifest is damaged: its agent puts it again",
                extra={"fields": {"epoch": str(manifest.key), "error": str(error)}},
            )
            self._give_up(manifest, RecordKind.DISCARDED)
            return None
        return content

    async def _verify(self, manifest: PendingManifest) -> None:
        """Ask the store for the segments that this spool no longer knows (their files are gone)."""
        content = await self._read(manifest)
        if content is None:
            return
        entries = self._backlog.attempt_entries(manifest.key, manifest.attempt)
        async with _answered_in_time(manifest.key.generation_key):
            stored = await self._inquiry.attempt(manifest.key, manifest.attempt)
        for named in decode_unverified_manifest(bytes(content)).segments:
            wanted = StoredSegment(named.batch_digest, named.tag, named.segment_bytes)
            entry = entries.get(named.batch)
            spooled = entry is not None and StoredSegment(entry.digest, entry.tag, entry.segment_bytes) == wanted
            if (
                not (spooled and entry is not None and entry.state is SegmentState.STORED)
                and stored.get(named.batch) != wanted
            ):
                manifest.lost.add(named.batch)
        manifest.unverified = False

    async def _put(self, generation: GenerationBacklog, manifest: PendingManifest) -> None:
        content = await self._read(manifest)
        if content is None:
            return
        try:
            metadata = {MANIFEST_HASH_METADATA: manifest.manifest_hash.hex()}
            await put_first(self._client, manifest_name(manifest.key), content, metadata)
        except Conflict:
            decided = await self._inquiry.manifest_hash(manifest.key)
            if decided is None:
                raise
        else:
            reached("process.manifest.stored")
            decided = manifest.manifest_hash
            self._metrics.uploaded_bytes.inc(len(content))
        self._gate.succeeded()
        generation.chain.decide(manifest.key.epoch, decided)
        self._receipts.expect(generation.key, manifest.key.epoch)

    def _failed(self, key: GenerationKey, error: BlockferryError, ticket: int) -> None:
        now_s = self._clock.monotonic_s()
        self._metrics.upload_failures.labels(error.code).inc()
        if classify(error) is Failure.OF_THIS_BLOB:
            self._gate.succeeded()  # it answers
            self._problems[key] = error
            _logger.error(
                "the store refuses a manifest", extra={"fields": {"generation": str(key), "error": str(error)}}
            )
            self._due.setdefault(key, now_s + SLOW_RETRY_S)
            return
        self._gate.failed(ticket, error, now_s, self._chance())
        self._due.setdefault(key, 0.0)  # as soon as the gate lets it through


@contextlib.asynccontextmanager
async def _answered_in_time(key: GenerationKey) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(QUESTION_S):
            yield
    except TimeoutError as error:
        raise PeerUnavailable(
            f"cannot ask the store about generation {key}: no answer within {QUESTION_S:g} s"
        ) from error
