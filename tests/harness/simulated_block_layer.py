"""A block layer in memory under which the real ``EbpfTracker`` runs: requests in every state, program runs that are lost or slow.

Called by property tests. It plays the kernel: requests are issued, land, complete and are accounted for in the order of
blk-mq, one step at a time, and *between any two looks* that the tracker takes, more steps happen. A program run reads which
half is active, and marks it some steps later; ``wait_for_programs`` ends the runs that had begun.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random

import numpy as np

from mobility_agent.change_tracker.ebpf.layout import (
    LAYOUT_VERSION,
    BitmapLayout,
    ControlRecord,
    CpuCounters,
)
from replication.dirty_bitmap import Geometry

SECTORS_PER_GRANULE = 8


class Step(enum.IntEnum):
    """Where a request is. The names in blk-mq: started = trace_block_rq_issue is running, complete = MQ_RQ_COMPLETE."""

    QUEUED = 0
    ISSUE_RUNS = 1
    IN_FLIGHT = 2
    LANDED = 3
    COMPLETE = 4
    COMPLETION_RUNS = 5
    TRACED = 6
    ACCOUNTED = 7


@dataclass
class Request:
    granules: range
    group: int
    content: int
    step: Step = Step.QUEUED
    half_seen: int = -1
    """Which half the run that is under way has read as active; -1: the run is lost."""

    @property
    def sectors(self) -> int:
        return len(self.granules) * SECTORS_PER_GRANULE


@dataclass
class Losses:
    """Chances that a run is lost, and that the kernel says so (recursion_misses)."""

    issue: float = 0.0
    completion: float = 0.0
    admitted: float = 0.0


class SimulatedBlockLayer:
    """``KernelCounters`` and ``KernelObjects`` in one, as the tracker sees them."""

    def __init__(self, geometry: Geometry, random: Random, losses: Losses) -> None:
        self.geometry = geometry
        self.layout = BitmapLayout(geometry)
        self.random = random
        self.losses = losses
        self.medium = [0] * geometry.granules
        self.requests: list[Request] = []
        self.may_issue = True
        self._contents = 0
        self._accounted = [random.randrange(1000), random.randrange(1000)]
        self._missed = 0
        self._counters = CpuCounters()
        self.words = np.zeros(self.layout.total_words, dtype=np.uint64)
        self.control = ControlRecord()
        self.control.layout_version = LAYOUT_VERSION
        self.control.incarnation = 1
        self.control.size_bytes = geometry.size_bytes
        self.descriptors: dict[str, int] = {}

    # -- the kernel's side ------------------------------------------------------------------------------------------

    def tick(self, at_most: int = 3) -> None:
        for _ in range(self.random.randint(0, at_most)):
            if self.may_issue and len(self.requests) < 6 and self.random.random() < 0.5:
                self._queue_request()
            elif self.requests:
                self._advance(self.random.choice(self.requests))

    def finish_everything(self) -> None:
        self.may_issue = False
        while self.requests:
            self._advance(self.random.choice(self.requests))

    def _queue_request(self) -> None:
        first = self.random.randrange(self.geometry.granules)
        granules = range(first, min(first + self.random.randint(1, 3), self.geometry.granules))
        self._contents += 1
        self.requests.append(Request(granules, self.random.randint(0, 1), self._contents))

    def _advance(self, request: Request) -> None:
        match request.step:
            case Step.QUEUED:
                request.half_seen = self._begin_run(self.losses.issue)
            case Step.ISSUE_RUNS:
                self._end_run(request, self._counters.issued)
            case Step.IN_FLIGHT:
                if self.random.random() < 0.1:
                    self._requeue(request)
                    return
                for granule in request.granules:
                    self.medium[granule] = request.content
            case Step.LANDED:
                pass
            case Step.COMPLETE:
                request.half_seen = self._begin_run(self.losses.completion)
            case Step.COMPLETION_RUNS:
                self._end_run(request, self._counters.completed)
            case Step.TRACED:
                self._accounted[request.group] += request.sectors
            case Step.ACCOUNTED:
                self.requests.remove(request)
                return
        request.step = Step(request.step + 1)

    def _begin_run(self, chance_of_loss: float) -> int:
        if self.random.random() < chance_of_loss:
            if self.random.random() < self.losses.admitted:
                self._missed += 1
            return -1
        return int(self.control.active_word)

    def _end_run(self, request: Request, counter: object) -> None:
        if request.half_seen < 0:
            return
        self._counters.runs += 1
        counter[request.group] += request.sectors  # type: ignore[index]  # a ctypes array
        for granule in request.granules:
            self.words[request.half_seen + granule // 64] |= np.uint64(1 << granule % 64)
        request.half_seen = -1

    def _requeue(self, request: Request) -> None:
        self._counters.runs += 1
        self._counters.requeued[request.group] += request.sectors
        request.step = Step.QUEUED

    # -- KernelCounters -----------------------------------------------------------------------------------------------

    def accounted_sectors(self) -> tuple[int, int]:
        self.tick()
        seen = self._accounted[0], self._accounted[1]
        self.tick()
        return seen

    def writes_in_flight(self) -> int:
        self.tick()
        seen = sum(request.step in (Step.IN_FLIGHT, Step.LANDED) for request in self.requests)
        self.tick()
        return seen

    def statistics_on(self) -> bool:
        return True

    def size_bytes(self) -> int:
        return self.geometry.size_bytes

    def incarnation(self) -> int:
        return 1

    # -- KernelObjects ------------------------------------------------------------------------------------------------

    def totals(self) -> CpuCounters:
        self.tick()
        seen = CpuCounters.from_buffer_copy(self._counters)
        self.tick()
        return seen

    def missed_runs(self) -> int:
        return self._missed

    def wait_for_programs(self) -> None:
        self.tick(6)
        for request in list(self.requests):
            if request.step is Step.ISSUE_RUNS:
                self._advance(request)
            while Step.COMPLETION_RUNS <= request.step < Step.ACCOUNTED:  # one softirq
                self._advance(request)
        self.tick(6)

    def close(self) -> None:
        pass
