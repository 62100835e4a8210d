"""Cuts a point epoch of several disks at one instant: pre-copy rounds, freeze, harvest, read the last small round, thaw, ship (R9).

Called by ``item_session`` (recovery points) and ``cutover`` (the final epoch). While frozen nothing is written, logged or sent: the code
between entering and leaving ``frozen`` runs with the event loop deliberately blocked, into memory locked beforehand, and every session is
held still, so that no thread of the agent is in its journal. It is a point only if every file system stayed frozen until we thawed it
ourselves and no write was seen since the flip (which alone speaks for what cannot be frozen: an EFI partition's vfat); else what was
harvested is pending again and the rounds go on, up to ``MAX_ATTEMPTS``.

Where applications are brought to rest by hooks (``Rest``), everything that may have to wait for somebody else comes first: the gaps, room
for an epoch, the rounds, receipts. Only then are they brought to rest, for no longer than the budget; they go on as soon as the last
round has been read, and what was read is shipped after that.

A tracker that reads the disk to harvest is not asked under a freeze: it would last for the whole scan. Its points rest on hooks alone
that stopped the writers, or on a claim; the scan runs in the disk's executor and the event loop goes on.

The agent's limits hold for the rounds before, unless hooks or a claim stop the writers already: then the caller has them lifted. Nothing
waits for them from the freeze to the thaw: what is read then is read past the shipper.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from mobility_agent.change_tracker.interface import DoubtKind, Harvest
from mobility_agent.core.epoch_ledger import Epoch, EpochLedger
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.quiesce.file_systems import write_back
from mobility_agent.quiesce.interface import Freeze, Freezer, FreezeResult, Mount
from mobility_agent.task_groups import together
from replication.control_plane import POINT_NOT_MADE
from replication.dirty_bitmap import DirtyBitmap, GranuleRuns
from replication.epoch_manifest import ConsistentCut, EpochFlag
from replication.errors import BlockferryError
from replication.extents import Extent
from replication.failpoint import reached
from replication.identifiers import CutId, DiskId, ItemId

MAX_PRECOPY_ROUNDS: Final = 8
MAX_ATTEMPTS: Final = 5
PAGE_BYTES: Final = 4096
READ_SLICE_BYTES: Final = 2 * 1024 * 1024
"""Read at a time while frozen: as often is the freeze looked after."""
SCANS_AT_REST: Final = 2
"""Of a tracker that reads the disk to harvest: the point's, and another one if there was more than the last round may hold."""
OPENED_AGAIN: Final = "an epoch had to be opened again"
_NO_TIME_LEFT: Final = "the freeze budget was used up"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PointOutcome:
    """``epochs``: each disk's point epoch as it was sealed and put, if the point was made; else ``reason`` says why not.

    ``is_spent``: a disk's part may have been sealed under this cut although the point was not made. Another instant must not be cut
    under the same name: the sink would put parts of both together. ``code``, ``hint``: what the operator is told beside ``reason``.
    """

    cut: CutId
    epochs: Mapping[DiskId, Epoch]
    reason: str = ""
    frozen_s: float | None = None
    is_spent: bool = False
    code: str = POINT_NOT_MADE
    hint: str | None = None

    @property
    def made(self) -> bool:
        return bool(self.epochs)


@dataclass(slots=True)
class Rest:
    """How applications are brought to rest for one point, and for how long at most."""

    quiesced: Callable[[], AbstractAsyncContextManager[None]]
    """Runs the operator's pre hook on entering and the post hook on leaving."""
    budget_s: float
    """From the end of the pre hook to the beginning of the post hook. A scan has the time that scans take beside it."""
    was_begun: bool = False
    """The pre hook was run, or tried."""


