"""A live disk: its medium, the kernel's block layer with the tracker's programs, and the log of every write with its times.

Used by the simulation. It plays blk-mq for the real ``EbpfTracker`` (``KernelCounters`` and ``KernelObjects`` in one, in the order of
``tests/harness/simulated_block_layer``): a request is issued (the program marks), lands sector by sector, completes (the program marks
again), is accounted for. A program run may be slow, so that it marks a half that was flipped meanwhile, or be lost. Time passes with every
look and every read, so requests move between any two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from mobility_agent.change_tracker.ebpf.layout import LAYOUT_VERSION, BitmapLayout, ControlRecord, CpuCounters
from replication.dirty_bitmap import Geometry
from replication.extents import Extent
from tests.simulation.virtual_loop import VirtualLoop

SECTOR_BYTES: Final = 512
_LOOK_S: Final = 20e-6
_READ_S: Final = 150e-6
BEFORE_ALL: Final = -1.0


@dataclass(slots=True, eq=False)
class SectorWrite:
    """One write's part in one sector. ``landed_s`` None: not on the medium (yet); ``completed_s`` None: not completed (yet)."""

    content: bytes
    issued_s: float
    landed_s: float | None = None
    completed_s: float | None = None
    is_unseen: bool = False
    """Its issue and its completion were both lost while the tracker's programs were attached: nothing marks it."""


@dataclass(slots=True, eq=False)
class Request:
    """A write in flight."""

    first_sector: int
    parts: list[SectorWrite]
    is_raw: bool
    group: int
    issue_was_lost: bool = False
    is_completing: bool = False
    is_over: bool = False

    @property
    def sectors(self) -> range:
        return range(self.first_sector, self.first_sector + len(self.parts))


@dataclass(slots=True)
class Tracking:
    """What the kernel holds for the tracker: gone when the machine goes down."""

    words: np.ndarray[tuple[int], np.dtype[np.uint64]]
    control: ControlRecord
    counters: CpuCounters = field(default_factory=CpuCounters)


@dataclass(slots=True, eq=False)
class _Run:
    """A program run that has read which half is active and has not marked it yet."""

    tracking: Tracking
    half: int
    request: Request
    is_completion: bool
    is_over: bool = False


@dataclass(slots=True)
class KernelHabits:
    """How likely a program run is slow or lost, and whether the programs mark at issue and at completion (R3).

    ``lingering``: share of requests that are in flight over several harvests; ``racing``: how likely one completes just
    when the tracker looks.
    """

    slow: float = 0.1
    lingering: float = 0.0
    racing: float = 0.0
    lost_issue: float = 0.0
    lost_completion: float = 0.0
    overflow: float = 0.0
    marks_issue: bool = True
    marks_completion: bool = True


