"""Cuts a point epoch of several disks at one instant: pre-copy rounds, freeze, harvest, read the last small round, thaw, ship (R9).

Called by ``item_session`` (recovery points) and ``cutover`` (the final epoch). While frozen nothing is written, logged or sent: the code
between entering and leaving ``frozen`` runs with the event loop deliberately blocked, into memory locked beforehand. It is a point only if
every file system stayed frozen until we thawed it ourselves and no write was seen since the flip; else what was harvested is pending
again and the rounds go on, up to ``attempts``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from mobility_agent.change_tracker.interface import DoubtKind, Harvest
from mobility_agent.core.epoch_ledger import Epoch, EpochLedger
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.quiesce.file_systems import write_back
from mobility_agent.quiesce.interface import Freeze, Freezer, FreezeResult, Mount
from mobility_agent.task_groups import together
from replication.dirty_bitmap import DirtyBitmap, GranuleRuns
from replication.epoch_manifest import ConsistentCut, EpochFlag
from replication.errors import BlockferryError
from replication.extents import Extent
from replication.identifiers import CutId, DiskId, EpochId, ItemId

MAX_PRECOPY_ROUNDS: Final = 8
MAX_ATTEMPTS: Final = 5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PointOutcome:
    """``epochs`` names each disk's point epoch, shipped and sealed, if it was made; else ``reason`` says why not."""

    cut: CutId
    epochs: Mapping[DiskId, EpochId]
    reason: str = ""
    frozen_s: float | None = None

    @property
    def made(self) -> bool:
        return bool(self.epochs)


