"""A fake disk in memory whose writes mark it, and a ``ChangeTracker`` over it: verified by the contract suite.

Called by the agent's tests. ``FakeDisk`` plays the device *and* the kernel's half of the tracking: it outlives any
``FakeTracker`` attached to it, as pinned programs outlive the agent. A write is issued, lands and completes; ``write``
does all three, ``issue`` leaves it in flight until ``land``/``complete`` are called, in the way of R3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mobility_agent.change_tracker.interface import (
    NO_DOUBT,
    Doubt,
    DoubtKind,
    Harvest,
    TrackerState,
    TrackerStatus,
)
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.extents import Extent


@dataclass(slots=True)
class FakeWrite:
    """A write in flight. ``land`` puts the bytes on the medium; ``complete`` (which lands it first) ends it."""

    disk: FakeDisk
    extent: Extent
    data: bytes
    landed: bool = False
    completed: bool = False

    def land(self) -> None:
        if not self.landed:
            self.landed = True
            self.disk.content[self.extent.offset_bytes : self.extent.end_bytes] = self.data

    def complete(self) -> None:
        self.land()
        if not self.completed:
            self.completed = True
            self.disk.in_flight -= 1
            self.disk.events += 1
            self.disk.mark(self.extent)


@dataclass(slots=True)
class _Pinned:
    """What outlives a tracker: two halves, the carried marks, and the pending duty to resync."""

    active: DirtyBitmap
    flipped: DirtyBitmap
    carried: DirtyBitmap
    resync_reason: str
    journal_serial: int = 0


@dataclass(slots=True)
class FakeDisk:
    geometry: Geometry
    content: bytearray = field(init=False)
    in_flight: int = 0
    events: int = 0
    pinned: _Pinned | None = None
    lost_marks: str = ""
    """Set to a reason: the next harvest reports a RESYNC doubt, as after an overflow."""
    blind_reason: str = ""

    def __post_init__(self) -> None:
        self.content = bytearray(self.geometry.size_bytes)

    def mark(self, extent: Extent) -> None:
        if self.pinned is not None:
            self.pinned.active.mark(*self.geometry.granule_range(extent))

    def issue(self, offset_bytes: int, data: bytes) -> FakeWrite:
        extent = Extent(offset_bytes, len(data))
        if extent.end_bytes > self.geometry.size_bytes:
            raise ValueError(f"write {extent} past the end of the fake disk")
        self.in_flight += 1
        self.events += 1
        self.mark(extent)
        return FakeWrite(self, extent, data)

    def write(self, offset_bytes: int, data: bytes) -> None:
        self.issue(offset_bytes, data).complete()

    def write_zeroes(self, extent: Extent) -> None:
        self.write(extent.offset_bytes, bytes(extent.length_bytes))

    def current_size_bytes(self) -> int:
        """As ``DiskReader``'s."""
        return len(self.content)

    def read_into(self, buffer: memoryview, extent: Extent) -> None:
        """``ExtentSource``: the live content."""
        buffer[:] = self.content[extent.offset_bytes : extent.end_bytes]


class FakeTracker:
    """Tracks a ``FakeDisk``; attaching to a disk that is tracked already continues, ORing both halves forward."""

    def __init__(self, disk: FakeDisk) -> None:
        self._disk = disk
        self._events_at_flip: int | None = None
        self._open_doubt: Doubt | None = None
        self._late = DirtyBitmap(disk.geometry.granules)
        self._continued = disk.pinned is not None
        if disk.pinned is None:
            granules = disk.geometry.granules
            disk.pinned = _Pinned(
                DirtyBitmap(granules), DirtyBitmap(granules), DirtyBitmap(granules), "tracking began at this attach"
            )
        else:
            disk.pinned.carried.mark_words(disk.pinned.flipped.words)
            disk.pinned.flipped.clear_all()

    @property
    def kind(self) -> str:
        return "fake"

    @property
    def geometry(self) -> Geometry:
        return self._disk.geometry

    @property
    def captures_order(self) -> bool:
        return False

    @property
    def proves_quiet(self) -> bool:
        return True

    @property
    def continued(self) -> bool:
        return self._continued

    def _pins(self) -> _Pinned:
        if self._disk.pinned is None:
            raise OSError("the fake tracker was discarded")
        return self._disk.pinned

    def status(self) -> TrackerStatus:
        if self._disk.blind_reason:
            return TrackerStatus(TrackerState.BLIND, self._disk.blind_reason)
        if self._disk.pinned is None:
            return TrackerStatus(TrackerState.BLIND, "tracking was discarded")
        return TrackerStatus(TrackerState.TRACKING)

    def begin_harvest(self, into: DirtyBitmap | None = None) -> Harvest:
        pins = self._pins()
        if self._open_doubt is not None:
            pins.carried.mark_words(pins.flipped.words)
            pins.flipped.clear_all()
            self._late.clear_all()
        self._events_at_flip = self._disk.events
        pins.active, pins.flipped = pins.flipped, pins.active
        if self._disk.lost_marks:
            pins.resync_reason, self._disk.lost_marks = self._disk.lost_marks, ""
        bitmap = into if into is not None else DirtyBitmap(self.geometry.granules)
        bitmap.clear_all()
        bitmap.mark_words(pins.flipped.words)
        bitmap.mark_words(pins.carried.words)
        self._open_doubt = Doubt(DoubtKind.RESYNC, pins.resync_reason) if pins.resync_reason else NO_DOUBT
        return Harvest(bitmap, self._open_doubt)

    @property
    def journal_serial(self) -> int:
        return 0 if self._disk.pinned is None else self._disk.pinned.journal_serial

    def commit_harvest(self, journal_serial: int = 0) -> None:
        if self._open_doubt is None:
            return
        pins = self._pins()
        pins.journal_serial = journal_serial or pins.journal_serial
        pins.flipped.clear_all()
        pins.carried.clear_all()
        pins.carried.mark_words(self._late.words)
        self._late.clear_all()
        if self._open_doubt.kind is DoubtKind.RESYNC:
            pins.resync_reason = ""
        self._open_doubt = None

    def wrote_since_flip(self) -> bool:
        return self._events_at_flip is None or self._disk.events != self._events_at_flip or self._disk.in_flight > 0

    def is_idle(self) -> bool:
        return self._disk.in_flight == 0

    def mark(self, runs: GranuleRuns) -> None:
        self._pins().carried.mark_runs(runs)
        if self._open_doubt is not None:
            self._late.mark_runs(runs)

    def close(self) -> None:
        self._open_doubt = None

    def discard(self) -> None:
        self._disk.pinned = None
        self.close()
