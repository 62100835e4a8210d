"""Which segment goes to the store next: fair between machines, at most N at a time for each, the oldest epoch first.

Called by the uploader's dispatcher. Fairness is by bytes: the machine that has been served least goes first (start-time fair queueing);
one that had nothing to send does not save up a claim meanwhile. Order within a machine: live attempts before superseded ones, then
the oldest accepted of its generations' heads; within a generation the oldest epoch. Time is an argument.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

from process_server.core.backlog import Backlog, GenerationBacklog, SegmentEntry
from replication.errors import InvalidInput
from replication.identifiers import BatchKey, GenerationKey, MachineId
from replication.sealed_segment import MAX_SEGMENT_BYTES
from replication.upload_limits import MAX_THREADS_PER_MACHINE

DEFAULT_THREADS_PER_MACHINE: Final = 4


THROUGH_WITHIN_S: Final = 60.0
FEWEST_AT_ONCE: Final = 2
"""One is on the line while the other's answer is on its way."""


def uploads_at_once(limit_bits_per_s: int | None, connections: int) -> int:
    """How many segments may share the limit so that each is through within a minute; at least two.

    More would be no faster, and a broken upload would have wasted more. Many enough of them would all run out of time, again and again.
    """
    if limit_bits_per_s is None:
        return connections
    in_time = int(limit_bits_per_s / 8 * THROUGH_WITHIN_S / MAX_SEGMENT_BYTES)
    return min(connections, max(FEWEST_AT_ONCE, in_time))


@dataclass(frozen=True, slots=True)
class UploadJob:
    """One segment on its way to the store."""

    key: BatchKey
    machine: MachineId
    entry: SegmentEntry


@dataclass(slots=True)
class _Machine:
    generations: set[GenerationKey] = field(default_factory=set)
    in_flight: int = 0
    served_bytes: int = 0


class UploadSchedule:
    """Picks jobs out of the backlog. Every job handed out by ``next_job`` comes back through ``done`` or ``failed``."""

    def __init__(self, backlog: Backlog, threads_per_machine: int = DEFAULT_THREADS_PER_MACHINE) -> None:
        self._backlog = backlog
        self._machines: dict[MachineId, _Machine] = {}
        self._parked: list[tuple[float, int, UploadJob]] = []
        self._serial = 0
        self.threads_per_machine = threads_per_machine

    @property
    def threads_per_machine(self) -> int:
        """UploadThreadsPerVM; may be changed at any time, what is under way goes on."""
        return self._threads

    @threads_per_machine.setter
    def threads_per_machine(self, threads: int) -> None:
        if not 1 <= threads <= MAX_THREADS_PER_MACHINE:
            raise InvalidInput(
                f"cannot upload with {threads} threads per machine", hint=f"1 to {MAX_THREADS_PER_MACHINE}"
            )
        self._threads = threads

    @property
    def in_flight(self) -> int:
        return sum(machine.in_flight for machine in self._machines.values())

    @property
    def machines(self) -> frozenset[MachineId]:
        """Those that take part: they have something waiting, under way or to be tried again, or had lately."""
        return frozenset(self._machines)

    def added(self, generation: GenerationBacklog) -> None:
        """A segment of ``generation`` waits: its machine takes part from now on, with no claim from the time it was idle."""
        machine = self._machines.get(generation.machine)
        if machine is None:
            machine = self._machines[generation.machine] = _Machine()
        if not machine.generations and not machine.in_flight:
            machine.served_bytes = max(machine.served_bytes, self._least_served())
        machine.generations.add(generation.key)

    def _least_served(self) -> int:
        active = (m.served_bytes for m in self._machines.values() if m.generations or m.in_flight)
        return min(active, default=0)

    def _head(self, machine: _Machine) -> tuple[BatchKey, SegmentEntry] | None:
        best: tuple[tuple[bool, int], BatchKey, SegmentEntry] | None = None
        for key in list(machine.generations):
            generation = self._backlog.generations.get(key)
            found = None if generation is None else generation.head()
            if found is None:
                machine.generations.discard(key)
                continue
            dead, batch, entry = found
            rank = (dead, entry.place.number)
            if best is None or rank < best[0]:
                best = (rank, batch, entry)
        return None if best is None else best[1:]

    def peek(self, now_s: float) -> UploadJob | None:
        """The job that ``next_job`` would hand out now; None if nothing waits or every machine is at its limit."""
        self.unpark(now_s)
        by_claim = sorted(self._machines.items(), key=lambda item: (item[1].served_bytes, item[0]))
        for name, machine in by_claim:
            if machine.in_flight >= self._threads:
                continue
            head = self._head(machine)
            if head is not None:
                return UploadJob(head[0], name, head[1])
        return None

    def next_job(self, job: UploadJob) -> UploadJob:
        """Hand out what ``peek`` has just shown."""
        entry = self._backlog.take(job.key)
        machine = self._machines[job.machine]
        machine.in_flight += 1
        machine.served_bytes += entry.segment_bytes
        return UploadJob(job.key, job.machine, entry)

    def done(self, job: UploadJob) -> None:
        """The job has ended; its outcome is in the backlog."""
        self._machines[job.machine].in_flight -= 1

    def failed(self, job: UploadJob, retry_at_s: float) -> None:
        """The job did not reach the store: it waits again from ``retry_at_s`` on (its machine's slot is free at once)."""
        self.done(job)
        self._serial += 1
        heapq.heappush(self._parked, (retry_at_s, self._serial, job))

    def unpark(self, now_s: float) -> None:
        """Failed jobs whose time has come wait again."""
        while self._parked and self._parked[0][0] <= now_s:
            job = heapq.heappop(self._parked)[2]
            self._backlog.give_back(job.key, job.entry.place)
            generation = self._backlog.generations.get(job.key.generation_key)
            if generation is not None:
                self.added(generation)

    def next_retry_s(self) -> float | None:
        """When the next failed job waits again; for the dispatcher's timer. In the past until ``unpark`` or ``peek``."""
        return self._parked[0][0] if self._parked else None

    def forget_idle(self) -> None:
        """Drop machines with nothing waiting and nothing under way, so that those that left cost nothing."""
        parked = {job.machine for _, _, job in self._parked}
        for name, machine in list(self._machines.items()):
            if name not in parked and not machine.in_flight and self._head(machine) is None:
                del self._machines[name]