class PointImage:
    """``ExtentSource`` over what was read while frozen: runs of granules copied into locked memory, one after the other."""

    def __init__(self, memory: memoryview, extents: Sequence[Extent]) -> None:
        self._starts = [extent.offset_bytes for extent in extents]
        self._extents = list(extents)
        self._views: list[memoryview] = []
        position = 0
        for extent in extents:
            self._views.append(memory[position : position + extent.length_bytes])
            position += -(-extent.length_bytes // 4096) * 4096

    def views(self) -> Sequence[tuple[Extent, memoryview]]:
        return list(zip(self._extents, self._views, strict=True))

    def read_into(self, buffer: memoryview, extent: Extent) -> None:
        """:raises BlockferryError: for an extent that was not read: a defect."""
        index = bisect_right(self._starts, extent.offset_bytes) - 1
        if index < 0 or self._extents[index].end_bytes < extent.end_bytes:
            raise BlockferryError("cannot read outside of a point's image", offset_bytes=extent.offset_bytes)
        at = extent.offset_bytes - self._starts[index]
        buffer[:] = self._views[index][at : at + extent.length_bytes]


@dataclass(slots=True)
class _DiskRound:
    """One disk's part of an attempt."""

    session: DiskSession
    bitmap: DirtyBitmap
    harvest: Harvest | None = None
    runs: GranuleRuns | None = None
    image: PointImage | None = None


@dataclass(slots=True)
class _NoFreeze:
    """Disks without a mounted file system: only the tracker says whether they stand still."""

    deadline_s: float
    result: FreezeResult | None = None

    def remaining_s(self) -> float:
        return self.deadline_s - time.monotonic()


@contextlib.contextmanager
def _nothing_to_freeze(budget_s: float) -> Iterator[Freeze]:
    started_s = time.monotonic()
    freeze = _NoFreeze(started_s + budget_s)
    yield freeze
    freeze.result = FreezeResult(is_point=True, duration_s=time.monotonic() - started_s)


class PointCoordinator:
    """Cuts points of one item's disks, one at a time."""

    def __init__(
        self, freezer: Freezer, memory: memoryview, find_mounts: Callable[[Sequence[DiskId]], Sequence[Mount]]
    ) -> None:
        """:param memory: locked in memory and page-aligned; bounds what the last round may hold."""
        self._freezer = freezer
        self._memory = memory
        self._find_mounts = find_mounts
        self._bitmaps: dict[DiskId, DirtyBitmap] = {}

    async def cut(
        self,
        item: ItemId,
        sessions: Mapping[DiskId, DiskSession],
        cut: CutId,
        *,
        flags: EpochFlag,
        freeze_budget_s: float,
        quiesced: bool = False,
    ) -> PointOutcome:
        """Hold every disk at its gap, then as ``cut_held``."""
        async with AsyncExitStack() as stack:
            for disk in sorted(sessions):
                await stack.enter_async_context(sessions[disk].gap)
            return await self.cut_held(
                item, sessions, cut, flags=flags, freeze_budget_s=freeze_budget_s, quiesced=quiesced
            )

    async def cut_held(
        self,
        item: ItemId,
        sessions: Mapping[DiskId, DiskSession],
        cut: CutId,
        *,
        flags: EpochFlag,
        freeze_budget_s: float,
        quiesced: bool = False,
    ) -> PointOutcome:
        """Cut a point; the caller holds every session's ``gap``. On return its epochs are sealed, or the outcome says why not.

        :param quiesced: hooks have stopped the writers: the word of a tracker that cannot prove quiet is not asked.
        :raises ResyncRequired: if tracking is lost. On cancel the epochs that were cut are shipped later, not as points.
        """
        if any(session.ledger.is_seeding for session in sessions.values()):
            return PointOutcome(cut, {}, "initial replication or resync is not complete")
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            await self._precopy(sessions)
            for session in sessions.values():
                await session.ready_to_harvest()
            rounds = [_DiskRound(session, self._bitmap_of(session)) for _, session in sorted(sessions.items())]
            mounts = await asyncio.to_thread(self._find_mounts, sorted(sessions))
            await asyncio.to_thread(write_back, mounts)
            reason, cut_time_ns, frozen_s = self._freeze_and_read(rounds, mounts, freeze_budget_s, quiesced=quiesced)
            together = ConsistentCut(cut, item, tuple(sorted(sessions)))
            epochs = [await self._keep(part, reason, flags, cut_time_ns, together) for part in rounds]
            for session in sessions.values():
                if mounts:
                    session.figures.freezes_s.append(frozen_s)
            if not reason:
                await self._ship(rounds, epochs)
                made = {
                    part.session.parts.disk: epoch.number for part, epoch in zip(rounds, epochs, strict=True) if epoch
                }
                return PointOutcome(cut, made, frozen_s=frozen_s)
            _logger.info("no point was made", extra={"fields": {"attempt": attempt + 1, "reason": reason}})
        return PointOutcome(cut, {}, reason)

    def _bitmap_of(self, session: DiskSession) -> DirtyBitmap:
        bitmap = self._bitmaps.get(session.parts.disk)
        if bitmap is None or bitmap.granules != session.ledger.geometry.granules:
            bitmap = self._bitmaps[session.parts.disk] = DirtyBitmap(session.ledger.geometry.granules)
        return bitmap

    async def _precopy(self, sessions: Mapping[DiskId, DiskSession]) -> None:
        """Ordinary epochs until one round is small enough that the next, frozen one will be."""
        for _ in range(MAX_PRECOPY_ROUNDS):
            await together(session.wait_for_room() for session in sessions.values())
            shipped = await together(session.ship_next() for session in sessions.values())
            left = sum(session.ledger.pending_bytes() for session in sessions.values())
            if left == 0 and sum(shipped) <= self._memory.nbytes // 4:
                return

    def _freeze_and_read(
        self, rounds: list[_DiskRound], mounts: Sequence[Mount], budget_s: float, *, quiesced: bool
    ) -> tuple[str, int, float]:
        """(why it is no point or "", cut time, seconds frozen). Blocks the event loop on purpose: see the module's docstring."""
        reason = ""
        with self._freezer.frozen(mounts, budget_s) if mounts else _nothing_to_freeze(budget_s) as freeze:
            cut_time_ns = time.time_ns()
            for part in rounds:
                part.harvest = part.session.parts.tracker.begin_harvest(part.bitmap)
                part.bitmap.mark_words(part.session.ledger.pending.words)
            reason = self._read(rounds, freeze.remaining_s)
            if not reason and not quiesced and any(part.session.parts.tracker.wrote_since_flip() for part in rounds):
                reason = "a write was seen while the last round was read"
        result = freeze.result
        if not reason and (result is None or not result.is_point):
            reason = "the freeze has no result" if result is None else result.problem
        # What was re-dirtied is in the bitmap and has been read; only what is unknown makes it no point.
        if not reason and any(part.harvest and part.harvest.doubt.kind is DoubtKind.RESYNC for part in rounds):
            reason = "tracking was in doubt"
        return reason, cut_time_ns, 0.0 if result is None else result.duration_s

    def _read(self, rounds: list[_DiskRound], remaining_s: Callable[[], float]) -> str:
        used = 0
        for part in rounds:
            geometry = part.session.ledger.geometry
            part.runs = part.bitmap.runs()
            needed = part.runs.byte_count(geometry)
            padded = needed + 4096 * len(part.runs)
            if used + padded > self._memory.nbytes:
                return f"{needed} bytes changed in the last round, more than the {self._memory.nbytes} reserved"
            part.image = PointImage(self._memory[used : used + padded], list(part.runs.extents(geometry)))
            used += -(-padded // 4096) * 4096
            for extent, view in part.image.views():
                if remaining_s() <= 0:
                    return "the freeze budget was used up"
                part.session.parts.reader.read_into(view, extent)
        return ""

    async def _keep(
        self, part: _DiskRound, reason: str, flags: EpochFlag, cut_time_ns: int, cut: ConsistentCut
    ) -> Epoch | None:
        """Make the harvest durable: as a point epoch, or as pending if it is no point."""
        if part.harvest is None:
            return None
        await part.session.absorb(part.harvest)

        def change(ledger: EpochLedger) -> Epoch | None:
            return None if reason or part.runs is None else ledger.add_point(part.runs, flags, cut_time_ns, cut)

        return await part.session.save_point(change)

    async def _ship(self, rounds: list[_DiskRound], epochs: Sequence[Epoch | None]) -> None:
        await together(
            part.session.ship_epoch(epoch, part.image)
            for part, epoch in zip(rounds, epochs, strict=True)
            if epoch is not None and part.image is not None
        )
