"""Who writes to the source: file systems that a freeze holds back, raw writers that it does not; and the freeze itself.

Used by the simulation. Content comes in kinds: unique bytes, a small palette that makes a granule equal to what it once was (R1), zeros.
The freezer plays FIFREEZE and the watchdog: writes of file systems wait until the thaw, which comes at the budget's end in any case (R9).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from mobility_agent.quiesce.interface import FreezeResult, Mount
from tests.simulation.source_disk import SECTOR_BYTES, SourceDisk
from tests.simulation.virtual_loop import VirtualLoop

_FREEZE_S: Final = 0.004
_UNDONE: Final = 4


@dataclass(frozen=True, slots=True)
class Habits:
    """``raw``: share of writes that no freeze holds back; ``rate``: writes a second; ``undo``: share of those that put back what one of the
    last writes replaced, so that a granule is what it was some epochs ago (R1).
    """

    rate: float
    undo: float = 0.0
    raw: float = 0.0
    hot: float = 0.5


class Workload:
    """All writers of one machine. ``start`` and ``stop`` them; a machine that is down writes nothing."""

    def __init__(self, disks: Sequence[SourceDisk], loop: VirtualLoop, random: Random, habits: Habits) -> None:
        self.habits = habits
        self.runs = False
        self.is_frozen = False
        self.is_quiesced = False
        self._disks = disks
        self._loop = loop
        self._random = random
        self._serial = 0
        self._incarnation = 0
        self._waiting: list[tuple[SourceDisk, int, bytes]] = []
        self._replaced: deque[tuple[SourceDisk, int, bytes]] = deque(maxlen=_UNDONE)

    def start(self) -> None:
        if not self.runs:
            self.runs = True
            self._incarnation += 1
            self._plan(self._incarnation)

    def stop(self) -> None:
        """No further write is issued; what waits for a thaw is forgotten."""
        self.runs = False
        self._incarnation += 1
        self._waiting.clear()

    def lose_power(self) -> None:
        self.stop()
        self.is_frozen = self.is_quiesced = False

    def _plan(self, incarnation: int) -> None:
        pause_s = self._random.expovariate(self.habits.rate)
        if self._random.random() < 0.02:
            pause_s += self._random.random() * 6
        self._loop.at(self._loop.time() + pause_s, lambda: self._write(incarnation))

    def _write(self, incarnation: int) -> None:
        if not self.runs or incarnation != self._incarnation:
            return
        random = self._random
        burst = 1 if random.random() < 0.9 else random.randrange(2, 8)
        for _ in range(burst):
            disk, first, content = self._next_write()
            is_raw = random.random() < self.habits.raw
            if self.is_quiesced or (self.is_frozen and not is_raw):
                self._waiting.append((disk, first, content))
            else:
                disk.issue(first, content, is_raw=is_raw)
        self._plan(incarnation)

    def _next_write(self) -> tuple[SourceDisk, int, bytes]:
        random, undo = self._random, self.habits.undo
        if undo and self._replaced and random.random() < undo:
            return random.choice(self._replaced)
        disk = self._disks[0] if len(self._disks) == 1 else random.choice(self._disks)
        first, content = self._chosen(disk)
        if undo:
            at = first * SECTOR_BYTES
            self._replaced.append((disk, first, bytes(disk.medium[at : at + len(content)])))
        return disk, first, content

    def _chosen(self, disk: SourceDisk) -> tuple[int, bytes]:
        random = self._random
        granule_sectors = disk.geometry.granularity_bytes // SECTOR_BYTES
        granules = disk.geometry.granules
        granule = (
            random.randrange(min(4, granules)) if random.random() < self.habits.hot else random.randrange(granules)
        )
        first = granule * granule_sectors
        if random.random() < 0.5:
            count = granule_sectors * random.choice((1, 1, 1, 2, 3))
        else:
            first += random.randrange(granule_sectors)
            count = random.randrange(1, 5)
        first = min(first, disk.sectors - 1)
        count = min(count, disk.sectors - first)
        return first, self.content(first, count)

    def content(self, first: int, count: int) -> bytes:
        kind = self._random.random()
        if kind < 0.15:
            return bytes(count * SECTOR_BYTES)
        if kind < 0.5:
            colour = self._random.randrange(1, 3)
            return b"".join(sector_content(colour, sector) for sector in range(first, first + count))
        self._serial += 1
        return b"".join(sector_content(1000 + self._serial, sector) for sector in range(first, first + count))

    def write_back(self) -> None:
        """What file systems still had in memory when they are frozen."""
        for _ in range(self._random.randrange(3) if self.runs else 0):
            disk, first, content = self._next_write()
            disk.issue(first, content, is_raw=False)

    # ---- standing still

    def hold(self, *, raw_too: bool) -> None:
        """On return nothing is in flight of those that are held back."""
        if raw_too:
            self.is_quiesced = True
        else:
            self.is_frozen = True
        while any(raw_too or not request.is_raw for disk in self._disks for request in disk.in_flight):
            next_s = self._loop.next_event_s()
            self._loop.spend(0.0001 if next_s is None else max(0.0, next_s - self._loop.time()))

    def let_go(self) -> None:
        self.is_frozen = self.is_quiesced = False
        waiting, self._waiting = self._waiting, []
        for disk, first, content in waiting:
            disk.issue(first, content, is_raw=False)


def sector_content(colour: int, sector: int) -> bytes:
    """512 bytes that tell what wrote them and where."""
    return (colour.to_bytes(8, "little") + sector.to_bytes(8, "little")) * (SECTOR_BYTES // 16)


class _Freeze:
    def __init__(self, loop: VirtualLoop, deadline_s: float) -> None:
        self.result: FreezeResult | None = None
        self._loop = loop
        self._deadline_s = deadline_s

    def remaining_s(self) -> float:
        return self._deadline_s - self._loop.time()


def _nothing() -> None:
    """No cut was taken."""


class SimulatedFreezer:
    """``Freezer``. ``is_frozen`` is true while the agent believes that it froze: it may not touch a file then."""

    def __init__(self, workload: Workload, loop: VirtualLoop, random: Random) -> None:
        self.is_frozen = False
        self.slow_chance = 0.0
        self.on_spoiled: Callable[[], None] = lambda: None
        """Called if the watchdog thawed: what was cut in this freeze is no point (R9)."""
        self._workload = workload
        self._loop = loop
        self._random = random

    @contextlib.contextmanager
    def frozen(self, mounts: Sequence[Mount], budget_s: float) -> Iterator[_Freeze]:
        loop, began_s = self._loop, self._loop.time()
        thawed_by_watchdog: list[float] = []
        over: list[bool] = []

        def watchdog() -> None:
            if not over:
                thawed_by_watchdog.append(loop.time())
                self._workload.let_go()

        self.on_spoiled = _nothing
        self._workload.write_back()
        self._workload.hold(raw_too=False)
        freeze = _Freeze(loop, loop.time() + budget_s)
        loop.at(loop.time() + budget_s, watchdog)
        self.is_frozen = True
        try:
            loop.spend(_FREEZE_S)
            if self._random.random() < self.slow_chance:
                loop.spend(budget_s * self._random.random() * 1.5)
            yield freeze
        finally:
            if self._random.random() < self.slow_chance:
                loop.spend(budget_s * self._random.random() * 1.5)
            over.append(True)
            self.is_frozen = False
            if not thawed_by_watchdog:
                self._workload.let_go()
            if thawed_by_watchdog:
                self.on_spoiled()
            problem = "the watchdog thawed" if thawed_by_watchdog else ""
            freeze.result = FreezeResult(not problem, loop.time() - began_s, problem)
