"""One disk: take over its replica, apply epoch after epoch, take points, state receipts, change generations.

Called by ``replica_writer.py`` (one follower a disk, in a task of its own) and by the requests that concern one disk. ``step`` takes one
durable step and says what came of it; stopping or crashing between or within steps loses nothing, since each step starts from what
the store says. Whoever calls ``step`` or ``close_generation`` holds ``lock``.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from azure_sink.core.generation_choice import (
    AwaitGeneration,
    FollowGeneration,
    OpenGeneration,
    RefuseGeneration,
    choose_generation,
    passed_over,
)
from azure_sink.core.replica_state import (
    EpochVoided,
    GenerationClosed,
    GenerationOpening,
    Opening,
    Phase,
    ReplicaState,
)
from azure_sink.replica_writer.closed_generation import (
    ClosedGeneration,
    base_of,
    closed_at,
    naming_torn_manifest,
    never_opened,
)
from azure_sink.replica_writer.disk_points import DiskPoints
from azure_sink.replica_writer.disk_receipts import DiskReceipts
from azure_sink.replica_writer.epoch_application import EpochApplication
from azure_sink.replica_writer.failures import FenceLost, GenerationRefused, ReplicaHeld, problem_of, together
from azure_sink.replica_writer.generation_book import GenerationBook, OpenedGeneration
from azure_sink.replica_writer.manifest_gap import ManifestGap
from azure_sink.replica_writer.metrics import WriterMetrics
from azure_sink.replica_writer.point_ledger import PointLedger
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from azure_sink.replica_writer.segment_reader import SegmentReader
from replication.blob_client.api import BlobClient, BlobContent
from replication.blob_client.failures import BlobNotFound
from replication.clock import Clock
from replication.documents import WriterIdentity
from replication.epoch_manifest import MAX_MANIFEST_BYTES, EpochManifest, decode_manifest, manifest_hash
from replication.errors import BlockferryError, IntegrityError, NotFound, Retryable
from replication.failpoint import reached
from replication.identifiers import DiskId, EpochId, EpochKey, GenerationId, GenerationKey, ItemId
from replication.store_documents import Receipt
from replication.store_layout import KEYS_PREFIX, REPLICATION_CONTAINER, epoch_prefix, manifest_name, segment_name

COLLECTING_LANES = 4
_logger = logging.getLogger(__name__)


class Outcome(enum.Enum):
    WORKED = "worked"
    IDLE = "idle"
    STANDBY = "standby"
    """Another writer that is alive holds the replica."""
    LOST = "lost"
    """The replica was lost, or its state is uncertain: it is taken over anew."""
    TROUBLED = "troubled"
    """``trouble`` says why it cannot go on; its points are unharmed, and so is the replica unless a large epoch was begun."""


@dataclass(frozen=True, slots=True)
class FollowerParts:
    """What all followers share. ``applying`` bounds how many disks apply an epoch at a time."""

    client: BlobClient
    identity: WriterIdentity
    lease_id: str
    lease_s: int
    clock: Clock
    book: GenerationBook
    reader: SegmentReader
    ledger: PointLedger
    metrics: WriterMetrics
    applying: asyncio.Semaphore


class DiskFollower:
    """Owns one disk's replica while this writer holds it."""

    def __init__(self, disk: DiskId, parts: FollowerParts) -> None:
        self.disk = disk
        self.lock = asyncio.Lock()
        self.trouble: BlockferryError | None = None
        self.retired = False
        self.waiting_since_s: float | None = None
        """When the manifest that is to be applied next was put (Unix time, the store's clock); None if there is none."""
        self._parts = parts
        self._replica: ReplicaBlob | None = None
        self._points = DiskPoints(disk, parts.ledger, parts.clock, parts.metrics)
        self._receipts = DiskReceipts(disk, parts.client, parts.identity)
        self._gap = ManifestGap(parts.client, parts.clock)

    # -- what others may ask ----------------------------------------------------------------------------------

    @property
    def holds_replica(self) -> bool:
        return self._replica is not None and self._replica.usable

    @property
    def receipted(self) -> Receipt | None:
        """The newest durable receipt of the applied generation; what it covers may be collected."""
        if self._replica is None:
            return None
        return self._receipts.newest(self._replica.state.applied.generation)

    async def renew_lease(self) -> None:
        """Keep what is held; a lost lease is found by the next step."""
        if self._replica is not None and self._replica.usable and self._replica.renewal_due:
            await self._replica.renew()

    async def release(self) -> None:
        """Give the replica back, so that another writer need not wait for the lease to expire."""
        replica, self._replica = self._replica, None
        if replica is not None:
            await replica.release()

    def retire(self) -> None:
        """The disk is being deleted: take no further step. The lease stays with this writer's id."""
        self.retired = True
        self._replica = None

    # -- one step ---------------------------------------------------------------------------------------------

    async def step(self) -> Outcome:
        """Take one durable step. Errors of the tree become outcomes; anything else is a defect and raised."""
        if self.retired:
            return Outcome.IDLE
        try:
            outcome = await self._step()
        except FenceLost as error:
            return self._lose(error)
        except ReplicaHeld:
            self._replica = None
            self._note_recovery()
            return Outcome.STANDBY
        except BlockferryError as error:
            try:
                await self._note_trouble(error)
            except FenceLost as lost:
                return self._lose(lost)  # no trouble, but another writer at work
            return Outcome.TROUBLED
        self._note_recovery()
        return outcome

    def _lose(self, error: FenceLost) -> Outcome:
        self._replica = None
        self._note_recovery()
        self._parts.metrics.fences_lost.inc()
        _logger.warning(str(error), extra={"fields": {"disk": self.disk, "code": error.code}})
        return Outcome.LOST

    async def _step(self) -> Outcome:
        replica = await self._held()
        if replica is None:
            return Outcome.IDLE
        await self.renew_lease()
        match replica.state.phase:
            case Phase.CREATED | Phase.CLOSED:
                await self._state_receipt(replica)
                opened = self._choose(replica.state)
                if opened is None:
                    return Outcome.IDLE
                record = opened.record
                await replica.record(
                    GenerationOpening(Opening(record.generation, record.size_bytes, ItemId(record.item)))
                )
                reached("sink.generation.opening")
            case Phase.OPENING:
                await replica.finish_opening()
                reached("sink.generation.opened")
                await self._state_receipt(replica)
                _logger.info("generation opened", extra={"fields": {"replica": str(replica.state.applied)}})
            case Phase.POINT_DUE:
                await self._points.take(replica)
                await self._state_receipt(replica)
            case Phase.SETTLED | Phase.APPLYING:
                await self._points.follow()
                await self._state_receipt(replica)
                return await self._apply_next(replica)
        return Outcome.WORKED

    async def _held(self) -> ReplicaBlob | None:
        if self._replica is not None and self._replica.usable:
            return self._replica
        self._replica = None
        self._points.forget()
        parts = self._parts
        try:
            replica = await self._take_over()
        except BlobNotFound:
            opened = self._choose(None)
            if opened is None:
                return None
            await ReplicaBlob.create(parts.client, self.disk, ItemId(opened.record.item), opened.record.size_bytes)
            reached("sink.replica.created")
            replica = await self._take_over()
        await self._points.load()
        self._receipts.forget()
        self._replica = replica
        fields = {"disk": self.disk, "applied": str(replica.state.applied), "phase": replica.state.phase.value}
        _logger.info("replica taken over", extra={"fields": fields})
        return replica

    async def _take_over(self) -> ReplicaBlob:
        parts = self._parts
        return await ReplicaBlob.take_over(parts.client, self.disk, parts.lease_id, parts.lease_s, parts.clock)

    def _choose(self, state: ReplicaState | None) -> OpenedGeneration | None:
        """The generation to open, None if there is none yet.

        :raises GenerationRefused: the newest one does not continue this replica.
        """
        book = self._parts.book
        match choose_generation(state, book.known(self.disk)):
            case OpenGeneration(generation):
                return book.opened(GenerationKey(self.disk, GenerationId(generation)))
            case RefuseGeneration(generation, reason, hint):
                raise GenerationRefused(generation, reason, disk=self.disk, hint=hint)
            case FollowGeneration() | AwaitGeneration():
                unusable = book.unusable(self.disk, 0 if state is None else state.applied.generation)
                if unusable is not None:
                    raise unusable
                if state is not None:
                    self._require_none_passed_over(state)
                return None

    def _require_none_passed_over(self, state: ReplicaState) -> None:
        """:raises GenerationRefused: there is a generation that would be waited for in vain."""
        refused = passed_over(state, self._parts.book.numbers(self.disk))
        if refused is not None:
            raise GenerationRefused(refused.generation, refused.reason, disk=self.disk, hint=refused.hint)

    # -- applying ---------------------------------------------------------------------------------------------

    async def _apply_next(self, replica: ReplicaBlob) -> Outcome:
        parts, applied = self._parts, replica.state.applied
        key = EpochKey(self.disk, GenerationId(applied.generation), EpochId(applied.epoch + 1))
        found = await self._manifest(key)
        if found is None:
            self.waiting_since_s = None
            if passed_over(replica.state, parts.book.numbers(self.disk)) and self.trouble is None:
                await (
                    replica.renew()
                )  # whoever holds the replica now may have closed and opened what this writer has not heard of
            self._require_none_passed_over(replica.state)
            missing = await self._gap.found(key, replica.state, look_now=self.trouble is not None)
            if missing is None:
                return Outcome.IDLE
            await replica.renew()  # whoever holds the replica now may have applied and deleted it
            found = await self._manifest(key)
            if found is None:
                raise missing
        self.waiting_since_s = found.properties.last_modified.timestamp()
        generation = parts.book.opened(key.generation_key)
        async with parts.applying:
            await self._apply(replica, generation, key, found)
        self.waiting_since_s = None
        return Outcome.WORKED

    async def _manifest(self, key: EpochKey) -> BlobContent | None:
        try:
            return await self._parts.client.get_blob(
                REPLICATION_CONTAINER, manifest_name(key), max_bytes=MAX_MANIFEST_BYTES
            )
        except BlobNotFound:
            return None

    async def _apply(
        self, replica: ReplicaBlob, generation: OpenedGeneration, key: EpochKey, found: BlobContent
    ) -> None:
        parts = self._parts
        started_s = parts.clock.monotonic_s()
        age_s = parts.clock.unix_ns() / 1e9 - found.properties.last_modified.timestamp()
        parts.metrics.manifest_wait_seconds.observe(max(0.0, age_s))
        manifest = decode_manifest(found.content, generation.manifest_key, expected=key)
        if manifest.previous_hash.hex() != replica.state.manifest_hash:
            raise IntegrityError(
                "cannot accept a manifest: it does not chain to the applied one", disk=key.disk, epoch=key.epoch
            )
        hashed = manifest_hash(found.content).hex()
        if manifest.is_void:
            await replica.record(EpochVoided(key.epoch, hashed))
        else:
            application = EpochApplication(
                parts.client, parts.reader, replica, manifest, hashed, generation.data_key, parts.clock
            )
            await application.run()
            parts.metrics.written_bytes.inc(application.figures.written_bytes)
            parts.metrics.cleared_bytes.inc(application.figures.cleared_bytes)
            parts.metrics.page_writes.inc(application.figures.writes)
            reached("sink.epoch.applied")
        if replica.state.phase is Phase.POINT_DUE:
            await self._points.take(replica)
            parts.metrics.recovery_points.inc()
        self._note_recovery()
        await self._state_receipt(replica)
        reached("sink.receipt.put")
        parts.metrics.epochs_applied.inc()
        parts.metrics.apply_seconds.observe(parts.clock.monotonic_s() - started_s)
        await self._collect(manifest)

    async def _collect(self, manifest: EpochManifest) -> None:
        """Delete what the receipt has made superfluous. The newest manifest stays until the next one is applied."""
        names = [segment_name(manifest.batch_key(segment)) for segment in manifest.segments]
        key = manifest.key
        if key.epoch > 1:
            names.append(manifest_name(EpochKey(key.disk, key.generation, EpochId(key.epoch - 1))))
        remaining = iter(names)
        await together(self._delete_each(remaining) for _ in range(min(COLLECTING_LANES, len(names))))
        reached("sink.epoch.collected")

    async def _delete_each(self, names: Iterator[str]) -> None:
        for name in names:
            try:
                await self._parts.client.delete_blob(REPLICATION_CONTAINER, name)
            except BlobNotFound:
                continue
            except BlockferryError as error:
                # Not worth failing an applied epoch for: the sweep collects what is left.
                _logger.debug(str(error), extra={"fields": {"disk": self.disk, "code": error.code}})
                return
            self._parts.metrics.collected_blobs.inc()

    async def fingerprint(self) -> int | None:
        """Changes when the blobs do on which the next step depends: the next epoch's, or the generation records. None: not known."""
        replica = self._replica
        prefix = f"{KEYS_PREFIX}{self.disk}/"
        if isinstance(self.trouble, GenerationRefused):
            pass  # another record may help
        elif replica is not None and replica.state.phase in (Phase.SETTLED, Phase.APPLYING):
            applied = replica.state.applied
            prefix = epoch_prefix(EpochKey(self.disk, GenerationId(applied.generation), EpochId(applied.epoch + 1)))
        seen = 0
        try:
            async for item in self._parts.client.list_blobs(REPLICATION_CONTAINER, prefix):
                seen = hash((seen, item.name, item.properties.etag))
        except BlockferryError:
            return None  # the store does not answer: the pause runs its length
        return seen

    # -- closing a generation ---------------------------------------------------------------------------------

    async def close_generation(self, generation: int, worked: Callable[[], Awaitable[None]]) -> ClosedGeneration:
        """Apply what is complete, then refuse later epochs (R8). Idempotent; ``worked`` is awaited after each step.

        The newest generation is closed also if it was refused: then the one that the replica is at is closed, so that the next
        generation can continue it.

        :raises ReplicaHeld: another writer holds the replica and will answer.
        :raises Retryable: the store did not answer; ask again.
        :raises NotFound: no such generation was ever opened here.
        """
        await self._parts.book.refresh_disk(self.disk)
        while True:
            outcome = await self.step()
            replica = self._replica
            if outcome is Outcome.STANDBY:
                raise ReplicaHeld("cannot close a generation: another writer holds the replica", disk=self.disk)
            if outcome is Outcome.TROUBLED and isinstance(self.trouble, Retryable):
                raise self.trouble
            if replica is not None and replica.usable:
                closed = self._already_closed(replica.state, generation)
                if closed is not None:
                    return await naming_torn_manifest(closed, self.disk, self._parts.client, self._parts.book)
            if outcome in (Outcome.WORKED, Outcome.LOST):
                await worked()
                continue
            if self._is_refused(generation):
                if replica is not None and not replica.usable:
                    continue
                if replica is None or replica.state.phase is Phase.CLOSED:
                    _logger.warning("a refused generation is closed", extra={"fields": {"disk": self.disk}})
                    return never_opened(None if replica is None else replica.state)
            elif replica is None or not replica.usable or replica.state.applied.generation != generation:
                if self.trouble is not None:
                    raise self.trouble
                raise NotFound(f"cannot close generation {generation}: it was never opened here", disk=self.disk)
            try:
                await replica.record(GenerationClosed())
                reached("sink.generation.closed")
                await self._state_receipt(replica)
            except FenceLost:
                self._replica = None
                continue
            fields = {"replica": str(replica.state.applied), "torn_epoch": replica.state.torn_epoch}
            _logger.info("generation closed", extra={"fields": fields})

    def _is_refused(self, generation: int) -> bool:
        trouble = self.trouble
        return isinstance(trouble, GenerationRefused) and trouble.generation == generation

    def _already_closed(self, state: ReplicaState, generation: int) -> ClosedGeneration | None:
        if state.phase is Phase.CLOSED and state.applied.generation == generation:
            return closed_at(state)
        for known in self._parts.book.known(self.disk):
            # Its successor is open already: the question was answered before, and the successor's base is that answer.
            if (
                known.base is not None
                and known.base.generation == generation
                and generation < known.generation <= state.applied.generation
            ):
                return ClosedGeneration(known.base.epoch, base_of(known.base, known.base_hash))
        return None

    # -- telling ----------------------------------------------------------------------------------------------

    async def _state_receipt(self, replica: ReplicaBlob) -> None:
        lasting = None if isinstance(self.trouble, Retryable | GenerationRefused) else self.trouble
        stated = lasting or self._points.mismatch
        problem = None if stated is None else problem_of(stated)
        await self._receipts.state(replica, self._points.newest, problem)

    async def _note_trouble(self, error: BlockferryError) -> None:
        if self.trouble is None or str(self.trouble) != str(error):
            self._note_recovery()
            level = logging.WARNING if isinstance(error, Retryable) else logging.ERROR
            _logger.log(level, str(error), extra={"fields": {"disk": self.disk, "code": error.code}})
            self._parts.metrics.disk_problem.labels(self.disk, error.code).set(1)
        self.trouble = error
        if isinstance(error, Retryable):
            return  # it passes by itself, and the store that should hear of it is what fails
        try:
            await self._state_problem(error)
        except FenceLost:
            raise
        except BlockferryError as failure:
            _logger.warning(str(failure), extra={"fields": {"disk": self.disk, "code": failure.code}})

    async def _state_problem(self, error: BlockferryError) -> None:
        """In the receipt of the generation that cannot go on, so that its agent and the operator hear of it."""
        replica = self._replica
        if replica is not None and not replica.usable:
            # Not "no replica": what this writer knows of it is old, and whoever holds it says what is the case.
            raise FenceLost("cannot state a problem: the replica is held no longer", disk=self.disk)
        if isinstance(error, GenerationRefused):
            await self._receipts.refuse(error.generation, replica, problem_of(error))
            return
        if replica is not None and replica.state.phase in (Phase.SETTLED, Phase.APPLYING, Phase.POINT_DUE):
            await self._state_receipt(replica)
            return
        generation = max((known.generation for known in self._parts.book.known(self.disk)), default=None)
        if generation is None or (replica is not None and generation <= replica.state.applied.generation):
            return
        await self._receipts.refuse(generation, replica, problem_of(error))

    def _note_recovery(self) -> None:
        if self.trouble is not None:
            self._parts.metrics.disk_problem.remove(self.disk, self.trouble.code)
            _logger.info("disk goes on", extra={"fields": {"disk": self.disk}})
        self.trouble = None
