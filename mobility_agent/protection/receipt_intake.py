"""Receipts: waiting for them, verifying them, and what a confirmed epoch changes (P1, R1). Nothing else drops an epoch or a digest.

Called by ``disk_session`` as a task of its own that waits for no one but the process server: whoever holds the disk's gap waits for
receipts, so receipts never wait for the gap. The digest table is updated before the ledger: a crash in between repeats an update that
changes nothing.

A store that knows less than this agent was once told is not waited for: ``core/sink_standing.py`` decides when it was put back.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from mobility_agent.core.epoch_ledger import Confirmation
from mobility_agent.core.sink_standing import IN_STEP, SinkStanding
from mobility_agent.protection.kept_ledger import KeptLedger
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_shipper import EpochShipper
from replication.control_plane import Problem
from replication.data_plane import MAX_RECEIPT_WAIT_S, SinkBehind
from replication.documents import WriterPublicKey
from replication.errors import PeerProtocolError, ResyncRequired
from replication.failpoint import reached
from replication.identifiers import CutId, EpochId, GenerationKey
from replication.store_documents import Receipt

RECEIPT_WAIT_S: Final = min(15.0, MAX_RECEIPT_WAIT_S)
_SAME_NEWS_PAUSE_S: Final = 0.5
"""A process server that answers at once with nothing new is not asked in a busy loop."""
_BEHIND_PAUSE_S: Final = 4.0
"""Before a store that has fallen behind is asked for again."""
_REMEMBERED: Final = 256


class ReceiptIntake:
    """One session's."""

    def __init__(
        self,
        kept: KeptLedger,
        table: DigestTable,
        shipper: EpochShipper,
        writer_key: WriterPublicKey,
        figures: DiskFigures,
    ) -> None:
        self._stated_problem: Problem | None = None
        """Why the replica writer cannot go on, as its newest receipt says."""
        self._standing: SinkStanding = IN_STEP
        self._seen: bytes | None = None
        self._kept = kept
        self._table = table
        self._shipper = shipper
        self._writer_key = writer_key
        self._figures = figures
        self._generation = GenerationKey(kept.ledger.disk, kept.ledger.generation)
        self._applied: OrderedDict[EpochId, bytes] = OrderedDict()
        self._applied_cuts: deque[CutId] = deque(maxlen=_REMEMBERED)

    @property
    def sink_problem(self) -> Problem | None:
        """Why the sink does not apply what it is given."""
        return self._standing.problem(self._kept.ledger.applied_epoch) or self._stated_problem

    # ---- what has been applied

    def applied_hash(self, number: EpochId) -> bytes | None:
        """The manifest that ``number`` was applied with, if that was seen in this session and not too long ago."""
        return self._applied.get(number)

    def has_applied_cut(self, cut: CutId) -> bool:
        return cut in self._applied_cuts or self._figures.newest_point_cut == cut

    # ---- taking receipts

    async def take_all(self) -> None:
        """Until cancelled. :raises ResyncRequired: if the generation is closed, the history is another, or the sink was reverted."""
        await self.look()
        while True:
            try:
                content = await self._newest(self._kept.ledger.applied_epoch, RECEIPT_WAIT_S, self._seen)
            except SinkBehind as behind:
                await self._note_behind(behind)
                continue
            if content is None:
                await self.look()
            elif not await self._take(content):
                await asyncio.sleep(_SAME_NEWS_PAUSE_S)

    async def _note_behind(self, behind: SinkBehind) -> None:
        """:raises SinkReverted: once it has been so for long enough; the session has failed with it."""
        now_s, applied = time.monotonic(), self._kept.ledger.applied_epoch
        self._standing = self._standing.found_behind(EpochId(behind.epoch or 0), now_s)
        if self._standing.is_reverted(now_s):
            reverted = self._standing.error(self._generation.disk, applied)
            self._kept.fail(reverted)
            raise reverted
        await asyncio.sleep(_BEHIND_PAUSE_S)

    async def look(self) -> None:
        """Take in the newest receipt, one of the same epoch included: the generation may be closed, a point may be complete."""
        try:
            content = await self._newest(EpochId(self._kept.ledger.applied_epoch - 1), 0.0)
        except SinkBehind:
            return  # whoever waits for what comes next hears of it, too, and decides
        if content is not None:
            await self._take(content)

    async def _newest(self, after_epoch: EpochId, wait_s: float, seen: bytes | None = None) -> bytes | None:
        """``seen``: the last one taken, so that another of the same epoch (a point complete, a problem, closed) is news at once."""
        return await self._shipper.persistently(
            lambda: self._shipper.uplink.receipt(self._generation, after_epoch, wait_s, seen)
        )

    async def _take(self, content: bytes) -> bool:
        """Whether it confirmed anything."""
        receipt = self._writer_key.open_signed(Receipt, content)
        if receipt.disk != self._generation.disk or receipt.generation != self._generation.generation:
            raise PeerProtocolError("cannot accept a receipt for another disk or generation", disk=receipt.disk)
        reached("agent.receipt.seen")
        is_late = receipt.epoch < self._kept.ledger.applied_epoch
        async with self._kept.lock:
            confirmed = await self._kept.change(functools.partial(self._confirm, receipt))
        if confirmed:
            self._figures.note_applied_cut(receipt.cut_time_ns)
        if not is_late:
            self._note(receipt, content)
        self._kept.tell()
        if receipt.closed:
            closed = ResyncRequired("cannot go on: the sink has closed this generation", disk=receipt.disk)
            self._kept.fail(closed)
            raise closed
        return bool(confirmed)

    def _note(self, receipt: Receipt, content: bytes) -> None:
        """What the newest receipt says besides what is applied."""
        if receipt.newest_point is not None:
            self._figures.newest_point_ns = receipt.newest_point.time_ns
            self._figures.newest_point_cut = receipt.newest_point.cut
        self._stated_problem, self._standing = receipt.problem, IN_STEP
        self._seen = content

    def _confirm(self, receipt: Receipt) -> Sequence[Confirmation]:
        """The table first; then it is known here that the epochs are applied; only then do they leave the ledger. So nobody who looks
        meanwhile finds an epoch neither on its way nor applied.
        """
        ledger, number, applied_hash = self._kept.ledger, EpochId(receipt.epoch), bytes.fromhex(receipt.manifest_hash)
        confirmed = ledger.confirmable(number, applied_hash)
        if not confirmed:
            return ()
        for confirmation in confirmed:
            self._record(confirmation)
        reached("agent.table.updated")
        ledger.confirm(number, applied_hash, receipt.cut_time_ns)
        self._kept.save()
        reached("agent.ledger.confirmed")
        self._kept.journal.drop_digests(ledger.applied_epoch)
        self._kept.wrote()
        return confirmed

    def _record(self, confirmation: Confirmation) -> None:
        epoch, applied = confirmation.epoch, confirmation.applied
        known = self._kept.journal.load_digests(epoch.number, applied)
        if known is None:
            self._table.forget(epoch.number, epoch.granules)
        else:
            self._table.apply(epoch.number, *known)
        self._kept.wrote(3)
        self._applied[epoch.number] = applied.hash
        while len(self._applied) > _REMEMBERED:
            self._applied.popitem(last=False)
        if confirmation.cut is not None:
            self._applied_cuts.append(confirmation.cut)