class SourceDisk:
    """One disk of the protected machine."""

    def __init__(self, geometry: Geometry, loop: VirtualLoop, random: Random, habits: KernelHabits) -> None:
        self.geometry = geometry
        self.sectors = geometry.size_bytes // SECTOR_BYTES
        self.medium = bytearray(geometry.size_bytes)
        self.history: list[list[SectorWrite]] = [[] for _ in range(self.sectors)]
        self.in_flight: list[Request] = []
        self.tracking: Tracking | None = None
        self.habits = habits
        self.writes = 0
        self.overflows = 0
        """So many runs from now on cannot mark what they should; the kernel counts that."""
        self._loop = loop
        self._random = random
        self._runs: list[_Run] = []
        self._accounted = [0, 0]
        self._missed = 0

    def fill(self, content: bytes) -> None:
        """What is on the disk before anything begins."""
        self.medium[:] = content
        for sector in range(self.sectors):
            piece = content[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
            self.history[sector].append(SectorWrite(piece, BEFORE_ALL, BEFORE_ALL, BEFORE_ALL))

    # ---- writes

    def issue(self, first_sector: int, content: bytes, *, is_raw: bool) -> Request:
        now_s = self._loop.time()
        parts = [SectorWrite(content[at : at + SECTOR_BYTES], now_s) for at in range(0, len(content), SECTOR_BYTES)]
        group = 1 if not any(content) and self._random.random() < 0.5 else 0
        request = Request(first_sector, parts, is_raw, group)
        for sector, part in zip(request.sectors, parts, strict=True):
            self.history[sector].append(part)
        self.in_flight.append(request)
        self.writes += 1
        self._run_program(request, is_completion=False)
        return request

    def _run_program(self, request: Request, *, is_completion: bool, is_slow: bool = False) -> None:
        tracking, habits = self.tracking, self.habits
        chance = habits.lost_completion if is_completion else habits.lost_issue
        lost = tracking is None or (chance > 0 and self._random.random() < chance)
        if tracking is None or lost:
            if tracking is not None and self._random.random() < 0.5:
                self._missed += 1
            if tracking is not None:
                self._note_loss(request, is_completion=is_completion)
            self._after_run(request, is_completion=is_completion)
            return
        run = _Run(tracking, int(tracking.control.active_word), request, is_completion)
        if is_slow or self._random.random() < habits.slow:
            self._runs.append(run)
            self._loop.at(self._loop.time() + self._random.random() * 0.003, lambda: self._end_run(run))
        else:
            self._end_run(run)

    @staticmethod
    def _note_loss(request: Request, *, is_completion: bool) -> None:
        if not is_completion:
            request.issue_was_lost = True
        for part in request.parts:
            part.is_unseen = is_completion and request.issue_was_lost

    def _end_run(self, run: _Run) -> None:
        if run.is_over:
            return
        run.is_over = True
        if run in self._runs:
            self._runs.remove(run)
        request, tracking = run.request, run.tracking
        counters = tracking.counters
        counters.runs += 1
        is_marked = not self.overflows and self._random.random() >= self.habits.overflow
        self.overflows = 0
        if not is_marked:
            counters.overflow += 1
        counter = counters.completed if run.is_completion else counters.issued
        counter[request.group] += len(request.parts)
        if is_marked and (self.habits.marks_completion if run.is_completion else self.habits.marks_issue):
            extent = Extent(request.first_sector * SECTOR_BYTES, len(request.parts) * SECTOR_BYTES)
            first, count = self.geometry.granule_range(extent)
            for granule in range(first, first + count):
                tracking.words[run.half + granule // 64] |= np.uint64(1 << granule % 64)
        if not request.is_over:
            self._after_run(request, is_completion=run.is_completion)

    def _after_run(self, request: Request, *, is_completion: bool) -> None:
        if is_completion:
            self._accounted[request.group] += len(request.parts)
            self._finish(request)
            return
        now_s, random = self._loop.time(), self._random
        service_s = 0.0002 + random.random() ** 3 * (0.3 if random.random() < 0.2 else 0.01)
        if self.habits.lingering and random.random() < self.habits.lingering:
            service_s += random.random() * 4
        middle = random.randrange(len(request.parts) + 1)
        self._loop.at(now_s + service_s * 0.5, lambda: self._land(request, 0, middle))
        self._loop.at(now_s + service_s, lambda: self._land(request, middle, len(request.parts)))
        self._loop.at(now_s + service_s * 1.1, lambda: self._complete(request))

    def _land(self, request: Request, first: int, end: int) -> None:
        if request.is_over:
            return
        for index in range(first, end):
            part = request.parts[index]
            if part.landed_s is not None:
                continue
            part.landed_s = self._loop.time()
            at = (request.first_sector + index) * SECTOR_BYTES
            self.medium[at : at + SECTOR_BYTES] = part.content

    def _complete(self, request: Request, *, is_slow: bool = False) -> None:
        if not request.is_completing and not request.is_over:
            request.is_completing = True
            self._run_program(request, is_completion=True, is_slow=is_slow)

    def _race(self) -> None:
        """Some request completes at this very moment, and the program that marks it is slow."""
        if self.habits.racing and self.in_flight and self._random.random() < self.habits.racing:
            request = self._random.choice(self.in_flight)
            if all(run.request is not request for run in self._runs):
                self._land(request, 0, len(request.parts))
                self._complete(request, is_slow=True)

    def _finish(self, request: Request) -> None:
        request.is_over = True
        self.in_flight.remove(request)
        for part in request.parts:
            part.completed_s = self._loop.time()

    # ---- the machine

    def lose_power(self) -> None:
        """What has landed is there; what has not never will be. The kernel's tracking is gone."""
        for request in list(self.in_flight):
            request.is_over = True
            for sector, part in zip(request.sectors, request.parts, strict=True):
                if part.landed_s is None:
                    self.history[sector].remove(part)
                else:
                    part.completed_s = self._loop.time()
        self.in_flight.clear()
        for run in self._runs:
            run.is_over = True
        self._runs.clear()
        self.tracking = None

    def revert(self, content: bytes) -> None:
        """The medium is as it was once, all at once; the machine must be down."""
        now_s = self._loop.time()
        for sector in range(self.sectors):
            at = sector * SECTOR_BYTES
            piece = content[at : at + SECTOR_BYTES]
            if self.medium[at : at + SECTOR_BYTES] != piece:
                self.history[sector].append(SectorWrite(piece, now_s, now_s, now_s))
        self.medium[:] = content

    # ---- reading

    def read_into(self, buffer: memoryview, extent: Extent) -> None:
        """In halves of a granule: a write may land in between."""
        step = self.geometry.granularity_bytes // 2
        for at in range(0, extent.length_bytes, step):
            self._loop.spend(_READ_S)
            end = min(at + step, extent.length_bytes)
            buffer[at:end] = self.medium[extent.offset_bytes + at : extent.offset_bytes + end]

    # ---- KernelCounters and KernelObjects, as the tracker sees them

    def begin_tracking(self) -> None:
        layout = BitmapLayout(self.geometry)
        control = ControlRecord()
        control.layout_version, control.incarnation = LAYOUT_VERSION, 1
        control.size_bytes = self.geometry.size_bytes
        self.tracking = Tracking(np.zeros(layout.total_words, dtype=np.uint64), control)

    def _tracked(self) -> Tracking:
        if self.tracking is None:
            raise OSError("nothing is tracked")
        return self.tracking

    @property
    def words(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return self._tracked().words

    @property
    def control(self) -> ControlRecord:
        return self._tracked().control

    @property
    def descriptors(self) -> dict[str, int]:
        return {}

    def accounted_sectors(self) -> tuple[int, int]:
        self._loop.spend(_LOOK_S)
        self._race()
        return self._accounted[0], self._accounted[1]

    def writes_in_flight(self) -> int:
        self._loop.spend(_LOOK_S)
        running = {id(run.request) for run in self._runs}
        return sum(1 for request in self.in_flight if id(request) not in running)

    def statistics_on(self) -> bool:
        return True

    def switch_statistics(self, *, on: bool) -> None:
        """They are always on."""

    def size_bytes(self) -> int:
        return self.geometry.size_bytes

    def incarnation(self) -> int:
        return 1

    def totals(self) -> CpuCounters:
        self._loop.spend(_LOOK_S)
        return CpuCounters.from_buffer_copy(self._tracked().counters)

    def missed_runs(self) -> int:
        return self._missed

    def wait_for_programs(self) -> None:
        self._loop.spend(_LOOK_S)
        for run in list(self._runs):
            self._end_run(run)
        self._loop.spend(_LOOK_S)

    def close(self) -> None:
        """What is pinned stays."""
