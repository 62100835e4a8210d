"""One protected disk while it replicates: cuts epochs and ships them; its parts take receipts and deliver manifests.

Built by ``disk_supervisor`` once disk, tracker, generation and journal are in hand; ends by raising (``ResyncRequired`` and other
errors) or by being cancelled, and leaves a state from which the next session goes on. ``point_coordinator`` and ``cutover`` hold it
at a gap between two epochs (``gap``) to cut several disks together; receipts and manifests go on meanwhile.

Every change of the ledger is durable before it is acted on (``kept_ledger``); every blocking call goes through the disk's own executor.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind, ExtentSource, Harvest
from mobility_agent.core.epoch_ledger import Epoch, EpochLedger, EpochState
from mobility_agent.core.epoch_sizes import seeding_epoch_bytes
from mobility_agent.core.own_writes import EchoRule, StateWrites
from mobility_agent.interruption import Interruption
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.kept_ledger import KeptLedger
from mobility_agent.protection.manifest_delivery import ManifestDelivery
from mobility_agent.protection.receipt_intake import ReceiptIntake
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_reader import EpochReader
from mobility_agent.shipping.epoch_shipper import EpochShipper, ShippedAttempt
from mobility_agent.task_groups import together
from replication.control_plane import Problem
from replication.dirty_bitmap import DirtyBitmap
from replication.documents import WriterPublicKey
from replication.epoch_manifest import EpochManifest, encode_manifest
from replication.errors import BlockferryError, KeyConflict, ResyncRequired
from replication.failpoint import reached
from replication.identifiers import AttemptNumber, CutId, DiskId, EpochId, EpochKey

SCAN_KIND: Final = "scan"
"""The tracker whose harvest reads the disk."""
RESEND_MANIFESTS_AFTER_S: Final = 15.0
"""Without a confirmation for this long, sealed manifests are put again: a process server that lost its spool then says so."""


ResultT = TypeVar("ResultT")


class PointLost(BlockferryError):
    """A sealed point had to be read again: it is no point any more."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How much may be on its way. Defaults in ``config.ShippingSettings``."""

    epoch_bytes: int
    unconfirmed_epochs: int
    epoch_interval_s: float
    scan_interval_s: float
    """The epoch interval of a tracker whose harvest reads the disk."""


@dataclass(frozen=True, slots=True)
class DiskParts:
    """What a session works with; owned and closed by ``disk_supervisor``."""

    disk: DiskId
    reader: DiskReader
    tracker: ChangeTracker
    journal: EpochJournal
    table: DigestTable
    ledger: EpochLedger
    executor: Executor
    manifest_key: bytes
    writer_key: WriterPublicKey
    figures: DiskFigures
    note_doubt: Callable[[str], None]
    """Persist the duty to resynchronize; blocks, called in the executor before the tracker forgets its doubt."""
    state_writes: StateWrites
    echo: EchoRule | None = None
    """Set if the disk holds the agent's own state (R10)."""
    interruption: Interruption = field(default_factory=Interruption)
    """Ends the tracker's long calls when nobody waits for them any more."""


