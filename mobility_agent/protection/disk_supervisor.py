"""Keeps one disk's session running: opens disk, tracker, journal and digest table, gets a generation when one is due, tries again.

Run by ``item_session``, one task a disk. What ends a session decides what follows: ``ResyncRequired`` begins a new generation and compares
everything with the digest table; other errors are stated in ``problem`` and tried again with growing pauses. Tracking goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import ChangeTracker
from mobility_agent.config_server_client import ConfigServerClient
from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.protection.disk_session import SCAN_KIND, DiskParts, DiskSession, SessionLimits
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.protection_record import ProtectionRecord
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_shipper import EpochShipper, ShippingBuffers, Uplink, backoff_s, finished_in
from replication.control_plane import GenerationGrant, GenerationRequest, Problem
from replication.dirty_bitmap import Geometry
from replication.documents import WriterPublicKey
from replication.errors import BlockferryError, IntegrityError, Permanent, ResyncRequired
from replication.identifiers import DiskId, EpochId, GenerationId, ItemId

_DIGEST_TABLE_FILE: Final = "digests"

ResultT = TypeVar("ResultT")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiskEnvironment:
    """What every disk of the machine shares."""

    state_dir: Path
    granularity_bytes: int
    locate: Callable[[DiskId], Path]
    """Where a disk is now; raises NotFound. Blocks."""
    open_tracker: Callable[[DiskId, DiskReader, Geometry, DigestTable], ChangeTracker]
    """Blocks; raises Unsupported."""
    config_server: ConfigServerClient
    buffers: ShippingBuffers
    batches_in_flight: int
    limits: SessionLimits
    seeding_slots: asyncio.Semaphore


class DiskSupervisor:
    """One disk. ``session`` is the running one, None while there is none; ``problem`` says why."""

    def __init__(self, disk: DiskId, item: ItemId, environment: DiskEnvironment) -> None:
        self.disk = disk
        self.figures = DiskFigures()
        self.session: DiskSession | None = None
        self.problem: Problem | None = None
        self.tracker: ChangeTracker | None = None
        self._item = item
        self._environment = environment
        self._directory = environment.state_dir / "disks" / disk
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"disk-{disk[:8]}")
        self._record: ProtectionRecord | None = None

    async def run(self, uplink: Uplink) -> None:
        """Replicate until cancelled; never ends by itself."""
        failures = 0
        while True:
            try:
                with ExitStack() as opened:
                    parts = await self._prepare(opened)
                    self.problem = None
                    failures = 0
                    await self._run_session(parts, uplink)
            except ResyncRequired as error:
                _logger.warning("resync is required", extra={"fields": {"disk": self.disk, "reason": str(error)}})
                self._state_problem(error)
                reason = error.message
                await self._in_executor(functools.partial(self._require_generation, reason))
                failures += 1
            except (BlockferryError, OSError) as error:
                _logger.warning(
                    "replication of a disk stopped", extra={"fields": {"disk": self.disk, "error": str(error)}}
                )
                self._state_problem(error)
                failures += 1
            finally:
                self.session = None
                self.tracker = None
            await asyncio.sleep(backoff_s(failures, None))

    def _state_problem(self, error: Exception) -> None:
        if isinstance(error, BlockferryError):
            self.problem = Problem(code=error.code, message=str(error), hint=error.hint)
        else:
            self.problem = Problem(code="operating-system", message=str(error))

    async def order_resync(self, order: str, reason: str) -> bool:
        """Obey an operator's resync order once; True if the running session must be ended for it."""

        def persist() -> bool:
            record = self._opened_record()
            if record.state.obeyed_resync == order:
                return False
            record.require_generation(reason, order)
            return True

        return await self._in_executor(persist)

    @property
    def begins_from_nothing(self) -> bool:
        """Whether the present generation is the disk's first: it is seeded; later ones are resynchronized."""
        grant = None if self._record is None else self._record.state.grant
        return grant is not None and grant.base is None

    async def close(self) -> None:
        """After ``run`` was cancelled."""
        await asyncio.to_thread(self._executor.shutdown)

    async def _run_session(self, parts: DiskParts, uplink: Uplink) -> None:
        environment = self._environment
        shipper = EpochShipper(
            uplink,
            environment.buffers,
            self._executor,
            self.figures,
            window=environment.batches_in_flight,
            on_peer=self._note_peer,
        )
        self.session = DiskSession(parts, shipper, environment.limits, environment.seeding_slots)
        await self.session.run()

    def _note_peer(self, error: BlockferryError | None) -> None:
        if error is None:
            self.problem = None
        else:
            self._state_problem(error)

    # ---- preparation

    def _opened_record(self) -> ProtectionRecord:
        if self._record is None:
            self._record = ProtectionRecord(self._directory, self._item)
        return self._record

    def _require_generation(self, reason: str) -> None:
        self._opened_record().require_generation(reason)

    async def _prepare(self, opened: ExitStack) -> DiskParts:
        """Open everything; on return the ledger's generation is the granted one and the tracker's doubt is settled."""
        path = await self._in_executor(lambda: self._environment.locate(self.disk))
        reader = await self._in_executor(lambda: DiskReader(path))
        opened.callback(reader.close)
        geometry = Geometry(reader.size_bytes, self._environment.granularity_bytes)
        record = await self._in_executor(self._opened_record)
        journal = await self._in_executor(lambda: EpochJournal(self._directory))
        grant, is_new = await self._obtain_generation(record, geometry)
        if grant.size_bytes != geometry.size_bytes:
            raise Permanent(
                f"cannot replicate: the disk has {geometry.size_bytes} bytes, it was protected with {grant.size_bytes}",
                disk=self.disk,
                hint="stop replication of this server and protect it again",
            )
        table = await self._in_executor(
            lambda: DigestTable(
                self._directory / _DIGEST_TABLE_FILE, self.disk, geometry, bytes.fromhex(grant.digest_key)
            )
        )
        opened.callback(table.close)
        tracker = await self._in_executor(lambda: self._environment.open_tracker(self.disk, reader, geometry, table))
        opened.callback(tracker.close)
        self.tracker = tracker
        ledger = await self._in_executor(lambda: self._open_ledger(journal, table, grant, geometry, is_new=is_new))
        if is_new:
            await self._in_executor(lambda: record.fulfil(grant))
        await self._in_executor(lambda: self._settle_attach(tracker, ledger))
        return DiskParts(
            disk=self.disk,
            reader=reader,
            tracker=tracker,
            journal=journal,
            table=table,
            ledger=ledger,
            executor=self._executor,
            manifest_key=bytes.fromhex(grant.manifest_key),
            writer_key=WriterPublicKey.decode(grant.writer_public_key),
            figures=self.figures,
            note_doubt=self._require_generation,
        )

    async def _obtain_generation(self, record: ProtectionRecord, geometry: Geometry) -> tuple[GenerationGrant, bool]:
        state = record.state
        if state.request is None and state.grant is not None:
            return state.grant, False
        due = await self._in_executor(lambda: record.require_generation("initial replication"))
        request = GenerationRequest(
            request=due,
            reason=record.state.reason,
            size_bytes=geometry.size_bytes,
            granularity_bytes=geometry.granularity_bytes,
        )
        return await self._environment.config_server.new_generation(self.disk, request), True

    def _open_ledger(
        self, journal: EpochJournal, table: DigestTable, grant: GenerationGrant, geometry: Geometry, *, is_new: bool
    ) -> EpochLedger:
        """The saved ledger of the granted generation, or a fresh one that seeds, on top of what the digest table still knows."""
        try:
            saved = journal.load()
        except IntegrityError as error:
            if not is_new:
                raise ResyncRequired(error.message, disk=self.disk) from error
            saved = None
        if saved is not None and saved.generation == grant.generation:
            self._settle_interrupted_update(table, saved, journal)
            return saved
        if not is_new:
            raise ResyncRequired("cannot go on: the epoch journal is of another generation", disk=self.disk)
        self._rebase_table(table, saved, journal, grant)
        journal.discard()
        ledger = EpochLedger(self.disk, GenerationId(grant.generation), geometry)
        ledger.begin_seeding()
        journal.save(ledger)
        return ledger

    def _settle_interrupted_update(self, table: DigestTable, ledger: EpochLedger, journal: EpochJournal) -> None:
        """A crash in the middle of a digest table's update: repeat it, or forget what it touched (R1)."""
        interrupted = table.interrupted_epoch
        if interrupted is None:
            return
        epoch = next((other for other in ledger.epochs if other.number == interrupted), None)
        if epoch is None:
            table.forget_all()
            return
        known = None if epoch.sealed_attempt is None else journal.load_digests(epoch.number, epoch.sealed_attempt)
        if known is None:
            table.forget(interrupted, epoch.granules)
        else:
            table.apply(interrupted, *known)

    def _rebase_table(
        self, table: DigestTable, old: EpochLedger | None, journal: EpochJournal, grant: GenerationGrant
    ) -> None:
        """Keep what the table knows if it is exact for the new generation's base; forget what the sink applied beyond it (R1)."""
        base = grant.base
        if base is None or old is None or not table.generation == old.generation == base.generation:
            table.forget_all()
        else:
            self._settle_interrupted_update(table, old, journal)
            if base.epoch >= old.next_epoch or base.epoch < table.exact_epoch:
                table.forget_all()
            for epoch in old.epochs:
                if table.exact_epoch < epoch.number <= base.epoch:
                    table.forget(EpochId(epoch.number), epoch.granules)
        table.begin_generation(GenerationId(grant.generation))

    def _settle_attach(self, tracker: ChangeTracker, ledger: EpochLedger) -> None:
        """A tracker that could not continue knows nothing of what was written before: fine only if everything is still to be read."""
        nothing_read = ledger.seed_cursor == 0 and not ledger.epochs and ledger.applied_epoch == 0
        if nothing_read and tracker.kind != SCAN_KIND:
            tracker.begin_harvest()
            tracker.commit_harvest()
        elif not nothing_read and not tracker.continued:
            self._require_generation(tracker.status().reason or "the tracker was started anew")
            raise ResyncRequired("cannot go on: tracking was interrupted", disk=self.disk)

    async def _in_executor(self, function: Callable[[], ResultT]) -> ResultT:
        return await finished_in(self._executor, function)
