"""One protected disk while it replicates: cuts epochs, ships them, takes receipts. Everything durable goes through its journal first.

Built by ``disk_supervisor`` once disk, tracker, generation and journal are in hand; ends by raising (``ResyncRequired`` and other
errors) or by being cancelled, and leaves a state from which the next session goes on. ``point_coordinator`` and ``cutover`` hold it
at a gap between two epochs (``gap``) to cut several disks together.

Ledger changes and their saving happen under one lock; every blocking call goes through the disk's own executor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind, ExtentSource, Harvest
from mobility_agent.core.epoch_ledger import Confirmation, Epoch, EpochLedger, EpochState
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_reader import EpochReader
from mobility_agent.shipping.epoch_shipper import EpochShipper, finished_in
from mobility_agent.task_groups import together
from replication.data_plane import MAX_RECEIPT_WAIT_S, ManifestSuperseded, SegmentsMissing
from replication.dirty_bitmap import DirtyBitmap
from replication.documents import WriterPublicKey
from replication.epoch_manifest import EpochFlag, EpochManifest, decode_manifest, encode_manifest, manifest_hash
from replication.errors import PeerProtocolError, ResyncRequired
from replication.identifiers import AttemptNumber, DiskId, EpochId, EpochKey, GenerationKey
from replication.store_documents import Receipt

SCAN_KIND: Final = "scan"
"""The tracker whose harvest reads the disk."""
RESEND_MANIFESTS_AFTER_S: Final = 15.0
"""Without a receipt for this long, sealed manifests are put again: a process server that lost its spool then says so."""

ResultT = TypeVar("ResultT")
_logger = logging.getLogger(__name__)


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


class DiskSession:
    """``run`` until cancelled or failed."""

    def __init__(
        self, parts: DiskParts, shipper: EpochShipper, limits: SessionLimits, seeding_slots: asyncio.Semaphore
    ) -> None:
        """:param seeding_slots: bounds how many disks of the machine are in initial replication or resync at once."""
        self.parts = parts
        self.ledger = parts.ledger
        self.figures = parts.figures
        self.limits = limits
        self.gap = asyncio.Lock()
        """Held while an epoch is cut and shipped; who holds it cuts the next one."""
        self.doubt: str | None = None
        self._shipper = shipper
        self._seeding_slots = seeding_slots
        self._ledger_lock = asyncio.Lock()
        self._ledger_changed = asyncio.Condition()
        self._scratch = DirtyBitmap(self.ledger.geometry.granules)
        self._harvest_reads_disk = parts.tracker.kind == SCAN_KIND
        self._generation = GenerationKey(parts.disk, self.ledger.generation)
        self._last_harvest_s = float("-inf")
        self._begun: tuple[EpochId, AttemptNumber] | None = None
        """The newest attempt whose reading was begun."""
        self._put: set[bytes] = set()
        """Sealed manifests that the process server has acknowledged to this session."""
        if self.ledger.applied_cut_time_ns:
            self.figures.newest_applied_cut_ns = self.ledger.applied_cut_time_ns

    # ---- running

    async def run(self) -> None:
        """Replicate until cancelled.

        :raises ResyncRequired: if history or tracking is lost; the duty is persisted.
        :raises BlockferryError: for what no retry mends.
        """
        await self._resume()
        await together([self._ship_forever(), self._take_receipts()])

    async def _resume(self) -> None:
        """Begin a new attempt of what was being shipped (R4) and put again what was sealed."""
        async with self._ledger_lock:
            interrupted = self.ledger.open_epoch
            if interrupted is not None:
                self.ledger.begin_attempt(interrupted.number)
                await self._save()
        await self._put_sealed_manifests()

    async def _ship_forever(self) -> None:
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
        await self.wait_for_room()
        if self.ledger.open_epoch is None and not self.ledger.pending.any():
            await self.ready_to_harvest()
            limits = self.limits
            interval_s = limits.scan_interval_s if self._harvest_reads_disk else limits.epoch_interval_s
            wait_s = self._last_harvest_s + interval_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)

    async def wait_for_room(self) -> None:
        """Until another epoch may be cut. One that has to be shipped again needs no room: it has its place already."""
        async with self._ledger_changed:
            await self._ledger_changed.wait_for(
                lambda: self.ledger.open_epoch is not None or len(self.ledger.epochs) <= self.limits.unconfirmed_epochs
            )

    async def ready_to_harvest(self) -> None:
        """A scan compares with confirmed digests only: what is on its way would be found again, so it waits until nothing is."""
        if self._harvest_reads_disk:
            async with self._ledger_changed:
                await self._ledger_changed.wait_for(lambda: not self.ledger.epochs)

    async def ship_next(self) -> int:
        """Ship one ordinary epoch if anything changed; the caller holds ``gap``. Returns the bytes its granules cover."""
        await self._put_sealed_manifests()
        epoch = await self._reopened_epoch() or await self.cut_ordinary()
        if epoch is None:
            return 0
        await self.ship_epoch(epoch, self.parts.reader)
        return epoch.granules.byte_count(self.ledger.geometry)

    async def _reopened_epoch(self) -> Epoch | None:
        """The first epoch that is still open. What was begun is never continued: a new attempt is read (R4), and a point whose image
        is gone is no point any more.
        """
        async with self._ledger_lock:
            epoch = self.ledger.open_epoch
            if epoch is not None and (epoch.cut is not None or (epoch.number, epoch.attempt) == self._begun):
                epoch = self.ledger.begin_attempt(epoch.number)
                await self._save()
            return epoch

    # ---- cutting

    async def cut_ordinary(self) -> Epoch | None:
        """Harvest, make it durable, let the tracker forget it (R2), and open an epoch over (a part of) what is pending."""
        async with self._ledger_lock:
            cut_time_ns = time.time_ns()
            pending = self.ledger.pending.any()
            harvest = None
            if not (self._harvest_reads_disk and pending):
                self._last_harvest_s = time.monotonic()
                harvest = await self._in_executor(lambda: self.parts.tracker.begin_harvest(self._scratch))
                await self.absorb(harvest)
            limit = max(1, self.limits.epoch_bytes // self.ledger.geometry.granularity_bytes)
            epoch = self.ledger.cut(limit_granules=limit, harvest_time_ns=cut_time_ns if harvest is not None else None)
            if epoch is None:
                if harvest is not None:
                    await self._in_executor(self.parts.tracker.commit_harvest)
                    if self.ledger.is_clean:
                        self._note_applied_cut(cut_time_ns)
                return None
            await self._save()
            if harvest is not None:
                await self._in_executor(self.parts.tracker.commit_harvest)
            return epoch

    async def absorb(self, harvest: Harvest) -> None:
        """Merge a harvest into what is pending, in memory; the caller holds the ledger lock or the gap and saves before committing.

        :raises ResyncRequired: if what was lost is unknown; the duty to compare everything is durable, then committed.
        """
        if harvest.doubt.kind is DoubtKind.RESYNC:
            await self._in_executor(lambda: self.parts.note_doubt(harvest.doubt.reason))
            await self._in_executor(self.parts.tracker.commit_harvest)
            raise ResyncRequired(f"cannot vouch for tracking: {harvest.doubt.reason}", disk=self.parts.disk)
        self.doubt = harvest.doubt.reason or None
        changed = harvest.bitmap.count() * self.ledger.geometry.granularity_bytes
        self.figures.changed_bytes += changed
        if changed:
            self.ledger.absorb(harvest.bitmap)

    async def save_point(self, make_epoch: Callable[[EpochLedger], Epoch | None]) -> Epoch | None:
        """Change the ledger after a freeze, make it durable, and only then let the tracker forget the harvest (R2)."""
        async with self._ledger_lock:
            epoch = make_epoch(self.ledger)
            await self._save()
            await self._in_executor(self.parts.tracker.commit_harvest)
            return epoch

    def _note_applied_cut(self, cut_time_ns: int) -> None:
        newest = self.figures.newest_applied_cut_ns
        if cut_time_ns > (newest or 0):
            self.figures.newest_applied_cut_ns = cut_time_ns

    # ---- shipping

    async def ship_epoch(self, epoch: Epoch, source: ExtentSource) -> None:
        """Ship the present attempt of ``epoch`` and seal it; the caller holds ``gap``. ``source`` must be read after its cut."""
        key = EpochKey(self.parts.disk, self.ledger.generation, epoch.number)
        self._begun = (epoch.number, epoch.attempt)
        reader = EpochReader(source, epoch.granules, self.parts.table, self.ledger.granules_not_to_skip(epoch.number))
        shipped = await self._shipper.ship(key, epoch.attempt, reader)
        async with self._ledger_lock:
            present = next((other for other in self.ledger.epochs if other.number == epoch.number), None)
            if present is None or present.state is not EpochState.OPEN or present.attempt != epoch.attempt:
                return  # a receipt or another manifest has decided meanwhile; what is left to do is in the ledger
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
            encoded = encode_manifest(manifest, self.parts.manifest_key)
            await self._in_executor(
                lambda: self.parts.journal.save_digests(key.epoch, present.attempt, shipped.indices, shipped.digests)
            )
            sealed = self.ledger.seal(present.number, encoded)
            await self._save()
        self.figures.epochs_sealed += 1
        await self._put_manifest(sealed)

    async def _put_sealed_manifests(self, *, again: bool = False) -> None:
        """Put the sealed manifests that this session has not put yet (one cut off between sealing and putting); with ``again`` all."""
        for epoch in list(self.ledger.sealed_epochs):
            if (again or epoch.manifest not in self._put) and not await self._put_manifest(epoch):
                return

    async def _put_manifest(self, epoch: Epoch) -> bool:
        """Put a sealed manifest until it is durable at the process server; False if the epoch had to be opened again."""
        key = EpochKey(self.parts.disk, self.ledger.generation, epoch.number)
        try:
            await self._shipper.persistently(lambda: self._shipper.uplink.put_manifest(key, epoch.manifest))
        except SegmentsMissing as error:
            _logger.warning(
                "the process server lost segments: a new attempt is read",
                extra={"fields": {"disk": self.parts.disk, "epoch": epoch.number, "error": str(error)}},
            )
            await self._open_again(epoch.number)
            return False
        except ManifestSuperseded:
            await self._adopt_decided_manifests()
            return False
        self._put = {other.manifest for other in self.ledger.sealed_epochs} & (self._put | {epoch.manifest})
        return True

    async def _open_again(self, number: EpochId) -> None:
        async with self._ledger_lock:
            if any(epoch.number == number for epoch in self.ledger.epochs):
                self.ledger.begin_attempt(number)
                await self._save()
        await self._tell_ledger_changed()

    async def _adopt_decided_manifests(self) -> None:
        """The first manifest decides (R5): take over those that are in the store, and open the first undecided epoch again."""
        for epoch in list(self.ledger.epochs):
            key = EpochKey(self.parts.disk, self.ledger.generation, epoch.number)
            encoded = await self._shipper.persistently(
                lambda k=key: self._shipper.uplink.stored_manifest(k)  # type: ignore[misc]
            )
            if encoded is None:
                await self._open_again(epoch.number)
                return
            manifest = decode_manifest(encoded, self.parts.manifest_key, expected=key)
            async with self._ledger_lock:
                if epoch.state is EpochState.SEALED and manifest_hash(epoch.manifest) == manifest_hash(encoded):
                    continue
                self.ledger.adopt(epoch.number, encoded, manifest.attempt, void=EpochFlag.VOID in manifest.flags)
                await self._save()

    # ---- receipts

    async def _take_receipts(self) -> None:
        quiet_since_s = time.monotonic()
        while True:
            content = await self._shipper.persistently(
                lambda: self._shipper.uplink.receipt(
                    self._generation, self.ledger.applied_epoch, min(MAX_RECEIPT_WAIT_S, RESEND_MANIFESTS_AFTER_S)
                )
            )
            if content is not None:
                await self._take_receipt(self.parts.writer_key.open_signed(Receipt, content))
                quiet_since_s = time.monotonic()
            elif not self.ledger.sealed_epochs:
                quiet_since_s = time.monotonic()
            elif time.monotonic() - quiet_since_s >= RESEND_MANIFESTS_AFTER_S:
                async with self.gap:
                    await self._put_sealed_manifests(again=True)
                quiet_since_s = time.monotonic()

    async def _take_receipt(self, receipt: Receipt) -> None:
        if receipt.disk != self.parts.disk or receipt.generation != self.ledger.generation:
            raise PeerProtocolError("cannot accept a receipt for another disk or generation", disk=self.parts.disk)
        async with self._ledger_lock:
            cut_time_ns = receipt.cut_time_ns
            confirmed = self.ledger.confirm(EpochId(receipt.epoch), bytes.fromhex(receipt.manifest_hash), cut_time_ns)
            if confirmed:
                await self._in_executor(lambda: self._record_confirmed(confirmed))
                await self._save()
                await self._in_executor(lambda: self.parts.journal.drop_digests(self.ledger.applied_epoch))
        if confirmed:
            self._note_applied_cut(cut_time_ns)
        if receipt.newest_point is not None:
            self.figures.newest_point_ns = receipt.newest_point.time_ns
            self.figures.newest_point_cut = receipt.newest_point.cut
        await self._tell_ledger_changed()
        if receipt.closed:
            raise ResyncRequired("cannot go on: the sink has closed this generation", disk=self.parts.disk)

    def _record_confirmed(self, confirmed: list[Confirmation]) -> None:
        """Digest table first, ledger after: a crash in between repeats an update that changes nothing."""
        for confirmation in confirmed:
            epoch = confirmation.epoch
            known = None
            if confirmation.digests_known and epoch.sealed_attempt is not None:
                known = self.parts.journal.load_digests(epoch.number, epoch.sealed_attempt)
            if known is None:
                self.parts.table.forget(epoch.number, epoch.granules)
            else:
                self.parts.table.apply(epoch.number, *known)

    async def wait_applied(self, number: EpochId) -> None:
        """Until a receipt says that ``number`` is applied."""
        async with self._ledger_changed:
            await self._ledger_changed.wait_for(lambda: self.ledger.applied_epoch >= number)

    # ---- helpers

    async def _tell_ledger_changed(self) -> None:
        async with self._ledger_changed:
            self._ledger_changed.notify_all()

    async def _save(self) -> None:
        await self._in_executor(lambda: self.parts.journal.save(self.ledger))

    async def _in_executor(self, function: Callable[[], ResultT]) -> ResultT:
        return await finished_in(self.parts.executor, function)