class PointImage:
    """``ExtentSource`` over what was read while frozen: runs of granules copied into locked memory, one after the other."""

    def __init__(self, memory: memoryview, extents: Sequence[Extent]) -> None:
        self._starts = [extent.offset_bytes for extent in extents]
        self._extents = list(extents)
        self._views: list[memoryview] = []
        position = 0
        for extent in extents:
            self._views.append(memory[position : position + extent.length_bytes])
            position += -(-extent.length_bytes // PAGE_BYTES) * PAGE_BYTES

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

    def harvest_now(self) -> None:
        """Flip; ``bitmap`` is then all that may differ from the replica and is in no epoch yet."""
        self.harvest = self.session.parts.tracker.begin_harvest(self.bitmap)
        self.bitmap.mark_words(self.session.ledger.pending.words)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was read of one instant, and is in the journals; or ``reason``, why nothing was."""

    reason: str = ""
    rounds: list[_DiskRound] = field(default_factory=list)
    epochs: Sequence[Epoch | None] = ()
    frozen_s: float | None = None
    is_spent: bool = False


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
        self,
        freezer: Freezer,
        memory: memoryview,
        find_mounts: Callable[[Sequence[DiskId]], Sequence[Mount]],
        limits_lifted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """:param memory: locked in memory and page-aligned; bounds what the last round may hold.
        :param limits_lifted: for callers, to be entered while a workload stands still and waits (``Pace.lifted``).
        """
        self.limits_lifted = limits_lifted
        self._freezer = freezer
        self._memory = memory
        self._find_mounts = find_mounts

    async def cut(
        self,
        item: ItemId,
        sessions: Mapping[DiskId, DiskSession],
        cut: CutId,
        *,
        flags: EpochFlag,
        freeze_budget_s: float,
        quiesced: bool = False,
        rest: Rest | None = None,
    ) -> PointOutcome:
        """Hold every disk at its gap, then as ``cut_held``."""
        async with AsyncExitStack() as stack:
            for disk in sorted(sessions):
                await stack.enter_async_context(sessions[disk].gap)
            return await self.cut_held(
                item, sessions, cut, flags=flags, freeze_budget_s=freeze_budget_s, quiesced=quiesced, rest=rest
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
        rest: Rest | None = None,
    ) -> PointOutcome:
        """Cut a point; the caller holds every session's ``gap``. On return its epochs are sealed and put, or the outcome says why not.

        :param quiesced: the writers are stopped: the word of a tracker that cannot prove quiet is not asked.
        :param rest: brings the writers to rest for the last round, and limits how long that may last.
        :raises ResyncRequired: if tracking is lost. On cancel the epochs that were cut are shipped later, not as points.
            Whatever is raised, the cut may be spent.
        """
        if any(session.ledger.is_seeding for session in sessions.values()):
            return PointOutcome(cut, {}, "initial replication or resync is not complete")
        together_cut = ConsistentCut(cut, item, tuple(sorted(sessions)))
        if rest is None:
            taken = await self._take(sessions, together_cut, flags, freeze_budget_s, quiesced=quiesced)
        else:
            taken = await self._take_at_rest(sessions, together_cut, flags, freeze_budget_s, rest)
        if taken.reason:
            return PointOutcome(cut, {}, taken.reason, is_spent=taken.is_spent)
        sealed = await self._ship(taken.rounds, taken.epochs)
        if len(sealed) == len(taken.rounds):
            return PointOutcome(cut, sealed, frozen_s=taken.frozen_s)
        return PointOutcome(cut, {}, OPENED_AGAIN, is_spent=True)

    async def _take_at_rest(
        self,
        sessions: Mapping[DiskId, DiskSession],
        cut: ConsistentCut,
        flags: EpochFlag,
        freeze_budget_s: float,
        rest: Rest,
    ) -> _Taken:
        """As ``_take``, with the applications at rest: until everything is read, or for ``rest.budget_s``."""
        await self._precopy(sessions)
        for session in sessions.values():
            await session.ready_to_harvest()
        for session in sessions.values():
            session.require_alive()  # another one was waited for meanwhile
        budget_s = rest.budget_s + SCANS_AT_REST * scan_s(sessions.values())
        rest.was_begun = True
        async with rest.quiesced():
            with self.limits_lifted():
                try:
                    async with asyncio.timeout(budget_s) as budget:
                        return await self._take(sessions, cut, flags, freeze_budget_s, quiesced=True, at_rest=True)
                except TimeoutError:
                    if not budget.expired():
                        raise
                    reason = f"what was left to read and to ship at rest took longer than its budget of {budget_s:g} s"
                    return _Taken(reason, is_spent=True)

    async def _take(
        self,
        sessions: Mapping[DiskId, DiskSession],
        cut: ConsistentCut,
        flags: EpochFlag,
        freeze_budget_s: float,
        *,
        quiesced: bool,
        at_rest: bool = False,
    ) -> _Taken:
        """Read the last round and keep it in the journals, as often as it takes.

        :param at_rest: the rounds before were made while the applications still ran. Others follow only if too much is left.
        """
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            if not at_rest:
                await self._precopy(sessions)
            elif attempt:
                await self._ship_pending(sessions)
            for session in sessions.values():
                await session.ready_to_harvest()
            mounts = await asyncio.to_thread(self._find_mounts, sorted(sessions))
            await asyncio.to_thread(write_back, mounts)
            to_freeze = _to_freeze(mounts, sessions.values())
            rounds = [_DiskRound(session, session.scratch) for _, session in sorted(sessions.items())]
            async with AsyncExitStack() as still:
                for part in rounds:
                    await still.enter_async_context(part.session.held_still())
                reason, cut_time_ns, frozen_s = _not_now(rounds), 0, None
                if not reason and any(part.session.harvest_reads_disk for part in rounds):
                    reason, cut_time_ns = await self._scan_and_read(rounds, quiesced=quiesced)
                elif not reason:
                    reason, cut_time_ns, frozen_s = self._freeze_and_read(
                        rounds, to_freeze, freeze_budget_s, quiesced=quiesced
                    )
                epochs = [await self._keep(part, reason, flags, cut_time_ns, cut) for part in rounds]
            for session in sessions.values():
                if to_freeze and frozen_s is not None:
                    session.figures.freezes_s.append(frozen_s)
            if not reason:
                return _Taken("", rounds, epochs, frozen_s)
            _logger.debug("no point was made", extra={"fields": {"attempt": attempt + 1, "reason": reason}})
        return _Taken(reason)

    async def _ship_pending(self, sessions: Mapping[DiskId, DiskSession]) -> None:
        """Ordinary epochs of what is known to be left. Writers are at rest: there is nothing new to look for."""
        for _ in range(MAX_PRECOPY_ROUNDS):
            behind = [
                session
                for session in sessions.values()
                if session.ledger.pending_granules or session.ledger.open_epoch is not None
            ]
            if not behind:
                return
            await together(session.ready_to_ship() for session in behind)
            await together(session.ship_next(urgent=True) for session in behind)

    async def _precopy(self, sessions: Mapping[DiskId, DiskSession]) -> None:
        """Ordinary epochs until one round is small enough that the next, frozen one will be."""
        for _ in range(MAX_PRECOPY_ROUNDS):
            await together(session.ready_to_ship() for session in sessions.values())
            shipped = await together(session.ship_next(urgent=True) for session in sessions.values())
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
                part.harvest_now()
            reached("agent.point.frozen")
            reason = self._read(rounds, freeze.remaining_s) or _seen_writing(rounds, quiesced=quiesced)
            reached("agent.point.read")
        result = freeze.result
        if result is None:
            reason = reason or "the freeze has no result"
        elif reason in ("", _NO_TIME_LEFT):
            reason = result.problem or reason
        return reason or _in_doubt(rounds), cut_time_ns, 0.0 if result is None else result.duration_s

    async def _scan_and_read(self, rounds: list[_DiskRound], *, quiesced: bool) -> tuple[str, int]:
        """(why it is no point or "", cut time). The writers are stopped meanwhile; the event loop is not."""
        cut_time_ns = time.time_ns()
        for part in rounds:
            await part.session.in_executor_interruptibly(part.harvest_now)
        # In an executor that is waited for even when cancelled: the memory is the next point's too.
        reason = await rounds[0].session.in_executor_interruptibly(lambda: self._read(rounds, lambda: 1.0))
        return reason or _seen_writing(rounds, quiesced=quiesced) or _in_doubt(rounds), cut_time_ns

    def _read(self, rounds: list[_DiskRound], remaining_s: Callable[[], float]) -> str:
        used = 0
        for part in rounds:
            geometry = part.session.ledger.geometry
            room_bytes = self._memory.nbytes - used
            # As many as fit and one more: a bitmap full of single granules would take far more memory than the granules' room.
            part.runs = part.bitmap.runs(room_bytes // geometry.granularity_bytes + 1)
            needed = part.runs.byte_count(geometry) + PAGE_BYTES * len(part.runs)
            if needed > room_bytes:
                changed = part.bitmap.count() * geometry.granularity_bytes
                return f"{changed} bytes changed in the last round, more than the {self._memory.nbytes} reserved"
            part.image = PointImage(self._memory[used : used + needed], list(part.runs.extents(geometry)))
            used += -(-needed // PAGE_BYTES) * PAGE_BYTES
            for extent, view in part.image.views():
                for start in range(0, extent.length_bytes, READ_SLICE_BYTES):
                    if remaining_s() <= 0:
                        return _NO_TIME_LEFT
                    piece = view[start : start + READ_SLICE_BYTES]
                    part.session.parts.reader.read_into(piece, Extent(extent.offset_bytes + start, len(piece)))
        return ""

    async def _keep(
        self, part: _DiskRound, reason: str, flags: EpochFlag, cut_time_ns: int, cut: ConsistentCut
    ) -> Epoch | None:
        """Make the harvest durable: as a point epoch, or as pending if it is no point."""
        if part.harvest is None:
            return None

        def make_epoch(ledger: EpochLedger) -> Epoch | None:
            return None if reason or part.runs is None else ledger.add_point(part.runs, flags, cut_time_ns, cut)

        return await part.session.keep_round(part.harvest, make_epoch)

    async def _ship(self, rounds: list[_DiskRound], epochs: Sequence[Epoch | None]) -> dict[DiskId, Epoch]:
        """The epochs that are sealed and put as the point's, by disk."""
        to_ship = [
            (part.session, epoch, part.image)
            for part, epoch in zip(rounds, epochs, strict=True)
            if epoch is not None and part.image is not None
        ]
        sealed = await together(session.ship_epoch(epoch, image) for session, epoch, image in to_ship)
        return {
            session.parts.disk: epoch
            for (session, _, _), epoch in zip(to_ship, sealed, strict=True)
            if epoch is not None
        }


def scan_s(sessions: Iterable[DiskSession]) -> float:
    """How long it takes to look for changes where that means to read the disks, by the newest times; else 0."""
    return sum(session.harvest_s for session in sessions if session.harvest_reads_disk)


def _to_freeze(mounts: Sequence[Mount], sessions: Iterable[DiskSession]) -> list[Mount]:
    """What cannot be frozen is left out if the trackers say whether it writes meanwhile; else it is tried, and refused with its reason."""
    seen = all(session.parts.tracker.proves_quiet for session in sessions)
    return [mount for mount in mounts if mount.can_be_frozen or not seen]


def _not_now(rounds: Sequence[_DiskRound]) -> str:
    """Why no point can be cut now, or "": an epoch that is read again after the cut would bring later writes into it."""
    for part in rounds:
        part.session.require_alive()
    return OPENED_AGAIN if any(part.session.ledger.open_epoch is not None for part in rounds) else ""


def _seen_writing(rounds: Sequence[_DiskRound], *, quiesced: bool) -> str:
    """Why the last round is not of one instant, or "". A tracker that cannot prove quiet is excused if the writers are stopped."""
    trackers = [part.session.parts.tracker for part in rounds]
    if any(tracker.wrote_since_flip() for tracker in trackers if tracker.proves_quiet or not quiesced):
        return "a write was seen while the last round was read"
    return ""


def _in_doubt(rounds: Sequence[_DiskRound]) -> str:
    """What was re-dirtied is in the bitmap and has been read; only what is unknown makes it no point."""
    if any(part.harvest and part.harvest.doubt.kind is DoubtKind.RESYNC for part in rounds):
        return "tracking was in doubt"
    return ""