class DiskSession:
    """``run`` until cancelled or failed."""

    def __init__(
        self,
        parts: DiskParts,
        shipper: EpochShipper,
        limits: SessionLimits,
        seeding_slots: asyncio.Semaphore,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """:param seeding_slots: bounds how many disks of the machine are in initial replication or resync at once.
        :param on_change: called whenever something may have become of the ledger, or the session fails.
        """
        self.parts = parts
        self.ledger = parts.ledger
        self.figures = parts.figures
        self.limits = limits
        self.gap = asyncio.Lock()
        """Held while an epoch is cut and shipped; who holds it cuts the next one."""
        self.doubt: str | None = None
        self.harvest_reads_disk = parts.tracker.kind == SCAN_KIND
        self.harvest_s = 0.0
        """How long the newest harvest took: of a tracker that reads the disk, its scan."""
        self.scratch = DirtyBitmap(self.ledger.geometry.granules)
        """For harvests: of who holds the ledger's lock."""
        self._shipper = shipper
        self._seeding_slots = seeding_slots
        self._kept = KeptLedger(parts.ledger, parts.journal, parts.executor, parts.state_writes)
        self._receipts = ReceiptIntake(self._kept, parts.table, shipper, parts.writer_key, parts.figures)
        self._manifests = ManifestDelivery(self._kept, shipper, parts.manifest_key, self._receipts.look)
        self._last_harvest_s = float("-inf")
        self._kept.on_tell = on_change
        self._begun: tuple[EpochId, AttemptNumber] | None = None
        """The newest attempt whose reading was begun."""
        self.figures.note_applied_cut(self.ledger.applied_cut_time_ns)

    # ---- running

    async def run(self) -> None:
        """Replicate until cancelled.

        :raises ResyncRequired: if history or tracking is lost; the duty is persisted.
        :raises BlockferryError: for what no retry mends. :raises OSError: if the state directory cannot be written.
        """
        try:
            await self._resume()
            await together(
                [self._ship_forever(), self._receipts.take_all(), self._resend_manifests(), self._until_failed()]
            )
        finally:
            self._kept.end()

    @property
    def sink_problem(self) -> Problem | None:
        return self._receipts.sink_problem

    async def _until_failed(self) -> None:
        """What fails in somebody else's hands (a point's, say) ends the session all the same."""
        await self._kept.until(lambda: False)

    async def _resume(self) -> None:
        """Begin a new attempt of what was being shipped (R4)."""
        async with self._kept.lock:
            interrupted = self.ledger.open_epoch
            if interrupted is not None:
                await self._kept.change(functools.partial(self._begin_attempt, interrupted.number))

    def _begin_attempt(self, number: EpochId) -> Epoch:
        epoch = self.ledger.begin_attempt(number)
        self._kept.save()
        reached("agent.attempt.persisted")
        return epoch

    async def _ship_forever(self) -> None:
        await self._manifests.put_all()
        if self.ledger.seed_cursor is not None:
            async with self._seeding_slots:
                while self.ledger.seed_cursor is not None:
                    await self._ship_in_turn()
        while True:
            await self._ship_in_turn()

    async def _ship_in_turn(self) -> None:
        await self._wait_for_turn()
        async with self.gap:
            await self.ship_next()

    async def _wait_for_turn(self) -> None:
        """Until there is room and, if nothing is known to be pending, the epoch interval is over."""
        await self.ready_to_ship()
        if self.ledger.open_epoch is None and not self.ledger.pending_granules:
            limits = self.limits
            interval_s = limits.scan_interval_s if self.harvest_reads_disk else limits.epoch_interval_s
            wait_s = self._last_harvest_s + interval_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)

    async def _resend_manifests(self) -> None:
        while True:
            applied = self.ledger.applied_epoch
            await asyncio.sleep(RESEND_MANIFESTS_AFTER_S)
            if self.ledger.applied_epoch == applied:
                await self._manifests.put_all(again=True)

    async def ready_to_ship(self) -> None:
        """Until ``ship_next`` may be called: there is room for another epoch (one that has to be shipped again has its place already),
        and the tracker may be asked if it will be.
        """
        await self._kept.until(
            lambda: self.ledger.open_epoch is not None or len(self.ledger.epochs) <= self.limits.unconfirmed_epochs
        )
        if self.ledger.open_epoch is None and not self.ledger.pending_granules:
            await self.ready_to_harvest()

    async def ready_to_harvest(self) -> None:
        """A scan compares with confirmed digests only: a granule on its way that has its confirmed content again would not be found. So
        it waits until nothing is on its way, or until something has to be shipped again first.
        """
        if self.harvest_reads_disk:
            await self._kept.until(lambda: not self.ledger.epochs or self.ledger.open_epoch is not None)

    @property
    def has_ended(self) -> bool:
        """It failed or is over: what it worked with is closed, or will be."""
        return self._kept.failure is not None

    def require_alive(self) -> None:
        """:raises: what the session failed with."""
        self._kept.require_alive()

    async def ship_next(self, *, urgent: bool = False) -> int:
        """Ship one ordinary epoch if anything changed; the caller holds ``gap``. Returns the bytes its granules cover.

        :param urgent: even if what changed may be the agent's own doing.
        """
        await self._manifests.put_all()
        epoch = await self._reopened_epoch() or await self._cut_ordinary(urgent=urgent)
        if epoch is None:
            return 0
        await self.ship_epoch(epoch, self.parts.reader)
        return epoch.granules.byte_count(self.ledger.geometry)

    async def _reopened_epoch(self) -> Epoch | None:
        """The first epoch that is still open. What was begun is never continued: a new attempt is read (R4), and a point whose image
        is gone is no point any more.
        """
        async with self._kept.lock:
            epoch = self.ledger.open_epoch
            if epoch is not None and (epoch.cut is not None or (epoch.number, epoch.attempt) == self._begun):
                epoch = await self._kept.change(functools.partial(self._begin_attempt, epoch.number))
            return epoch

    # ---- cutting

    async def _cut_ordinary(self, *, urgent: bool) -> Epoch | None:
        """Harvest, make it durable, let the tracker forget it (R2), and open an epoch over (a part of) what is pending."""
        async with self._kept.lock:
            self.parts.interruption.renew()
            return await self._kept.change(
                functools.partial(self._harvest_and_cut, urgent=urgent), self.parts.interruption.interrupt
            )

    def _harvest_and_cut(self, *, urgent: bool) -> Epoch | None:
        ledger, cut_time_ns = self.ledger, time.time_ns()
        if ledger.open_epoch is not None:
            return None  # opened again this very moment: it goes first
        # A scan is put off if an epoch was cut (by a point, say) since its turn was found to have come: see ``ready_to_harvest``.
        is_harvested = not (self.harvest_reads_disk and (ledger.pending_granules or ledger.epochs))
        if is_harvested:
            self._require_size()
            self._last_harvest_s = time.monotonic()
            if self.parts.echo is not None:
                self.parts.echo.before_flip()
            harvest = self.parts.tracker.begin_harvest(self.scratch)
            self.harvest_s = time.monotonic() - self._last_harvest_s
            reached("agent.harvest.flipped")
            if not urgent and self._is_echo(harvest):
                return None  # not committed: the tracker keeps it
            self._absorb(harvest)
        epoch_bytes = min(self.limits.epoch_bytes, self._shipper.pace.largest_epoch_bytes or self.limits.epoch_bytes)
        if ledger.seed_cursor is not None:
            epoch_bytes = seeding_epoch_bytes(ledger.pending_bytes(), epoch_bytes)
        limit = max(1, epoch_bytes // ledger.geometry.granularity_bytes)
        epoch = ledger.cut(limit_granules=limit, harvest_time_ns=cut_time_ns if is_harvested else None)
        if epoch is not None:
            self._kept.save()
        if is_harvested:
            self._commit()
        if epoch is None and ledger.is_clean:
            self.figures.note_applied_cut(cut_time_ns)
        return epoch

    def _is_echo(self, harvest: Harvest) -> bool:
        echo = self.parts.echo
        return (
            echo is not None
            and harvest.doubt.kind is DoubtKind.NONE
            and not self.ledger.pending_granules
            and echo.is_echo(harvest.bitmap.count(), time.monotonic())
        )

    def _require_size(self) -> None:
        """:raises ResyncRequired: if the disk was resized; only the earlier size is tracked."""
        size_bytes, known_bytes = self.parts.reader.current_size_bytes(), self.ledger.geometry.size_bytes
        if size_bytes != known_bytes:
            raise ResyncRequired(
                f"cannot go on: the disk was resized from {known_bytes} to {size_bytes} bytes", disk=self.parts.disk
            )

    def _absorb(self, harvest: Harvest) -> None:
        """Merge a harvest into what is pending, in memory; it is saved before it is committed.

        :raises ResyncRequired: if what was lost is unknown; the duty to compare everything is durable, then committed.
        """
        if harvest.doubt.kind is DoubtKind.RESYNC:
            self.parts.note_doubt(harvest.doubt.reason)
            # Under a new serial: a copy of the agent's state from before knows nothing of the duty, and must show that it is older.
            self._kept.save()
            self.parts.tracker.commit_harvest(self.ledger.serial)
            raise ResyncRequired(f"cannot vouch for tracking: {harvest.doubt.reason}", disk=self.parts.disk)
        self.doubt = harvest.doubt.reason or None
        changed = harvest.bitmap.count()
        self.figures.changed_bytes += changed * self.ledger.geometry.granularity_bytes
        if changed:
            self.ledger.absorb(harvest.bitmap)

    def _commit(self) -> None:
        """What was harvested is durable (or there was nothing): the tracker may forget it, and notes under which serial of the journal."""
        reached("agent.harvest.journalled")
        self.parts.tracker.commit_harvest(self.ledger.serial)
        if self.parts.echo is not None:
            self.parts.echo.committed()

    @asynccontextmanager
    async def held_still(self) -> AsyncIterator[None]:
        """Neither journal nor table nor tracker is touched by anybody else inside: the executor rests. The caller holds ``gap``."""
        async with self._kept.lock:
            self.require_alive()
            yield

    async def keep_round(self, harvest: Harvest, make_epoch: Callable[[EpochLedger], Epoch | None]) -> Epoch | None:
        """Change the ledger after a freeze, make it durable, and only then let the tracker forget the harvest (R2).

        The caller holds the session still.
        """

        def keep() -> Epoch | None:
            self._absorb(harvest)
            epoch = make_epoch(self.ledger)
            self._kept.save()
            self._commit()
            return epoch

        return await self._kept.change(keep)

    async def in_executor_interruptibly(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a long call of tracker or reader, to its end even if cancelled; the caller holds the session still."""
        self.require_alive()
        self.parts.interruption.renew()
        return await self._kept.in_executor(function, self.parts.interruption.interrupt)

    # ---- shipping

    async def ship_epoch(self, epoch: Epoch, source: ExtentSource) -> Epoch | None:
        """Ship the present attempt of ``epoch``, seal it, and put its manifest; the caller holds ``gap``.

        ``source`` must be read after the epoch's cut. Returns the sealed epoch if it is durable at the process server; None if a receipt
        or another manifest decided meanwhile, or it had to be opened again: what is left to do is in the ledger.
        """
        key = EpochKey(self.parts.disk, self.ledger.generation, epoch.number)
        self._begun = (epoch.number, epoch.attempt)
        not_to_skip = self.ledger.granules_not_to_skip(epoch.number)
        reader = await self._kept.in_executor(
            lambda: EpochReader(source, epoch.granules, self.parts.table, not_to_skip, self.require_alive)
        )
        try:
            shipped = await self._shipper.ship(key, epoch.attempt, reader, paced=source is self.parts.reader)
        except (ResyncRequired, KeyConflict) as error:
            self._kept.fail(error)
            raise
        reached("agent.epoch.shipped")
        async with self._kept.lock:
            sealed = await self._kept.change(lambda: self._seal(key, epoch, shipped))
        if sealed is None:
            return None
        self.figures.epochs_sealed += 1
        return sealed if await self._manifests.put(sealed) else None

    def _seal(self, key: EpochKey, epoch: Epoch, shipped: ShippedAttempt) -> Epoch | None:
        present = self.ledger.find(epoch.number)
        if present is None or present.state is not EpochState.OPEN or present.attempt != epoch.attempt:
            return None
        manifest = EpochManifest(
            key=key,
            attempt=present.attempt,
            flags=present.flags,
            cut_time_ns=present.cut_time_ns,
            previous_hash=self.ledger.chain_hash(present.number),
            segments=shipped.segments,
            logical_bytes=shipped.logical_bytes,
            cut=present.cut,
        )
        sealed = self.ledger.seal(present.number, encode_manifest(manifest, self.parts.manifest_key))
        if sealed.sealed is not None:
            self.parts.journal.save_digests(key.epoch, sealed.sealed, shipped.indices, shipped.digests)
        reached("agent.digests.written")
        self._kept.save()
        self._kept.wrote()
        reached("agent.manifest.fixed")
        return sealed

    async def wait_seeded(self) -> None:
        """Until initial replication or resync is applied. :raises: what the session fails with meanwhile."""
        await self._kept.until(lambda: not self.ledger.is_seeding)

    # ---- what became of a sealed epoch

    async def wait_applied(self, point: Epoch) -> None:
        """Until the sink has applied ``point``, a sealed epoch, as it was sealed.

        :raises PointLost: if it had to be opened again. :raises BlockferryError: if the session fails meanwhile.
        """
        await self._kept.until(lambda: self._applied_hash(point) is not None or not self._is_sealed_as(point))
        if point.sealed is None or self._applied_hash(point) != point.sealed.hash:
            raise PointLost(
                "cannot wait for a point: it had to be read again", disk=self.parts.disk, epoch=point.number
            )

    def _applied_hash(self, point: Epoch) -> bytes | None:
        return self._receipts.applied_hash(point.number)

    def _is_sealed_as(self, point: Epoch) -> bool:
        present = self.ledger.find(point.number)
        return present is not None and present.sealed is not None and present.sealed == point.sealed

    def holds_cut(self, cut: CutId) -> bool:
        """Whether this disk's part of ``cut`` is sealed and on its way, or applied."""
        on_its_way = any(
            epoch.state is EpochState.SEALED and epoch.cut is not None and epoch.cut.cut == cut
            for epoch in self.ledger.epochs
        )
        return on_its_way or self.has_applied_cut(cut)

    @property
    def newest_point_cut(self) -> CutId | None:
        """The newest recovery point of this disk that is recorded at the sink, as the newest receipt says."""
        cut = self.figures.newest_point_cut
        return None if cut is None else CutId(cut)

    def has_applied_cut(self, cut: CutId) -> bool:
        """Whether the sink has applied this disk's part of ``cut``, as far as this session or the newest point tells."""
        return self._receipts.has_applied_cut(cut)
